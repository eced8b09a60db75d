// ReLU and GELU of a number, with their derivatives.

#include "common.cuh"

// x Phi(x) and its derivative. Beyond FAR the factor Phi is 0 or 1 to the last bit: see xpnn.special.
template <bool by_tanh, typename A>
__device__ __forceinline__ void gelu(A x, A& y, A& slope) {
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
}

enum Activation { none, relu, gelu_none, gelu_tanh };  // GELU by its `approximate`

// The activation of x; its derivative, for a ReLU also from its output in place of x.
template <Activation activation, typename A>
__device__ __forceinline__ A activated(A x) {
    if (activation == none) return x;
    if (activation == relu) return x < 0 ? 0 : x;  // what is no number stays
    A y, slope;
    gelu<activation == gelu_tanh>(x, y, slope);
    return y;
}
template <Activation activation, typename A>
__device__ __forceinline__ A passed(A dout, A x) {
    if (activation == none) return dout;
    if (activation == relu) return x > 0 ? dout : 0;
    A y, slope;
    gelu<activation == gelu_tanh>(x, y, slope);
    return dout * slope;
}
