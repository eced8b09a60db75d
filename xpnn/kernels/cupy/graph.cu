// What a graph's launches cannot carry themselves.

#include "common.cuh"

// The numbers that differ from replay to replay, as bits: so many of them, from where `places` points.
__global__ void put(u64* places, i64 n, u64 a, u64 b, u64 c, u64 d, u64 e, u64 f, u64 g, u64 h) {
    const u64 numbers[] = {a, b, c, d, e, f, g, h};
    if (threadIdx.x < n) places[threadIdx.x] = numbers[threadIdx.x];
}
