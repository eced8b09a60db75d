// What is asked of all numbers of an array: their sum, that of their squares, whether they are numbers.

#include "common.cuh"

// The sum of each block. No atomics: the same numbers always give the same sum.
template <typename T, bool squared>
__global__ void sums(i64 n, const T* x, Acc<T>* sums) {
    Acc<T> sum = 0;
    each(n, [&](Acc<T> x) { sum += squared ? x * x : x; }, in(x));
    sum = block_reduce(sum, Sum());
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

template <typename T>
__global__ void nan_unless_finite(i64 n, const T* x, T* loss) {
    each(n, [&](Acc<T> x) {
        const Acc<T> none = x - x;  // of infinity, too, this is no number
        if (none != 0) *loss = narrow<T>(none);
    }, in(x));
}
