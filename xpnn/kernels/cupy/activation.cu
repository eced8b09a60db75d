// ReLU and GELU.

#include "common.cuh"

template <typename T>
__global__ void positive_part(i64 n, const T* x, T* y) {
    each(n, [](Acc<T> x, Acc<T>& y) { y = x < 0 ? 0 : x; }, in(x), out(y));  // what is no number stays
}

template <typename T>
__global__ void where_positive(i64 n, const T* dout, const T* y, T* dx) {
    each(n, [](Acc<T> dout, Acc<T> y, Acc<T>& dx) { dx = y > 0 ? dout : 0; }, in(dout), in(y), out(dx));
}

// x Phi(x) and its derivative. Beyond FAR the factor Phi is 0 or 1 to the last bit: see xpnn.special.
template <typename T, bool by_tanh>
__global__ void gelu_and_slope(i64 n, const T* x, T* y, T* slope) {
    typedef Acc<T> A;
    each(n, [](A x, A& y, A& slope) {
        const A FAR = 40, ROOT = 0.79788456080286535588;  // sqrt(2 / pi)
        x = x < -FAR ? -FAR : x;
        const A near = x > FAR ? FAR : x, square = near * near;
        A phi, density;
        if (by_tanh) {
            // (1 + tanh(z)) / 2 is the logistic function of 2 z, in which no digits of a small number are lost.
            const A cubic = ROOT * A(0.044715), z = near * (ROOT + cubic * square), e = exp(-2 * fabs(z));
            phi = (z < 0 ? e : 1) / (1 + e);
            density = e / ((1 + e) * (1 + e)) * (2 * ROOT + 6 * cubic * square);
        } else {
            phi = A(0.5) + A(0.5) * erf(near * A(0.70710678118654752440));
            density = exp(A(-0.5) * square) * (A(0.5) * ROOT);
        }
        y = x * phi;
        slope = phi + near * density;
    }, in(x), out(y), out(slope));
}
