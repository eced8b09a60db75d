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

// Whole examples, of `size` packs of bits each. blockIdx.x is the example.
template <typename Bits>
__global__ void taken(const void* x, const i64* indices, i64 size, void* out) {
    const Bits* from = static_cast<const Bits*>(x) + indices[blockIdx.x] * size;
    Bits* to = static_cast<Bits*>(out) + blockIdx.x * size;
    for (i64 i = blockIdx.y * blockDim.x + threadIdx.x; i < size; i += gridDim.y * blockDim.x) to[i] = from[i];
}

// ---- where rows or columns come from: out (n, size)

template <typename F>
__device__ void each_place(i64 n, i64 size, i64* out, F from) {
    const i64 step = (i64)gridDim.x * blockDim.x;
    for (i64 at = blockIdx.x * (i64)blockDim.x + threadIdx.x; at < n * size; at += step)
        out[at] = from(at / size, at % size);
}

// Shifted, and reflected at the edges.
__global__ void shifted(i64 n, i64 size, const i64* shifts, i64* out) {
    const auto mirror = [](i64 i) { return i < 0 ? -i : i; };
    each_place(n, size, out, [=](i64 image, i64 i) {
        return size - 1 - mirror(size - 1 - mirror(shifts[image] + i));
    });
}

// Left and right exchanged where a coin is 1.
__global__ void mirrored(i64 n, i64 size, const i64* coins, i64* out) {
    each_place(n, size, out, [=](i64 image, i64 i) { return i + coins[image] * (size - 1 - 2 * i); });
}

// By `second` from what comes by `first` (n, of).
__global__ void then(i64 n, i64 size, const i64* first, i64 of, const i64* second, i64* out) {
    each_place(n, size, out, [=](i64 image, i64 i) { return first[image * of + second[image * size + i]]; });
}
