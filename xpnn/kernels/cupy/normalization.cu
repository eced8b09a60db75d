// Normalization of examples by themselves. Numbers x (n, pixels, groups, width) are normalized over the pixels and the
// width of each group; the rows (n, d) of layer and RMS norm are one group of one pixel. Statistics are taken in two
// passes, of which the second finds the numbers in the cache.

#include "teams.cuh"

// A row is a group of an example. Its numbers are counted pixel by pixel, and dealt out to the team's threads.
template <bool warps>
struct Rows {
    Team<warps> team;
    i64 pixels, groups, width;
    i64 pixel, k;          // where a thread's first number is,
    i64 pixels_on, k_on;   // and how far on its next

    __device__ Rows(i64 pixels, i64 groups, i64 width)
        : pixels(pixels), groups(groups), width(width), pixel(team.rank / width), k(team.rank % width),
          pixels_on(team.size / width), k_on(team.size % width) {}

    // f(place, channel) for each of this thread's numbers.
    template <typename F>
    __device__ void each(i64 row, F f) const {
        const i64 channels = groups * width, first = row % groups * width, start = row / groups * pixels * channels;
        for (i64 pixel = this->pixel, k = this->k; pixel < pixels; pixel += pixels_on) {
            f(start + pixel * channels + first + k, first + k);
            k += k_on;
            if (k >= width) {
                k -= width;
                ++pixel;
            }
        }
    }

    // Of what all threads have of a row.
    template <typename A>
    __device__ A mean(A sum) const { return team.reduce(sum, Sum()) / (pixels * width); }
};

// Layer and group norm are centered: they have a mean, and beta. RMS norm has neither.
template <typename T, bool warps, bool centered>
__global__ void normalization(const T* x, const T* gamma, const T* beta, Acc<T> eps, i64 n, i64 pixels, i64 groups,
                              i64 width, T* out, T* x_hat, T* inv_std) {
    typedef Acc<T> A;
    const Rows<warps> rows(pixels, groups, width);
    for (i64 row = rows.team.first; row < n * groups; row += rows.team.step) {
        A mean = 0, squares = 0;
        if (centered) {
            A sum = 0;
            rows.each(row, [&](i64 i, i64) { sum += widen(x[i]); });
            mean = rows.mean(sum);
        }
        rows.each(row, [&](i64 i, i64) {
            const A number = widen(x[i]) - mean;
            squares += number * number;
        });
        const A inverse = 1 / sqrt(rows.mean(squares) + eps);
        rows.each(row, [&](i64 i, i64 channel) {
            const A normalized = (widen(x[i]) - mean) * inverse, scaled = widen(gamma[channel]) * normalized;
            x_hat[i] = narrow<T>(normalized);
            out[i] = narrow<T>(centered ? scaled + widen(beta[channel]) : scaled);
        });
        if (rows.team.rank == 0) inv_std[row] = narrow<T>(inverse);
    }
}

template <typename T, bool warps, bool centered>
__global__ void normalization_grad(const T* dout, const T* x_hat, const T* inv_std, const T* gamma, i64 n, i64 pixels,
                                   i64 groups, i64 width, T* dx) {
    typedef Acc<T> A;
    const Rows<warps> rows(pixels, groups, width);
    for (i64 row = rows.team.first; row < n * groups; row += rows.team.step) {
        A sum = 0, products = 0;
        rows.each(row, [&](i64 i, i64 channel) {
            const A g = widen(gamma[channel]) * widen(dout[i]);
            sum += g;
            products += g * widen(x_hat[i]);
        });
        const A mean = centered ? rows.mean(sum) : 0, slope = rows.mean(products), inverse = widen(inv_std[row]);
        rows.each(row, [&](i64 i, i64 channel) {
            const A g = widen(gamma[channel]) * widen(dout[i]);
            dx[i] = narrow<T>((g - mean - slope * widen(x_hat[i])) * inverse);
        });
    }
}
