"""Matrix products."""

from xpnn.backend import Array, library_of, namespace, written
from xpnn.kernels import fast_path


def product(a: Array, b: Array, out: Array | None = None) -> Array:
    """Return a b, of matrices or of two stacks of them; in `out`, memory of its own, where it is given."""
    return (fast_path("products.matmul", library_of(a)) or matmul)(a, b, out)


def product_bias(a: Array, b: Array, bias: Array) -> Array:
    """Return a b + bias, which is added to every row of the matrix."""
    return (fast_path("products.matmul_bias", library_of(a)) or matmul_bias)(a, b, bias)


def product_sum(a: Array, b: Array, c: Array, alpha: float = 1.0, beta: float = 1.0) -> Array:
    """Return alpha a b + beta c, of matrices."""
    return (fast_path("products.gemm", library_of(a)) or gemm)(a, b, c, alpha, beta)


def matmul(a: Array, b: Array, out: Array | None = None) -> Array:
    """The definition of `product`."""
    return written(namespace(a).matmul(a, b), out)


def matmul_bias(a: Array, b: Array, bias: Array) -> Array:
    """The definition of `product_bias`."""
    out = product(a, b)
    out += bias
    return out


def gemm(a: Array, b: Array, c: Array, alpha: float, beta: float) -> Array:
    """The definition of `product_sum`; the name is BLAS's."""
    return beta * c + (product(a, b) if alpha == 1 else alpha * product(a, b))
