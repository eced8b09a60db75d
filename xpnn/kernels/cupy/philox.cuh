// Philox 4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), the bits of
// numpy.random.Philox: block i of a draw is philox(counter + 1 + i), and each block gives four numbers.

typedef unsigned long long u64;

// One block; the counter has 128 bits in c0 and c1, low half first.
__device__ __forceinline__ void philox_block(u64 key0, u64 key1, u64 c0, u64 c1, u64 out[4]) {
    const u64 M0 = 0xD2E7470EE14C6C93ULL, M1 = 0xCA5A826395121157ULL;  // multipliers
    const u64 W0 = 0x9E3779B97F4A7C15ULL, W1 = 0xBB67AE8584CAA73BULL;  // key increments
    u64 c2 = 0, c3 = 0;
    for (int round = 0; round < 10; ++round) {
        const u64 high0 = __umul64hi(M0, c0), low0 = M0 * c0;
        const u64 high1 = __umul64hi(M1, c2), low1 = M1 * c2;
        c0 = high1 ^ c1 ^ key0;
        c1 = low1;
        c2 = high0 ^ c3 ^ key1;
        c3 = low0;
        key0 += W0;
        key1 += W1;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

// Block i of a draw: that of counter + 1 + i, with the carry where the sum wraps around.
__device__ __forceinline__ void philox_draw(u64 seed, u64 stream, u64 counter, u64 i, u64 out[4]) {
    const u64 low = counter + 1 + i;
    philox_block(seed, stream, low, low <= counter, out);
}
