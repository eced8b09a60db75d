// Images of other pixels.

#include "common.cuh"

// out[n, c, i, j] = x[indices[n], c, rows[n, i], columns[n, j]]; where an array is null, its index stays what it is.
// Numbers are bits here: T has their size. x may have any strides; out has no gaps, with the channels last in memory or
// before the rows. blockIdx.x is n; the blocks along y and their threads share the image's pixels.
template <typename T, bool channels_last>
__global__ void pick(const void* x, void* out, const i64* indices, const i64* rows, const i64* columns, i64 channels,
                     i64 height, i64 width, i64 of_image, i64 of_channel, i64 of_row, i64 of_column) {
    const i64 n = blockIdx.x;
    const unsigned C = channels, H = height, W = width, size = C * H * W;  // an image has fewer than 2**31 pixels
    const T* from = static_cast<const T*>(x) + (indices ? indices[n] : n) * of_image;
    T* to = static_cast<T*>(out) + n * size;
    for (unsigned place = blockIdx.y * blockDim.x + threadIdx.x; place < size; place += gridDim.y * blockDim.x) {
        const unsigned pixel = channels_last ? place / C : place % (H * W);
        const unsigned c = channels_last ? place % C : place / (H * W), i = pixel / W, j = pixel % W;
        const i64 row = rows ? rows[n * H + i] : i, column = columns ? columns[n * W + j] : j;
        to[place] = from[c * of_channel + row * of_row + column * of_column];
    }
}
