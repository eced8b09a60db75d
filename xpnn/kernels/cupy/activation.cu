// ReLU and GELU.

#include "activation.cuh"

template <typename T>
__global__ void positive_part(i64 n, const T* x, T* y) {
    each(n, [](Acc<T> x, Acc<T>& y) { y = activated<relu>(x); }, in(x), out(y));
}

template <typename T>
__global__ void where_positive(i64 n, const T* dout, const T* y, T* dx) {
    each(n, [](Acc<T> dout, Acc<T> y, Acc<T>& dx) { dx = passed<relu>(dout, y); }, in(dout), in(y), out(dx));
}

template <typename T, bool by_tanh>
__global__ void gelu_and_slope(i64 n, const T* x, T* y, T* slope) {
    typedef Acc<T> A;
    each(n, [](A x, A& y, A& slope) { gelu<by_tanh>(x, y, slope); }, in(x), out(y), out(slope));
}
