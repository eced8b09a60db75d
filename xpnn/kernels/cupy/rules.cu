// Update rules: one pass over parameters, gradients and state. The numbers are those of xpnn/kernels/updates.py.

#include "common.cuh"

constexpr int SEGMENTS = 72, GROUPS = 8, STATES = 2, NUMBERS = 7;  // as in rules.py

// Parameters that lie side by side, with what belongs to them.
template <typename T>
struct Segment {
    T* w;
    const T* dw;
    T* state[STATES];
    i64 n, group;
};
// What the segments of a group share: the numbers of this step, or the place in memory where they are.
template <typename A>
struct Group {
    const A* place;
    A numbers[NUMBERS];
};
template <typename T>
struct Step {
    Segment<T> segments[SEGMENTS];
    Group<Acc<T>> groups[GROUPS];
};

// The segment of this block: blocks with the same y go through one.
template <typename T>
__device__ __forceinline__ Segment<T> own_segment(const Step<T>& step) { return step.segments[blockIdx.y]; }

template <typename T, typename... N>
__device__ __forceinline__ void look_up(const Step<T>& step, N&... numbers) {
    const Group<Acc<T>>& group = step.groups[step.segments[blockIdx.y].group];
    int i = 0;
    ((numbers = group.numbers[i++]), ...);
    look_up(group.place, numbers...);
}

// f(gradient, parameter, state...) for each parameter of a segment; for none where the condition is false, which is
// read here so that nobody waits for it. A factor scales the gradients.
template <int STATE, typename F, typename T>
__device__ void take(F f, const Segment<T>& own, const bool* where, const Acc<T>* factor) {
    if (where && !*where) return;
    const Acc<T> scale = factor ? *factor : 1;
    const auto g = [=](Acc<T> dw, auto&... numbers) { f(scale * dw, numbers...); };
    if constexpr (STATE == 0) each(own.n, g, in(own.dw), in_out(own.w));
    if constexpr (STATE == 1) each(own.n, g, in(own.dw), in_out(own.w), in_out(own.state[0]));
    if constexpr (STATE == 2) each(own.n, g, in(own.dw), in_out(own.w), in_out(own.state[0]), in_out(own.state[1]));
}

template <typename T>
__global__ void sgd(const Step<T> step, const bool* where, const Acc<T>* factor) {
    typedef Acc<T> A;
    A lr;
    look_up(step, lr);
    take<0>([=](A dw, A& w) { w -= lr * dw; }, own_segment(step), where, factor);
}

template <typename T>
__global__ void sgd_momentum(const Step<T> step, const bool* where, const Acc<T>* factor) {
    typedef Acc<T> A;
    A lr, mu;
    look_up(step, lr, mu);
    take<1>([=](A dw, A& w, A& v) {
        v = mu * v - lr * dw;
        w += v;
    }, own_segment(step), where, factor);
}

template <typename T>
__global__ void sgd_nesterov_momentum(const Step<T> step, const bool* where, const Acc<T>* factor) {
    typedef Acc<T> A;
    A lr, mu;
    look_up(step, lr, mu);
    take<1>([=](A dw, A& w, A& v) {
        const A before = v;
        v = mu * v - lr * dw;
        w += v + mu * (v - before);
    }, own_segment(step), where, factor);
}

template <typename T>
__global__ void nesterov(const Step<T> step, const bool* where, const Acc<T>* factor) {
    typedef Acc<T> A;
    A lr, mu, decay;
    look_up(step, lr, mu, decay);
    take<1>([=](A dw, A& w, A& v) {
        const A g = dw + decay * w;
        v = mu * v + g;
        w -= lr * (g + mu * v);
    }, own_segment(step), where, factor);
}

template <typename T>
__global__ void rmsprop(const Step<T> step, const bool* where, const Acc<T>* factor) {
    typedef Acc<T> A;
    A lr, decay, rest, epsilon;
    look_up(step, lr, decay, rest, epsilon);
    take<1>([=](A dw, A& w, A& a) {
        a = decay * a + rest * (dw * dw);
        w -= lr * dw / (sqrt(a) + epsilon);
    }, own_segment(step), where, factor);
}

// Adam on w, of which so much is kept.
template <typename T>
__global__ void adam(const Step<T> step, const bool* where, const Acc<T>* factor) {
    typedef Acc<T> A;
    A kept, rate, b1, rest1, b2, rest2, epsilon;
    look_up(step, kept, rate, b1, rest1, b2, rest2, epsilon);
    take<2>([=](A dw, A& w, A& v, A& a) {
        v = b1 * v + rest1 * dw;
        a = b2 * a + rest2 * (dw * dw);
        w = kept * w - rate * v / (sqrt(a) + epsilon);
    }, own_segment(step), where, factor);
}

template <typename T>
__global__ void lion(const Step<T> step, const bool* where, const Acc<T>* factor) {
    typedef Acc<T> A;
    A kept, lr, b1, rest1, b2, rest2;
    look_up(step, kept, lr, b1, rest1, b2, rest2);
    take<1>([=](A dw, A& w, A& v) {
        const A direction = b1 * v + rest1 * dw;
        v = b2 * v + rest2 * dw;
        w = kept * w - lr * (direction > 0 ? 1 : direction < 0 ? -1 : direction);  // 0 and NaN stay
    }, own_segment(step), where, factor);
}
