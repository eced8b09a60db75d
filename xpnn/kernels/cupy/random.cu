// Random bits, and numbers made of them.

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

// A number in [0, 1) of 53 bits.
__device__ double unit(u64 bits) { return double(bits >> 11) * (1.0 / (1ull << 53)); }

// low + floor(u span).
__global__ void integers(u64 seed, u64 stream, const u64* place, u64 counter, u64 n, i64 low, double span, i64* out) {
    look_up(place, counter);
    const u64 block = blockIdx.x * (u64)blockDim.x + threadIdx.x;
    if (4 * block >= n) return;
    u64 bits[4];
    philox_draw(seed, stream, counter, block, bits);
    for (int i = 0; i < 4 && 4 * block + i < n; ++i)
        out[4 * block + i] = low + i64(unit(bits[i]) * span);
}

// mean + std z, by the Box-Muller transform of u and v: v is half the draw after u, as sin is after cos. A thread has a
// block of u; its v lie across two blocks.
template <typename T>
__global__ void normals(u64 seed, u64 stream, const u64* place, u64 counter, u64 n, double mean, double std, T* out) {
    look_up(place, counter);
    const u64 block = blockIdx.x * (u64)blockDim.x + threadIdx.x, pairs = (n + 1) / 2;
    if (4 * block >= pairs) return;
    u64 u[4], v[8];
    philox_draw(seed, stream, counter, block, u);
    philox_draw(seed, stream, counter, block + pairs / 4, v);
    philox_draw(seed, stream, counter, block + pairs / 4 + 1, v + 4);
    for (int i = 0; i < 4 && 4 * block + i < pairs; ++i) {
        const u64 pair = 4 * block + i;
        const double radius = sqrt(-2 * log(unit(u[i]) + 1.0 / (1ull << 53)));  // (0, 1]: the logarithm stays finite
        const double angle = 2 * 3.141592653589793 * unit(v[pairs % 4 + i]);
        out[pair] = narrow<T>(mean + std * radius * cos(angle));
        if (pairs + pair < n) out[pairs + pair] = narrow<T>(mean + std * radius * sin(angle));
    }
}
