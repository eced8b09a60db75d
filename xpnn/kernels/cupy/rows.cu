// Sums of rows.

#include "common.cuh"

constexpr int COLUMNS = 32, LANES = 8;  // a block: threads side by side read neighboring numbers

// The sums (d,) of chunks of rows, one after the other. Where rows are short, `side` of them are read as one: x has
// `rows` such rows to a chunk, and `total` numbers. No atomics: the same numbers always give the same sums.
template <typename T, typename Sum>
__global__ void add_rows(const T* x, Sum* sums, i64 total, i64 d, i64 side, i64 rows) {
    __shared__ Acc<T> of_lanes[LANES][COLUMNS];
    const i64 width = side * d, column = blockIdx.x * (i64)COLUMNS + threadIdx.x, first = blockIdx.y * rows;
    Acc<T> sum = 0;
    if (column < width) {
        const i64 end = min((first + rows) * width, total);
#pragma unroll 8
        for (i64 i = (first + threadIdx.y) * width + column; i < end; i += LANES * width) sum += widen(x[i]);
    }
    of_lanes[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0) {
        for (int lane = 1; lane < LANES; ++lane) sum += of_lanes[lane][threadIdx.x];
        of_lanes[0][threadIdx.x] = sum;
    }
    __syncthreads();
    if (threadIdx.y == 0 && column < d) {
        for (i64 next = 1; next < side; ++next) sum += of_lanes[0][threadIdx.x + next * d];
        sums[blockIdx.y * d + column] = narrow<Sum>(sum);
    }
}
