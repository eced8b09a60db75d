// Windows of images written out as the rows of a matrix, and the gradients of such rows gathered for every pixel;
// filters in another order.

#include "common.cuh"

// The columns (groups, places, kh, kw, c) of images whose numbers lie `of_image`, `of_row`, `of_column` and `of_channel`
// apart; c is a group's channels. A row of threads goes along a window, 16 bytes at a time where it is packed; a block's
// rows take windows of their own, and gridDim.y is the groups.
template <typename T, bool packed>
__global__ void im2col(const T* x, T* columns, i64 places, i64 c, i64 height, i64 width, i64 rows, i64 cols, i64 kh,
                       i64 kw, i64 sh, i64 sw, i64 ph, i64 pw, i64 dh, i64 dw, i64 of_image, i64 of_row, i64 of_column,
                       i64 of_channel) {
    typedef Pack<T, packed ? 16 / sizeof(T) : 1> Numbers;
    constexpr unsigned K = sizeof(Numbers) / sizeof(T);
    const unsigned depth = c, wide = kw, length = kh * kw * c;
    x += blockIdx.y * c * of_channel;
    columns += blockIdx.y * places * length;
    const i64 first = blockIdx.x * (i64)blockDim.y + threadIdx.y, step = (i64)gridDim.x * blockDim.y;
    for (i64 place = first; place < places; place += step) {
        const i64 line = place / cols, top = line % rows * sh - ph, left = place % cols * sw - pw;
        const T* image = x + line / rows * of_image;
        for (unsigned k = K * threadIdx.x; k < length; k += K * blockDim.x) {
            const unsigned tap = k / depth, channel = k % depth;
            const i64 i = top + tap / wide * dh, j = left + tap % wide * dw;
            Numbers numbers = {};
            if (i >= 0 && i < height && j >= 0 && j < width)
                numbers = *reinterpret_cast<const Numbers*>(image + i * of_row + j * of_column + channel * of_channel);
            *reinterpret_cast<Numbers*>(columns + place * length + k) = numbers;
        }
    }
}

// The images (pixels, groups, c) of columns of gradients: a pixel is the sum over the windows that met it, always in the
// same order.
template <typename T, bool packed>
__global__ void col2im(const T* columns, T* dx, i64 pixels, i64 c, i64 height, i64 width, i64 rows, i64 cols, i64 kh,
                       i64 kw, i64 sh, i64 sw, i64 ph, i64 pw, i64 dh, i64 dw) {
    constexpr int K = packed ? 16 / sizeof(T) : 1;
    columns += blockIdx.y * (pixels / (height * width)) * rows * cols * kh * kw * c;
    const i64 first = blockIdx.x * (i64)blockDim.y + threadIdx.y, step = (i64)gridDim.x * blockDim.y;
    for (i64 pixel = first; pixel < pixels; pixel += step) {
        const i64 line = pixel / width, image = line / height;
        for (i64 k = K * threadIdx.x; k < c; k += K * blockDim.x) {
            Numbers<T, K> sum = {};
            for (i64 u = 0; u < kh; ++u) {
                const i64 down = line % height + ph - u * dh, i = down / sh;
                if (down < 0 || i * sh != down || i >= rows) continue;
                for (i64 v = 0; v < kw; ++v) {
                    const i64 right = pixel % width + pw - v * dw, j = right / sw;
                    if (right < 0 || j * sw != right || j >= cols) continue;
                    const i64 place = (image * rows + i) * cols + j;
                    const Numbers<T, K> numbers = read<K>(columns + ((place * kh + u) * kw + v) * c + k);
                    for (int n = 0; n < K; ++n) sum.number[n] += numbers.number[n];
                }
            }
            write<K>(dx + (pixel * gridDim.y + blockIdx.y) * c + k, sum);
        }
    }
}

constexpr int TILE = 4096;  // numbers of a filter that a block keeps, at most

// Filters (F, C, taps) from or to (F, taps, C). blockIdx.x is the filter and blockIdx.y some of its channels: a block
// reads them in the order of one and writes them in that of the other, neighbors by neighbors.
template <typename From, typename To, bool to_last>
__global__ void arrange(const From* from, To* to, i64 channels, i64 taps, i64 channels_of_block) {
    __shared__ Acc<From> tile[TILE];  // (C, taps)
    const i64 filter = blockIdx.x * channels * taps, first = blockIdx.y * channels_of_block;
    const unsigned count = min(channels_of_block, channels - first), K = taps, size = count * K;
    const auto place = [=](unsigned c, unsigned k) { return filter + k * channels + first + c; };
    for (unsigned i = threadIdx.x; i < size; i += blockDim.x) {
        if (to_last) {
            tile[i] = widen(from[filter + first * K + i]);
        } else {
            tile[i % count * K + i / count] = widen(from[place(i % count, i / count)]);
        }
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < size; i += blockDim.x) {
        if (to_last) {
            to[place(i % count, i / count)] = narrow<To>(tile[i % count * K + i / count]);
        } else {
            to[filter + first * K + i] = narrow<To>(tile[i]);
        }
    }
}
