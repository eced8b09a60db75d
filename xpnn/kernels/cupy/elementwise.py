"""Work on numbers one by one by CuPy's own kernels, whose results lie in C order whatever their arguments do."""

from collections.abc import Callable
from typing import Any

from xpnn.kernels import kernel


@kernel("layers.elementwise.applied", "cupy")
def applied(work: Callable[..., Any], *arrays: Any) -> Any:
    """As the first array lies in memory."""
    first = arrays[0]
    if first.flags.c_contiguous:
        return work(*arrays)
    order = sorted(range(first.ndim), key=lambda axis: -first.strides[axis])
    back = [order.index(axis) for axis in range(first.ndim)]
    results = work(*(x.transpose(order) for x in arrays))
    if isinstance(results, tuple):
        return tuple(result.transpose(back) for result in results)
    return results.transpose(back)
