// Batch normalization of rows (n, d): statistics of the columns, and what is computed of each number by them.
//
// With `relu` the result is rectified, and a gradient is 0 where that was not positive: it is computed again, which is
// quicker than to read it.

#include "columns.cuh"

constexpr int GROUP = 8;  // numbers that a thread reads at once

// The same bits in every kernel.
template <typename A>
__device__ __forceinline__ A normalized(A x, A mean, A scale, A beta) { return fma(x - mean, scale, beta); }

// ---- mean and variance

// Of numbers less a shift that all have in common, so that means far from zero lose nothing.
template <typename A>
struct Moments {
    A count, mean, squares;  // of the deviations from the mean
};

struct Merge {  // Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing variances", 1979
    template <typename A>
    __device__ Moments<A> operator()(Moments<A> a, Moments<A> b) const {
        if (b.count == 0) return a;
        const A count = a.count + b.count, part = b.count / count, delta = b.mean - a.mean;
        return {count, a.mean + delta * part, a.squares + b.squares + delta * delta * part * a.count};
    }
};

template <typename T>
__device__ void write_moments(Moments<Acc<T>> moments, Acc<T> shift, i64 column, T* mean, T* var) {
    mean[column] = narrow<T>(shift + moments.mean);
    var[column] = narrow<T>(moments.squares / moments.count);
}

// Of chunks of rows, gridDim.y of them, into `chunks` (2, gridDim.y, d); one chunk is all. It reads x once.
template <typename T>
__global__ void __launch_bounds__(MOST_THREADS) moments(const T* x, i64 n, i64 d, i64 rows, Acc<T>* chunks, T* mean,
                                                        T* var) {
    const i64 column = column_of(d), first = blockIdx.y * rows, end = min(first + rows, n), step = blockDim.y;
    const Acc<T> shift = widen(x[column]);
    Moments<Acc<T>> all = {0, 0, 0};
    for (i64 row = first + threadIdx.y; row < end; row += GROUP * step) {
        Acc<T> numbers[GROUP];
        Moments<Acc<T>> group = {0, 0, 0};
#pragma unroll
        for (int k = 0; k < GROUP; ++k) {
            if (row + k * step < end) {
                numbers[k] = widen(x[(row + k * step) * d + column]) - shift;
                group.mean += numbers[k];
                group.count += 1;
            }
        }
        group.mean /= group.count;
#pragma unroll
        for (int k = 0; k < GROUP; ++k) {
            if (row + k * step < end) group.squares += (numbers[k] - group.mean) * (numbers[k] - group.mean);
        }
        all = Merge()(all, group);
    }
    all = column_reduce(all, Merge());
    if (threadIdx.y > 0) return;
    if (gridDim.y == 1) return write_moments(all, shift, column, mean, var);
    chunks[blockIdx.y * d + column] = all.mean;
    chunks[(gridDim.y + blockIdx.y) * d + column] = all.squares;
}

template <typename T>
__global__ void __launch_bounds__(MOST_THREADS) merge_moments(const T* x, i64 n, i64 d, i64 rows, const Acc<T>* chunks,
                                                              i64 count, T* mean, T* var) {
    const i64 column = column_of(d);
    Moments<Acc<T>> all = {0, 0, 0};
    for (i64 chunk = threadIdx.y; chunk < count; chunk += blockDim.y) {
        const Acc<T> size = min(rows, n - chunk * rows);
        all = Merge()(all, Moments<Acc<T>>{size, chunks[chunk * d + column], chunks[(count + chunk) * d + column]});
    }
    all = column_reduce(all, Merge());
    if (threadIdx.y == 0) write_moments(all, widen(x[column]), column, mean, var);
}

// ---- the sums of dout and of dout (x - mean), where no mean is one of 0

template <typename A>
struct Sums {
    A dout, products;
};

struct Add {
    template <typename A>
    __device__ Sums<A> operator()(Sums<A> a, Sums<A> b) const { return {a.dout + b.dout, a.products + b.products}; }
};

template <typename T>
__device__ void write_sums(Sums<Acc<T>> sums, i64 column, T* douts, T* products) {
    douts[column] = narrow<T>(sums.dout);
    products[column] = narrow<T>(sums.products);
}

template <typename T, bool relu>
__global__ void __launch_bounds__(MOST_THREADS) gradient_sums(const T* dout, const T* x, const T* mean, const T* scale,
                                                              const T* beta, i64 n, i64 d, i64 rows, Acc<T>* chunks,
                                                              T* douts, T* products) {
    const i64 column = column_of(d), first = blockIdx.y * rows, end = min(first + rows, n);
    const Acc<T> center = mean ? widen(mean[column]) : 0;
    const Acc<T> factor = relu ? widen(scale[column]) : 1, shift = relu ? widen(beta[column]) : 0;
    Sums<Acc<T>> all = {0, 0};
#pragma unroll 8
    for (i64 row = first + threadIdx.y; row < end; row += blockDim.y) {
        const Acc<T> y = widen(x[row * d + column]);
        const bool passes = !relu || normalized(y, center, factor, shift) > 0;
        const Acc<T> g = passes ? widen(dout[row * d + column]) : 0;
        all = Add()(all, Sums<Acc<T>>{g, g * (y - center)});
    }
    all = column_reduce(all, Add());
    if (threadIdx.y > 0) return;
    if (gridDim.y == 1) return write_sums(all, column, douts, products);
    chunks[blockIdx.y * d + column] = all.dout;
    chunks[(gridDim.y + blockIdx.y) * d + column] = all.products;
}

template <typename T>
__global__ void __launch_bounds__(MOST_THREADS) add_sums(i64 d, const Acc<T>* chunks, i64 count, T* douts,
                                                         T* products) {
    const i64 column = column_of(d);
    Sums<Acc<T>> all = {0, 0};
    for (i64 chunk = threadIdx.y; chunk < count; chunk += blockDim.y) {
        all = Add()(all, Sums<Acc<T>>{chunks[chunk * d + column], chunks[(count + chunk) * d + column]});
    }
    all = column_reduce(all, Add());
    if (threadIdx.y == 0) write_sums(all, column, douts, products);
}

// ---- each column

template <typename T>
__global__ void running_moments(i64 d, const T* running_mean, const T* running_var, const T* mean, const T* var,
                                Acc<T> momentum, Acc<T> correction, T* new_mean, T* new_var) {
    typedef Acc<T> A;
    each(d, [=](A running_mean, A running_var, A mean, A var, A& new_mean, A& new_var) {
        new_mean = momentum * running_mean + (1 - momentum) * mean;
        new_var = momentum * running_var + (1 - momentum) * correction * var;
    }, in(running_mean), in(running_var), in(mean), in(var), out(new_mean), out(new_var));
}

template <typename T>
__global__ void scales(i64 d, const T* var, const T* gamma, Acc<T> eps, T* inv_std, T* scale) {
    typedef Acc<T> A;
    each(d, [=](A var, A gamma, A& inv_std, A& scale) {
        inv_std = 1 / sqrt(var + eps);
        scale = gamma * inv_std;
    }, in(var), in(gamma), out(inv_std), out(scale));
}

template <typename T>
__global__ void means(i64 d, const T* dbeta, const T* dgamma, const T* inv_std, Acc<T> part, T* shift, T* slope) {
    typedef Acc<T> A;
    each(d, [=](A dbeta, A dgamma, A inv_std, A& shift, A& slope) {
        shift = dbeta * part;
        slope = dgamma * part * inv_std;
    }, in(dbeta), in(dgamma), in(inv_std), out(shift), out(slope));
}

// ---- each number

template <typename T, bool packed, bool relu>
__global__ void normalize(i64 n, i64 d, const T* x, const T* mean, const T* scale, const T* beta, T* out) {
    constexpr int K = packed ? 16 / sizeof(T) : 1;
    const i64 column = K * (blockIdx.x * (i64)blockDim.x + threadIdx.x), step = (i64)gridDim.y * blockDim.y;
    if (column >= d) return;
    const Numbers<T, K> centers = from<K>(mean + column), scales = from<K>(scale + column);
    const Numbers<T, K> betas = from<K>(beta + column);
    for (i64 row = blockIdx.y * (i64)blockDim.y + threadIdx.y; row < n; row += step) {
        Numbers<T, K> y = read<K>(x + row * d + column);
        for (int k = 0; k < K; ++k) {
            const Acc<T> number = normalized(y.number[k], centers.number[k], scales.number[k], betas.number[k]);
            y.number[k] = relu && number < 0 ? 0 : number;  // what is no number stays
        }
        write(out + row * d + column, y);
    }
}

template <typename T, bool packed, bool relu>
__global__ void input_gradient(i64 n, i64 d, const T* dout, const T* x, const T* mean, const T* scale, const T* beta,
                               const T* shift, const T* slope, T* dx) {
    constexpr int K = packed ? 16 / sizeof(T) : 1;
    const i64 column = K * (blockIdx.x * (i64)blockDim.x + threadIdx.x), step = (i64)gridDim.y * blockDim.y;
    if (column >= d) return;
    const Numbers<T, K> centers = from<K>(mean + column), scales = from<K>(scale + column);
    const Numbers<T, K> shifts = from<K>(shift + column), slopes = from<K>(slope + column);
    const Numbers<T, K> betas = relu ? from<K>(beta + column) : shifts;
    for (i64 row = blockIdx.y * (i64)blockDim.y + threadIdx.y; row < n; row += step) {
        Numbers<T, K> g = read<K>(dout + row * d + column), y = read<K>(x + row * d + column);
        for (int k = 0; k < K; ++k) {
            const Acc<T> centered = y.number[k] - centers.number[k];
            if (relu && !(normalized(y.number[k], centers.number[k], scales.number[k], betas.number[k]) > 0)) {
                g.number[k] = 0;
            }
            g.number[k] = (g.number[k] - shifts.number[k] - centered * slopes.number[k]) * scales.number[k];
        }
        write(dx + row * d + column, g);
    }
}
