// Whether numbers are numbers, and the scale of a loss whose gradients have to be.

#include "common.cuh"

template <typename A>
__device__ bool is_finite(A x) { return x - x == 0; }

template <typename T>
__global__ void nan_unless_finite(i64 n, const T* x, T* loss) {
    each(n, [&](Acc<T> x) {
        if (!is_finite(x)) *loss = narrow<T>(x - x);  // of infinity, too, this is no number
    }, in(x));
}

// One thread.
template <typename T>
__global__ void note_finite(bool* finite, const T* loss) { *finite = *finite && is_finite(widen(*loss)); }

template <typename T, typename Scale>
__global__ void unscale(i64 n, T* grads, const Scale* scale) {
    const Acc<T> part = 1 / widen(*scale);
    each(n, [=](Acc<T>& grad) { grad *= part; }, in_out(grads));
}

// Of each block's numbers.
template <typename T>
__global__ void are_finite(i64 n, const T* x, bool* answers) {
    int others = 0;
    each(n, [&](Acc<T> x) { others |= !is_finite(x); }, in(x));
    others = block_reduce(others, Max());
    if (threadIdx.x == 0) answers[blockIdx.x] = !others;
}

// One block, which looks at the answers of `blocks`.
__global__ void adjust(i64 blocks, const bool* answers, float* scale, float* steps, float grows_after, bool* fits) {
    int others = 0;
    for (i64 i = threadIdx.x; i < blocks; i += blockDim.x) others |= !answers[i];
    others = block_reduce(others, Max());
    if (threadIdx.x > 0) return;
    const float counted = *steps + 1;
    const bool grows = counted >= grows_after;
    *fits = !others;
    *scale *= others ? 0.5f : grows ? 2.0f : 1.0f;
    *steps = others || grows ? 0 : counted;
}
