// What goes along with a product or a convolution: its bias and the activation behind it, and their gradients.

#include "activation.cuh"
#include "columns.cuh"

// Of a product x (n, d): x becomes x + bias, where there is one, for backward, and out is its activation. A ReLU's
// backward takes its output, so out may be x itself.
template <typename T, bool packed, Activation activation>
__global__ void add_and_activate(i64 n, i64 d, const T* bias, T* x, T* out) {
    constexpr int K = packed ? 16 / sizeof(T) : 1;
    const i64 column = K * (blockIdx.x * (i64)blockDim.x + threadIdx.x), step = (i64)gridDim.y * blockDim.y;
    if (column >= d) return;
    const Numbers<T, K> shifts = bias ? from<K>(bias + column) : Numbers<T, K>{};
    for (i64 row = blockIdx.y * (i64)blockDim.y + threadIdx.y; row < n; row += step) {
        Numbers<T, K> y = read<K>(x + row * d + column);
        for (int k = 0; k < K; ++k) y.number[k] += shifts.number[k];
        if (bias && activation != relu) write(x + row * d + column, y);
        for (int k = 0; k < K; ++k) y.number[k] = activated<activation>(y.number[k]);
        write(out + row * d + column, y);
    }
}

// The gradient dx (n, d) before an activation, and the sums of its columns, of chunks of rows, gridDim.y of them. Rows
// of x, which was the activation's input or a ReLU's output, are `apart` numbers apart.
template <typename T, typename To, Activation activation>
__global__ void __launch_bounds__(MOST_THREADS) grad(const T* dout, const T* x, i64 n, i64 d, i64 apart,
                                                     i64 rows, T* dx, To* sums) {
    const i64 column = column_of(d), first = blockIdx.y * rows, end = min(first + rows, n);
    Acc<T> sum = 0;
#pragma unroll 8
    for (i64 row = first + threadIdx.y; row < end; row += blockDim.y) {
        const Acc<T> g = passed<activation>(widen(dout[row * d + column]), widen(x[row * apart + column]));
        dx[row * d + column] = narrow<T>(g);
        sum += g;
    }
    sum = column_reduce(sum, Sum());
    if (threadIdx.y == 0) sums[blockIdx.y * d + column] = narrow<To>(sum);
}
