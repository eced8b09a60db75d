// Raw images standardized.

#include "common.cuh"

// out = (x - mean) / std, or x - mean without a std, of images (channels, pixels): blockIdx.x is the image; the blocks
// along y and their threads share its numbers. An image of x has its channels before its pixels in memory or behind
// them, as its strides say; out has them behind, as convolutions want them; mean and std, before.
template <typename From, typename To>
__global__ void standardized(const From* x, const Acc<To>* mean, const Acc<To>* std, To* out, i64 channels,
                             i64 pixels, i64 of_channel, i64 of_pixel) {
    const unsigned C = channels, size = channels * pixels;  // an image has fewer than 2**31 numbers
    x += blockIdx.x * (i64)size;
    out += blockIdx.x * (i64)size;
    for (unsigned i = blockIdx.y * blockDim.x + threadIdx.x; i < size; i += gridDim.y * blockDim.x) {
        const i64 pixel = i / C, c = i % C, place = c * pixels + pixel;
        Acc<To> y = widen(x[c * of_channel + pixel * of_pixel]);
        y -= mean[place];
        out[i] = narrow<To>(std ? y / std[place] : y);
    }
}
