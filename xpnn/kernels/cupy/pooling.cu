// Max pooling. Images are (n, height, width, c) in memory; those with the channels first are n c images of one channel.
//
// A block is some rows of the result; its threads are side by side in memory, each in its column and channel. Packed,
// a thread has 16 bytes of channels.

#include "common.cuh"

template <typename T, typename Place, bool packed>
__global__ void window_max(const T* x, T* out, Place* place, i64 rows, i64 height, i64 width, i64 c, i64 out_height,
                           i64 out_width, i64 high, i64 wide, i64 stride_down, i64 stride_right) {
    constexpr int K = packed ? 16 / sizeof(T) : 1;
    const i64 number = K * (blockIdx.x * (i64)blockDim.x + threadIdx.x), step = (i64)gridDim.y * blockDim.y;
    if (number >= out_width * c) return;
    const i64 left = number / c * stride_right, channel = number % c;
    for (i64 row = blockIdx.y * (i64)blockDim.y + threadIdx.y; row < rows; row += step) {
        const i64 top = row / out_height * height + row % out_height * stride_down;
        const T* corner = x + (top * width + left) * c + channel;
        Numbers<T, K> best = read<K>(corner);
        Pack<Place, K> places = {};
        for (i64 u = 0; u < high; ++u) {
            for (i64 v = 0; v < wide; ++v) {
                const Numbers<T, K> taps = read<K>(corner + (u * width + v) * c);
                for (int k = 0; k < K; ++k) {
                    const Acc<T> tap = taps.number[k], most = best.number[k];
                    if (tap > most || (tap != tap && most == most)) {  // what is no number passes
                        best.number[k] = tap;
                        places.number[k] = u * wide + v;
                    }
                }
            }
        }
        const i64 at = row * out_width * c + number;
        write(out + at, best);
        *reinterpret_cast<Pack<Place, K>*>(place + at) = places;
    }
}

// Of the windows, side by side or overlapping, that cover a place on an axis.
struct Covering {
    i64 first, last;
    __device__ Covering(i64 place, i64 size, i64 stride, i64 count)
        : first(place < size ? 0 : (place - size) / stride + 1), last(min(place / stride, count - 1)) {}
};

// Each number of dx looks at the windows that cover it, so that no two threads write to one.
template <typename T, typename Place, bool packed>
__global__ void window_max_grad(const T* dout, const Place* place, T* dx, i64 rows, i64 height, i64 width, i64 c,
                                i64 out_height, i64 out_width, i64 high, i64 wide, i64 stride_down, i64 stride_right) {
    constexpr int K = packed ? 16 / sizeof(T) : 1;
    const i64 number = K * (blockIdx.x * (i64)blockDim.x + threadIdx.x), step = (i64)gridDim.y * blockDim.y;
    if (number >= width * c) return;
    const i64 right = number / c, channel = number % c;
    const Covering across(right, wide, stride_right, out_width);
    for (i64 row = blockIdx.y * (i64)blockDim.y + threadIdx.y; row < rows; row += step) {
        const i64 image = row / height, down = row % height;
        const Covering along(down, high, stride_down, out_height);
        Numbers<T, K> sums = {};
        for (i64 i = along.last; i >= along.first; --i) {
            for (i64 j = across.last; j >= across.first; --j) {
                const i64 at = ((image * out_height + i) * out_width + j) * c + channel;
                const i64 mine = (down - i * stride_down) * wide + right - j * stride_right;
                const Numbers<T, K> douts = read<K>(dout + at);
                const Pack<Place, K> places = *reinterpret_cast<const Pack<Place, K>*>(place + at);
                for (int k = 0; k < K; ++k) sums.number[k] += places.number[k] == mine ? douts.number[k] : 0;
            }
        }
        write(dx + row * width * c + number, sums);
    }
}
