"""Matrix products."""

from xpnn.backend import Array, library_of, namespace
from xpnn.kernels import fast_path


def product(a: Array, b: Array, out: Array | None = None) -> Array:
    """Return a b, of matrices or of two stacks of them; in `out`, memory of its own, where it is given."""
    return (fast_path("products.matmul", library_of(a)) or matmul)(a, b, out)


def matmul(a: Array, b: Array, out: Array | None = None) -> Array:
    """The definition of `product`."""
    result = namespace(a).matmul(a, b)
    if out is None:
        return result
    out[...] = result
    return out
