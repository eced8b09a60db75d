// Batch normalization of rows (n, d): statistics of the columns, and what is computed of each number by them. Rows may
// be of half precision; vectors (d,) have the type that is computed in.
//
// An activation behind it is applied, too. Its gradient takes its input, which is computed again: that is quicker than
// to read it.

#include "activation.cuh"
#include "columns.cuh"

constexpr int GROUP = 8;  // numbers of a column that a thread reads at once

// The rows of a thread, out of those of its block from `first` to `end`: every blockDim.y-th.
__device__ i64 rows_of_thread(i64 first, i64 end) {
    return (max(end - first - threadIdx.y, 0LL) + blockDim.y - 1) / blockDim.y;
}

// Numbers that lie `apart`, `count` of them, and the last again for each that is missing: with a branch before each,
// the reads would not be on their way together.
template <typename T>
__device__ __forceinline__ void read_group(const T* memory, i64 apart, int count, Acc<T>* numbers) {
#pragma unroll
    for (int k = 0; k < GROUP; ++k) {
        numbers[k] = widen(*memory);
        if (k + 1 < count) memory += apart;
    }
}

// The same bits in every kernel.
template <typename A>
__device__ __forceinline__ A normalized(A x, A mean, A scale, A beta) { return fma(x - mean, scale, beta); }

// ---- mean and variance, and what follows from them

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

// What follows from the moments of a column, into `statistics` (4, d), the mean, 1 / std, gamma / std and beta; and the
// running mean and variance, into `running` (2, d).
template <typename A>
__device__ void write_statistics(Moments<A> moments, A shift, i64 column, i64 d, const A* running_mean,
                                 const A* running_var, const A* gamma, const A* beta, A momentum, A correction, A eps,
                                 A* statistics, A* running) {
    const A mean = shift + moments.mean, var = moments.squares / moments.count, inv_std = 1 / sqrt(var + eps);
    statistics[column] = mean;
    statistics[d + column] = inv_std;
    statistics[2 * d + column] = gamma[column] * inv_std;
    statistics[3 * d + column] = beta[column];
    running[column] = momentum * running_mean[column] + (1 - momentum) * mean;
    running[d + column] = momentum * running_var[column] + (1 - momentum) * correction * var;
}

// Of chunks of rows, gridDim.y of them, into `chunks` (2, gridDim.y, d); one chunk is all. It reads x once.
template <typename T>
__global__ void __launch_bounds__(MOST_THREADS)
    moments(const T* x, i64 n, i64 d, i64 rows, Acc<T>* chunks, const Acc<T>* running_mean, const Acc<T>* running_var,
            const Acc<T>* gamma, const Acc<T>* beta, Acc<T> momentum, Acc<T> correction, Acc<T> eps, Acc<T>* statistics,
            Acc<T>* running) {
    const i64 column = column_of(d), first = blockIdx.y * rows, own = rows_of_thread(first, min(first + rows, n));
    const i64 start = (first + threadIdx.y) * d + column, apart = blockDim.y * d;
    const Acc<T> shift = widen(x[column]);
    Moments<Acc<T>> all = {0, 0, 0};
    for (i64 i = 0; i < own; i += GROUP) {
        const int count = min(own - i, (i64)GROUP);
        Acc<T> numbers[GROUP], mean = 0, squares = 0;
        read_group(x + start + i * apart, apart, count, numbers);
#pragma unroll
        for (int k = 0; k < GROUP; ++k) {
            numbers[k] -= shift;
            if (k < count) mean += numbers[k];
        }
        mean /= count;
#pragma unroll
        for (int k = 0; k < GROUP; ++k) {
            if (k < count) squares += (numbers[k] - mean) * (numbers[k] - mean);
        }
        all = Merge()(all, Moments<Acc<T>>{Acc<T>(count), mean, squares});
    }
    all = column_reduce(all, Merge());
    if (threadIdx.y > 0) return;
    if (gridDim.y == 1) {
        write_statistics(all, shift, column, d, running_mean, running_var, gamma, beta, momentum, correction, eps,
                         statistics, running);
        return;
    }
    chunks[blockIdx.y * d + column] = all.mean;
    chunks[(gridDim.y + blockIdx.y) * d + column] = all.squares;
}

template <typename T>
__global__ void __launch_bounds__(MOST_THREADS)
    merge_moments(const T* x, i64 n, i64 d, i64 rows, const Acc<T>* chunks, i64 count, const Acc<T>* running_mean,
                  const Acc<T>* running_var, const Acc<T>* gamma, const Acc<T>* beta, Acc<T> momentum,
                  Acc<T> correction, Acc<T> eps, Acc<T>* statistics, Acc<T>* running) {
    const i64 column = column_of(d);
    Moments<Acc<T>> all = {0, 0, 0};
    for (i64 chunk = threadIdx.y; chunk < count; chunk += blockDim.y) {
        const Acc<T> size = min(rows, n - chunk * rows);
        all = Merge()(all, Moments<Acc<T>>{size, chunks[chunk * d + column], chunks[(count + chunk) * d + column]});
    }
    all = column_reduce(all, Merge());
    if (threadIdx.y > 0) return;
    write_statistics(all, widen(x[column]), column, d, running_mean, running_var, gamma, beta, momentum, correction,
                     eps, statistics, running);
}

template <typename A>
__global__ void scales(i64 d, const A* var, const A* gamma, const A* beta, A eps, A* inv_std, A* scale, A* copy) {
    each(d, [=](A var, A gamma, A beta, A& inv_std, A& scale, A& copy) {
        inv_std = 1 / sqrt(var + eps);
        scale = gamma * inv_std;
        copy = beta;
    }, in(var), in(gamma), in(beta), out(inv_std), out(scale), out(copy));
}

// ---- the gradients of gamma and beta, of the sums of dout and of dout (x - mean)

template <typename A>
struct Sums {
    A dout, products;
};

struct Add {
    template <typename A>
    __device__ Sums<A> operator()(Sums<A> a, Sums<A> b) const { return {a.dout + b.dout, a.products + b.products}; }
};

// Also what the gradient of x is less, into `means` (2, d): of dout, and of dout x_hat / std. No inv_std is one of 1.
template <typename A>
__device__ void write_gradients(Sums<A> sums, i64 column, i64 d, const A* inv_std, A part, A* dgamma, A* dbeta,
                                A* means) {
    const A scale = inv_std ? inv_std[column] : 1, gradient = sums.products * scale;
    dgamma[column] = gradient;
    dbeta[column] = sums.dout;
    means[column] = sums.dout * part;
    means[d + column] = gradient * part * scale;
}

// No mean is one of 0.
template <typename T, Activation activation>
__global__ void __launch_bounds__(MOST_THREADS)
    gradient_sums(const T* dout, const T* x, const Acc<T>* mean, const Acc<T>* scale, const Acc<T>* beta, i64 n, i64 d,
                  i64 rows, Acc<T>* chunks, const Acc<T>* inv_std, Acc<T> part, Acc<T>* dgamma, Acc<T>* dbeta,
                  Acc<T>* means) {
    const i64 column = column_of(d), first = blockIdx.y * rows, own = rows_of_thread(first, min(first + rows, n));
    const i64 start = (first + threadIdx.y) * d + column, apart = blockDim.y * d;
    const Acc<T> center = mean ? mean[column] : 0;
    const Acc<T> factor = activation == none ? 1 : scale[column], shift = activation == none ? 0 : beta[column];
    Sums<Acc<T>> all = {0, 0};
    for (i64 i = 0; i < own; i += GROUP) {
        const int count = min(own - i, (i64)GROUP);
        Acc<T> douts[GROUP], numbers[GROUP];
        read_group(dout + start + i * apart, apart, count, douts);
        read_group(x + start + i * apart, apart, count, numbers);
#pragma unroll
        for (int k = 0; k < GROUP; ++k) {
            const Acc<T> g = passed<activation>(douts[k], normalized(numbers[k], center, factor, shift));
            if (k < count) all = Add()(all, Sums<Acc<T>>{g, g * (numbers[k] - center)});
        }
    }
    all = column_reduce(all, Add());
    if (threadIdx.y > 0) return;
    if (gridDim.y == 1) return write_gradients(all, column, d, inv_std, part, dgamma, dbeta, means);
    chunks[blockIdx.y * d + column] = all.dout;
    chunks[(gridDim.y + blockIdx.y) * d + column] = all.products;
}

template <typename A>
__global__ void __launch_bounds__(MOST_THREADS) add_sums(i64 d, const A* chunks, i64 count, const A* inv_std, A part,
                                                         A* dgamma, A* dbeta, A* means) {
    const i64 column = column_of(d);
    Sums<A> all = {0, 0};
    for (i64 chunk = threadIdx.y; chunk < count; chunk += blockDim.y) {
        all = Add()(all, Sums<A>{chunks[chunk * d + column], chunks[(count + chunk) * d + column]});
    }
    all = column_reduce(all, Add());
    if (threadIdx.y == 0) write_gradients(all, column, d, inv_std, part, dgamma, dbeta, means);
}

// ---- each number

template <typename T, bool packed, Activation activation>
__global__ void normalize(i64 n, i64 d, const T* x, const Acc<T>* mean, const Acc<T>* scale, const Acc<T>* beta,
                          T* out) {
    typedef Acc<T> A;
    constexpr int K = packed ? 16 / sizeof(T) : 1;
    const i64 column = K * (blockIdx.x * (i64)blockDim.x + threadIdx.x), step = (i64)gridDim.y * blockDim.y;
    if (column >= d) return;
    const Numbers<A, K> centers = from<K>(mean + column), scales = from<K>(scale + column);
    const Numbers<A, K> betas = from<K>(beta + column);
    for (i64 row = blockIdx.y * (i64)blockDim.y + threadIdx.y; row < n; row += step) {
        Numbers<T, K> y = read<K>(x + row * d + column);
        for (int k = 0; k < K; ++k) {
            const A number = normalized(y.number[k], centers.number[k], scales.number[k], betas.number[k]);
            y.number[k] = activated<activation>(number);
        }
        write(out + row * d + column, y);
    }
}

template <typename T, bool packed, Activation activation>
__global__ void input_grad(i64 n, i64 d, const T* dout, const T* x, const Acc<T>* mean, const Acc<T>* scale,
                           const Acc<T>* beta, const Acc<T>* shift, const Acc<T>* slope, T* dx) {
    typedef Acc<T> A;
    constexpr int K = packed ? 16 / sizeof(T) : 1;
    const i64 column = K * (blockIdx.x * (i64)blockDim.x + threadIdx.x), step = (i64)gridDim.y * blockDim.y;
    if (column >= d) return;
    const Numbers<A, K> centers = from<K>(mean + column), scales = from<K>(scale + column);
    const Numbers<A, K> betas = from<K>(beta + column);
    const Numbers<A, K> shifts = from<K>(shift + column), slopes = from<K>(slope + column);
    for (i64 row = blockIdx.y * (i64)blockDim.y + threadIdx.y; row < n; row += step) {
        Numbers<T, K> g = read<K>(dout + row * d + column), y = read<K>(x + row * d + column);
        for (int k = 0; k < K; ++k) {
            const A number = normalized(y.number[k], centers.number[k], scales.number[k], betas.number[k]);
            g.number[k] = passed<activation>(g.number[k], number) - shifts.number[k];
            g.number[k] = (g.number[k] - (y.number[k] - centers.number[k]) * slopes.number[k]) * scales.number[k];
        }
        write(dx + row * d + column, g);
    }
}
