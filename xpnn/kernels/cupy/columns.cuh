// Work on rows (n, d) column by column: a block is blockDim.x columns wide and blockDim.y rows high. Threads side by
// side read neighboring numbers, and each stays in its column.

#include "common.cuh"

constexpr int MOST_THREADS = 512;  // of a block

// Threads beyond the last column repeat it: they too come to the barriers.
__device__ i64 column_of(i64 d) { return min(blockIdx.x * (i64)blockDim.x + threadIdx.x, d - 1); }

// Of all rows of threads, in the first of them. In an order of its own, but always the same one.
template <typename Value, typename Op>
__device__ Value column_reduce(Value value, Op op) {
    __shared__ Value of_threads[MOST_THREADS];
    const int thread = threadIdx.y * blockDim.x + threadIdx.x;
    for (unsigned rows = blockDim.y, half; rows > 1; rows = half) {
        half = (rows + 1) / 2;
        of_threads[thread] = value;
        __syncthreads();
        if (threadIdx.y < rows - half) value = op(value, of_threads[thread + half * blockDim.x]);
        __syncthreads();
    }
    return value;
}

// K numbers of a vector, of a column and those behind it, wherever the vector begins in memory.
template <int K, typename T>
__device__ Numbers<T, K> from(const T* vector) {
    constexpr int PART = smallest(K, int(16 / sizeof(T)));
    Numbers<T, K> numbers;
    if (reinterpret_cast<u64>(vector) % (PART * sizeof(T)) == 0) {
        for (int k = 0; k < K; k += PART) {
            const Numbers<T, PART> part = read<PART>(vector + k);
            for (int i = 0; i < PART; ++i) numbers.number[k + i] = part.number[i];
        }
    } else {
        for (int k = 0; k < K; ++k) numbers.number[k] = widen(vector[k]);
    }
    return numbers;
}
