// The softmax's cross-entropy with smoothed labels, hard or soft, and its gradient.

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

// How far class j is a row's, and the sum over all classes. Hard labels (n,) are numbers of classes; one that is out of
// range is nobody's, and counts all the same. Soft ones (n, c) have the share of each class.
template <typename A>
__device__ A share_of(const i64* y, i64 row, i64, i64 j) { return j == y[row]; }
template <typename A, typename T>
__device__ A share_of(const T* y, i64 row, i64 c, i64 j) { return widen(y[row * c + j]); }

template <typename A, bool warps>
__device__ A all_shares(Team<warps>, const i64*, i64, i64) { return 1; }
template <typename A, bool warps, typename T>
__device__ A all_shares(Team<warps> team, const T* y, i64 row, i64 c) {
    A sum = 0;
    for (i64 j = team.rank; j < c; j += team.size) sum += share_of<A>(y, row, c, j);
    return team.reduce(sum, Sum());
}

// The losses (gridDim.x,) of the rows of each block, added up, and dx.
template <typename T, typename Loss, bool warps, typename Label = i64>
__global__ void __launch_bounds__(MOST_THREADS) cross_entropy(const T* x, const Label* y, Loss* losses, T* dx, i64 n,
                                                              i64 c, Acc<T> smoothing, Acc<T> weight) {
    typedef Acc<T> A;
    const Team<warps> team;
    const A low = lowest<T>() / 2, least = smoothing / c;
    A loss = 0;
    for (i64 row = team.first; row < n; row += team.step) {
        const T* scores = x + row * c;
        A top = widen(scores[0]), total = 0;
        for (i64 j = team.rank; j < c; j += team.size) top = Max()(top, widen(scores[j]));
        top = team.reduce(top, Max());
        const A bottom = (top < low ? low : top) + low;  // so that no difference overflows
        const auto shifted = [=](A score) { return (score < bottom ? bottom : score) - top; };
        for (i64 j = team.rank; j < c; j += team.size) total += exp(shifted(widen(scores[j])));
        total = team.reduce(total, Sum());
        const A log_total = log(total), part = ((1 - smoothing) * all_shares<A>(team, y, row, c) + smoothing) / total;
        for (i64 j = team.rank; j < c; j += team.size) {
            const A score = shifted(widen(scores[j])), target = (1 - smoothing) * share_of<A>(y, row, c, j) + least;
            loss += target * (log_total - score);
            dx[row * c + j] = narrow<T>((exp(score) * part - target) * weight);
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
