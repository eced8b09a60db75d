// The sum of all numbers of an array, and that of their squares.

#include "common.cuh"

// The sum of each block. No atomics: the same numbers always give the same sum.
template <typename T, bool squared>
__global__ void sums(i64 n, const T* x, Acc<T>* sums) {
    Acc<T> sum = 0;
    each(n, [&](Acc<T> x) { sum += squared ? x * x : x; }, in(x));
    sum = block_reduce(sum, Sum());
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
