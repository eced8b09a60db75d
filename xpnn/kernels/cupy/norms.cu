// Sums of squares over arrays. No atomics: the same numbers always give the same sums.

#include "common.cuh"

constexpr int ARRAYS = 240;  // as in norms.py

template <typename T>
struct Array {
    const T* x;
    i64 n;
};
template <typename T>
struct List {
    Array<T> arrays[ARRAYS];
};

// The sum of each block. Blocks with the same y go through one array.
template <typename T>
__global__ void squares(const List<T> list, Acc<T>* sums) {
    const Array<T> own = list.arrays[blockIdx.y];
    Acc<T> sum = 0;
    each(own.n, [&](Acc<T> x) { sum += x * x; }, in(own.x));
    sum = block_reduce(sum, Sum());
    if (threadIdx.x == 0) sums[blockIdx.y * gridDim.x + blockIdx.x] = sum;
}

// By one block.
template <typename A>
__device__ A sum_of(i64 n, const A* x) {
    A sum = 0;
    each(n, [&](A x) { sum += x; }, in(x));
    return block_reduce(sum, Sum());
}

template <typename A>
__global__ void sum(i64 n, const A* x, A* out) {
    const A all = sum_of(n, x);
    if (threadIdx.x == 0) *out = all;
}

// What scales numbers, of whose squares these are sums, down to a norm.
template <typename A>
__global__ void clip_factor(i64 n, const A* squares, A most, A* factor) {
    const A ratio = most / (sqrt(sum_of(n, squares)) + A(1e-6));
    if (threadIdx.x == 0) *factor = ratio >= 1 ? 1 : ratio;  // NaN stays
}
