// What Muon's step is beside its products. Sums of squares are those of blocks, of which there are no more than threads
// in one: so each block of the next launch adds them up itself.

#include "common.cuh"

// The norm of all numbers, from the sums of their squares.
template <typename A>
__device__ A norm(const A* squares, i64 blocks) {
    return sqrt(block_reduce(threadIdx.x < blocks ? squares[threadIdx.x] : A(0), Sum()));
}

template <typename A>
__device__ void leave_sum(A squares, A* sums) {
    squares = block_reduce(squares, Sum());
    if (threadIdx.x == 0) sums[blockIdx.x] = squares;
}

// Nesterov's momentum: v = mu v + dw and the step, dw + mu v; the sums of its squares and, where they are asked for, of
// w's. Where the condition is false the velocity stays as it is. A factor scales the gradients.
template <typename T>
__global__ void momentum(i64 n, const T* w, const T* dw, const bool* where, const Acc<T>* factor, T* velocity,
                         Acc<T>* step, Acc<T>* step_squares, Acc<T>* w_squares, const Acc<T>* place, Acc<T> mu) {
    look_up(place, mu);
    typedef Acc<T> A;
    const bool proceeds = !where || *where;
    const A scale = factor ? *factor : 1;
    A squares = 0;
    each(n, [&](A dw, A& v, A& step) {
        const A next = mu * v + scale * dw;
        step = scale * dw + mu * next;
        squares += step * step;
        if (proceeds) v = next;
    }, in(dw), in_out(velocity), out(step));
    leave_sum(squares, step_squares);
    if (!w_squares) return;
    squares = 0;
    each(n, [&](A w) { squares += w * w; }, in(w));
    leave_sum(squares, w_squares);
}

// The step over its norm, in the type of the products.
template <typename A, typename P>
__global__ void normalized(i64 n, const A* step, const A* squares, i64 blocks, P* x) {
    const A factor = 1 / (norm(squares, blocks) + A(1e-7));
    each(n, [=](A step, auto& x) { x = factor * step; }, in(step), out(x));
}

// w = kept w - rate update, of w scaled to a norm where there are the sums of its squares; none where the condition is
// false.
template <typename T, typename P>
__global__ void updated(i64 n, T* w, const P* update, const bool* where, const Acc<T>* w_squares, i64 blocks,
                        Acc<T> size, const Acc<T>* place, Acc<T> mu, Acc<T> rate, Acc<T> kept) {
    if (where && !*where) return;
    look_up(place, mu, rate, kept);
    typedef Acc<T> A;
    if (w_squares) {
        const A length = norm(w_squares, blocks);
        kept *= size / (length > 0 ? length : 1);  // zeros stay zeros
    }
    each(n, [=](Acc<P> update, A& w) { w = kept * w - rate * update; }, in(update), in_out(w));
}
