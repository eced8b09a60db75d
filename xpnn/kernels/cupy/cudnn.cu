// What plans of cuDNN are timed with.

#include "common.cuh"

// Keeps the device busy for so many cycles of its clock: what is asked for meanwhile then runs without gaps.
__global__ void spin(i64 cycles) {
    const i64 start = clock64();
    while (clock64() - start < cycles) {
    }
}
