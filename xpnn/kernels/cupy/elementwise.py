"""Work by CuPy's own kernels, whose results lie in C order whatever their arguments do: images are turned for it."""

from collections.abc import Callable
from typing import Any

import cupy

from xpnn.kernels import kernel


@kernel("layers.elementwise.applied", "cupy")
def applied(work: Callable[..., Any], *arrays: Any) -> Any:
    """As the first array lies in memory."""
    first = arrays[0]
    if first.flags.c_contiguous:
        return work(*arrays)
    order = sorted(range(first.ndim), key=lambda axis: -abs(first.strides[axis]))
    back = [order.index(axis) for axis in range(first.ndim)]
    results = work(*(x.transpose(order) for x in arrays))
    if isinstance(results, tuple):
        return tuple(result.transpose(back) for result in results)
    return results.transpose(back)


@kernel("layers.branches.joined", "cupy")
def joined(*outs: Any) -> Any:
    """With the channels last, where the first has them there."""
    if outs[0].ndim != 4 or outs[0].flags.c_contiguous:
        return cupy.concatenate(outs, axis=1)
    return cupy.concatenate([x.transpose(0, 2, 3, 1) for x in outs], axis=3).transpose(0, 3, 1, 2)
