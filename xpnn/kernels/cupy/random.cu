// Random bits.

#include "common.cuh"
#include "philox.cuh"

__global__ void philox(u64 seed, u64 stream, const u64* place, u64 counter, u64 n, u64* out) {
    look_up(place, counter);
    const u64 block = blockIdx.x * (u64)blockDim.x + threadIdx.x;
    if (4 * block >= n) return;
    u64 bits[4];
    philox_draw(seed, stream, counter, block, bits);
    for (int i = 0; i < 4 && 4 * block + i < n; ++i) out[4 * block + i] = bits[i];
}

// low + floor(u span), for u in [0, 1) of 53 bits.
__global__ void integers(u64 seed, u64 stream, const u64* place, u64 counter, u64 n, i64 low, double span, i64* out) {
    look_up(place, counter);
    const u64 block = blockIdx.x * (u64)blockDim.x + threadIdx.x;
    if (4 * block >= n) return;
    u64 bits[4];
    philox_draw(seed, stream, counter, block, bits);
    for (int i = 0; i < 4 && 4 * block + i < n; ++i)
        out[4 * block + i] = low + i64(double(bits[i] >> 11) * (1.0 / (1ull << 53)) * span);
}
