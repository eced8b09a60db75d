"""Matrix products."""

from xpnn.backend import Array, library_of, namespace
from xpnn.kernels import fast_path


def product(a: Array, b: Array) -> Array:
    """Return a b: of matrices, or of two stacks of them."""
    return (fast_path("products.matmul", library_of(a)) or matmul)(a, b)


def matmul(a: Array, b: Array) -> Array:
    """The definition of `product`."""
    return namespace(a).matmul(a, b)
