// Masks of dropout, from random bits.

#include "common.cuh"
#include "philox.cuh"

// 0 where the random number, of 32 bits, is below `dropped`, else `kept`. A block of Philox is eight of them.
template <typename T>
__global__ void dropout_mask(u64 seed, u64 stream, const u64* place, u64 counter, i64 n, unsigned dropped, Acc<T> kept,
                             T* mask) {
    look_up(place, counter);
    const i64 start = blockIdx.x * (i64)blockDim.x + threadIdx.x, step = (i64)gridDim.x * blockDim.x;
    for (i64 block = start; 8 * block < n; block += step) {
        u64 bits[4];
        philox_draw(seed, stream, counter, block, bits);
        Numbers<T, 8> numbers;
        for (int k = 0; k < 8; ++k) numbers.number[k] = unsigned(bits[k / 2] >> 32 * (k % 2)) < dropped ? 0 : kept;
        if (8 * block + 8 <= n) {
            write(mask + 8 * block, numbers);
        } else {
            for (int k = 0; 8 * block + k < n; ++k) mask[8 * block + k] = narrow<T>(numbers.number[k]);
        }
    }
}
