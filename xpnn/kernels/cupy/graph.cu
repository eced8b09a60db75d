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

template <int N>
struct Copies {
    struct {
        u64 to, from, words;
    } copies[N];
};

// The blocks along x and their threads share the words of a copy; blockIdx.y is which one.
template <int N>
__global__ void overwrite(Copies<N> all) {
    const auto copy = all.copies[blockIdx.y];
    unsigned* to = reinterpret_cast<unsigned*>(copy.to);
    const unsigned* from = reinterpret_cast<const unsigned*>(copy.from);
    const u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < copy.words; i += step) to[i] = from[i];
}
