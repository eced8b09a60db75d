// Update rules: one pass over parameters, gradients and state. The numbers are those of xpnn/kernels/updates.py.

#include "common.cuh"

// f(gradient, parameter, state...) for each of n parameters; for none where the condition is false, which is read here
// so that nobody waits for it. A factor scales the gradients.
template <typename F, typename T, typename... State>
__device__ void step(F f, i64 n, T* w, const T* dw, const bool* where, const Acc<T>* factor, State*... state) {
    if (where && !*where) return;
    const Acc<T> scale = factor ? *factor : 1;
    each(n, [=](Acc<T> dw, auto&... numbers) { f(scale * dw, numbers...); }, in(dw), in_out(w), in_out(state)...);
}

template <typename T>
__global__ void sgd(i64 n, T* w, const T* dw, const bool* where, const Acc<T>* factor, const Acc<T>* place, Acc<T> lr) {
    look_up(place, lr);
    typedef Acc<T> A;
    step([=](A dw, A& w) { w -= lr * dw; }, n, w, dw, where, factor);
}

template <typename T>
__global__ void sgd_momentum(i64 n, T* w, const T* dw, const bool* where, const Acc<T>* factor, T* velocity,
                             const Acc<T>* place, Acc<T> lr, Acc<T> mu) {
    look_up(place, lr, mu);
    typedef Acc<T> A;
    step([=](A dw, A& w, A& v) {
        v = mu * v - lr * dw;
        w += v;
    }, n, w, dw, where, factor, velocity);
}

template <typename T>
__global__ void sgd_nesterov_momentum(i64 n, T* w, const T* dw, const bool* where, const Acc<T>* factor, T* velocity,
                                      const Acc<T>* place, Acc<T> lr, Acc<T> mu) {
    look_up(place, lr, mu);
    typedef Acc<T> A;
    step([=](A dw, A& w, A& v) {
        const A before = v;
        v = mu * v - lr * dw;
        w += v + mu * (v - before);
    }, n, w, dw, where, factor, velocity);
}

template <typename T>
__global__ void nesterov(i64 n, T* w, const T* dw, const bool* where, const Acc<T>* factor, T* velocity,
                         const Acc<T>* place, Acc<T> lr, Acc<T> mu, Acc<T> decay) {
    look_up(place, lr, mu, decay);
    typedef Acc<T> A;
    step([=](A dw, A& w, A& v) {
        const A g = dw + decay * w;
        v = mu * v + g;
        w -= lr * (g + mu * v);
    }, n, w, dw, where, factor, velocity);
}

template <typename T>
__global__ void rmsprop(i64 n, T* w, const T* dw, const bool* where, const Acc<T>* factor, T* squares,
                        const Acc<T>* place, Acc<T> lr, Acc<T> decay, Acc<T> rest, Acc<T> epsilon) {
    look_up(place, lr, decay, rest, epsilon);
    typedef Acc<T> A;
    step([=](A dw, A& w, A& a) {
        a = decay * a + rest * (dw * dw);
        w -= lr * dw / (sqrt(a) + epsilon);
    }, n, w, dw, where, factor, squares);
}

// Adam on w, of which so much is kept.
template <typename T>
__global__ void adam(i64 n, T* w, const T* dw, const bool* where, const Acc<T>* factor, T* mean, T* squares,
                     const Acc<T>* place, Acc<T> kept, Acc<T> rate, Acc<T> b1, Acc<T> rest1, Acc<T> b2, Acc<T> rest2,
                     Acc<T> epsilon) {
    look_up(place, kept, rate, b1, rest1, b2, rest2, epsilon);
    typedef Acc<T> A;
    step([=](A dw, A& w, A& v, A& a) {
        v = b1 * v + rest1 * dw;
        a = b2 * a + rest2 * (dw * dw);
        w = kept * w - rate * v / (sqrt(a) + epsilon);
    }, n, w, dw, where, factor, mean, squares);
}

template <typename T>
__global__ void lion(i64 n, T* w, const T* dw, const bool* where, const Acc<T>* factor, T* mean,
                     const Acc<T>* place, Acc<T> kept, Acc<T> lr, Acc<T> b1, Acc<T> rest1, Acc<T> b2, Acc<T> rest2) {
    look_up(place, kept, lr, b1, rest1, b2, rest2);
    typedef Acc<T> A;
    step([=](A dw, A& w, A& v) {
        const A direction = b1 * v + rest1 * dw;
        v = b2 * v + rest2 * dw;
        w = kept * w - lr * (direction > 0 ? 1 : direction < 0 ? -1 : direction);  // 0 and no number stay
    }, n, w, dw, where, factor, mean);
}
