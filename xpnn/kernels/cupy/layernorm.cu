// Layer normalization of rows (n, d): statistics in two passes over a row, of which the second finds it in the cache.

#include "teams.cuh"

template <typename T, bool warps>
__global__ void layernorm(const T* x, const T* gamma, const T* beta, Acc<T> eps, i64 n, i64 d, T* out, T* x_hat,
                          T* inv_std) {
    typedef Acc<T> A;
    const Team<warps> team;
    for (i64 row = team.first; row < n; row += team.step) {
        const i64 start = row * d;
        A sum = 0, squares = 0;
        for (i64 j = team.rank; j < d; j += team.size) sum += widen(x[start + j]);
        const A mean = team.reduce(sum, Sum()) / d;
        for (i64 j = team.rank; j < d; j += team.size) {
            const A centered = widen(x[start + j]) - mean;
            squares += centered * centered;
        }
        const A inverse = 1 / sqrt(team.reduce(squares, Sum()) / d + eps);
        for (i64 j = team.rank; j < d; j += team.size) {
            const A normalized = (widen(x[start + j]) - mean) * inverse;
            x_hat[start + j] = narrow<T>(normalized);
            out[start + j] = narrow<T>(widen(gamma[j]) * normalized + widen(beta[j]));
        }
        if (team.rank == 0) inv_std[row] = narrow<T>(inverse);
    }
}

template <typename T, bool warps>
__global__ void layernorm_grad(const T* dout, const T* x_hat, const T* inv_std, const T* gamma, i64 n, i64 d, T* dx) {
    typedef Acc<T> A;
    const Team<warps> team;
    for (i64 row = team.first; row < n; row += team.step) {
        const i64 start = row * d;
        A sum = 0, products = 0;
        for (i64 j = team.rank; j < d; j += team.size) {
            const A g = widen(gamma[j]) * widen(dout[start + j]);
            sum += g;
            products += g * widen(x_hat[start + j]);
        }
        const A mean = team.reduce(sum, Sum()) / d, slope = team.reduce(products, Sum()) / d;
        const A inverse = widen(inv_std[row]);
        for (i64 j = team.rank; j < d; j += team.size) {
            const A g = widen(gamma[j]) * widen(dout[start + j]);
            dx[start + j] = narrow<T>((g - mean - slope * widen(x_hat[start + j])) * inverse);
        }
    }
}
