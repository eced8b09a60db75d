// Work on rows: each row is that of a warp where rows are short, or else of a block.

#include "common.cuh"

template <bool warps>
struct Team {
    i64 first, step;  // its rows: first, first + step, ...
    int rank, size;   // which of its threads this is

    __device__ Team() {
        if (warps) {
            first = (blockIdx.x * (i64)blockDim.x + threadIdx.x) / WARP;
            step = (i64)gridDim.x * blockDim.x / WARP;
            rank = threadIdx.x % WARP;
            size = WARP;
        } else {
            first = blockIdx.x;
            step = gridDim.x;
            rank = threadIdx.x;
            size = blockDim.x;
        }
    }

    // Of what all its threads have: each gets the result.
    template <typename A, typename Op>
    __device__ A reduce(A x, Op op) const {
        if (warps) return warp_reduce(x, op);
        return block_reduce(x, op);
    }
};
