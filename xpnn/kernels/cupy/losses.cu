// The softmax's cross-entropy with smoothed labels, and its gradient.

#include "teams.cuh"

constexpr int MOST_THREADS = 512;  // of a block

template <typename T>
__device__ Acc<T> lowest();
template <>
__device__ float lowest<float>() { return -3.40282347e38f; }
template <>
__device__ float lowest<__half>() { return -65504.0f; }
template <>
__device__ float lowest<__nv_bfloat16>() { return -3.38953139e38f; }
template <>
__device__ double lowest<double>() { return -1.7976931348623157e308; }

// The losses (gridDim.x,) of the rows of each block, added up, and dx. A label out of range is nobody's.
template <typename T, typename Loss, bool warps>
__global__ void __launch_bounds__(MOST_THREADS) cross_entropy(const T* x, const i64* y, Loss* losses, T* dx, i64 n,
                                                              i64 c, Acc<T> smoothing, Acc<T> weight) {
    typedef Acc<T> A;
    const Team<warps> team;
    const A low = lowest<T>() / 2, least = smoothing / c;
    A loss = 0;
    for (i64 row = team.first; row < n; row += team.step) {
        const T* scores = x + row * c;
        const i64 label = y[row];
        A top = widen(scores[0]), total = 0;
        for (i64 j = team.rank; j < c; j += team.size) top = Max()(top, widen(scores[j]));
        top = team.reduce(top, Max());
        const A bottom = (top < low ? low : top) + low;  // so that no difference overflows
        const auto shifted = [=](A score) { return (score < bottom ? bottom : score) - top; };
        for (i64 j = team.rank; j < c; j += team.size) total += exp(shifted(widen(scores[j])));
        total = team.reduce(total, Sum());
        const A log_total = log(total);
        for (i64 j = team.rank; j < c; j += team.size) {
            const A score = shifted(widen(scores[j])), target = j == label ? 1 - smoothing + least : least;
            loss += target * (log_total - score);
            dx[row * c + j] = narrow<T>((exp(score) / total - target) * weight);
        }
    }
    loss = block_reduce(loss * weight, Sum());
    if (threadIdx.x == 0) losses[blockIdx.x] = narrow<Loss>(loss);
}

template <typename T>
__global__ void add_losses(const Acc<T>* losses, T* loss, i64 n) {
    Acc<T> sum = 0;
    for (i64 i = threadIdx.x; i < n; i += blockDim.x) sum += losses[i];
    sum = block_reduce(sum, Sum());
    if (threadIdx.x == 0) *loss = narrow<T>(sum);
}
