// Images of other pixels, and raw images standardized on the way.

#include "common.cuh"

__device__ i64 shifted(i64 i, i64 by, i64 size, bool reflects) {
    const auto mirrored = [](i64 i) { return i < 0 ? -i : i; };
    return reflects ? size - 1 - mirrored(size - 1 - mirrored(i + by)) : i + by;
}

// out[n, c, i, j] = x[indices[n], c, rows[n, i], columns[n, j]], and, where it standardizes, of that (x - mean) / std
// or x - mean. In place of rows there may be shifts, down, and in place of columns shifts, right, and coins: left and
// right are exchanged where one is 1, before the shift or after it. A shift reflects at the edges or not; what then
// comes from beyond them is 0. An array that is null changes nothing.
//
// Else numbers are bits: From and To have their size. x may have any strides, mean and std of an image their own; out
// has no gaps, with the channels last in memory or before the rows. blockIdx.x is n; the blocks along y and their
// threads share the image's pixels, and take all of their few channels, or one of many.
template <typename From, typename To, bool standardizes>
__global__ void pick(const void* x, void* out, const i64* indices, const i64* rows, const i64* columns, const i64* down,
                     const i64* right, const i64* coins, i64 down_reflects, i64 right_reflects, i64 exchanged_first,
                     i64 channels_last, i64 channels_of_thread, i64 channels, i64 height, i64 width, i64 from_height,
                     i64 from_width, i64 of_image, i64 of_channel, i64 of_row, i64 of_column, const void* means,
                     const void* stds, i64 of_mean_channel, i64 of_mean_row, i64 of_mean_column) {
    const i64 n = blockIdx.x;
    const unsigned C = channels, W = width, pixels = height * width;  // an image has fewer than 2**31 numbers
    const From* from = static_cast<const From*>(x) + (indices ? indices[n] : n) * of_image;
    To* to = static_cast<To*>(out) + n * C * pixels;
    const bool exchanged = coins && coins[n];
    const unsigned K = channels_of_thread, parts = C / K, step = gridDim.y * blockDim.x;
    for (unsigned at = blockIdx.y * blockDim.x + threadIdx.x; at < pixels * parts; at += step) {
        const unsigned pixel = channels_last ? at / parts : at % pixels;
        const unsigned part = channels_last ? at % parts : at / pixels;
        const unsigned i = pixel / W, j = pixel % W;
        i64 row = rows ? rows[n * height + i] : i, column = columns ? columns[n * width + j] : j;
        if (down) row = shifted(row, down[n], from_height, down_reflects);
        // What was done last is undone first.
        if (exchanged && !exchanged_first) column = from_width - 1 - column;
        if (right) column = shifted(column, right[n], from_width, right_reflects);
        if (exchanged && exchanged_first) column = from_width - 1 - column;
        const bool is_there = 0 <= row && row < from_height && 0 <= column && column < from_width;
        for (unsigned c = part * K; c < (part + 1) * K; ++c) {
            const From number = is_there ? from[c * of_channel + row * of_row + column * of_column] : From(0);
            To& place = to[channels_last ? pixel * C + c : c * pixels + pixel];
            if constexpr (standardizes) {
                const i64 mean = c * of_mean_channel + i * of_mean_row + j * of_mean_column;
                const Acc<To> y = Acc<To>(widen(number)) - static_cast<const Acc<To>*>(means)[mean];
                place = narrow<To>(stds ? y / static_cast<const Acc<To>*>(stds)[mean] : y);
            } else {
                place = number;
            }
        }
    }
}

// Whole examples, of `size` packs of bits each. blockIdx.x is the example.
template <typename Bits>
__global__ void taken(const void* x, const i64* indices, i64 size, void* out) {
    const Bits* from = static_cast<const Bits*>(x) + indices[blockIdx.x] * size;
    Bits* to = static_cast<Bits*>(out) + blockIdx.x * size;
    for (i64 i = blockIdx.y * blockDim.x + threadIdx.x; i < size; i += gridDim.y * blockDim.x) to[i] = from[i];
}
