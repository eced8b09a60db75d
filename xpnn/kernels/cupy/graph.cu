// What a graph's launches cannot carry themselves.

#include "common.cuh"

// An argument by value: the launch itself brings the numbers to the device.
template <int N>
struct Bits {
    u64 numbers[N];
};

// The numbers that differ from replay to replay: as many as there are threads, to where `places` points.
template <int N>
__global__ void put(u64* places, Bits<N> bits) {
    places[threadIdx.x] = bits.numbers[threadIdx.x];
}
