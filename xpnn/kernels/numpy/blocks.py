"""Arrays a block at a time, so that what lies between two steps stays in a core's cache."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from xpnn.threads import share

BLOCK = 2**18  # numbers: smaller ones fit a nearer cache, but threads then wait for Python between two steps
WORTH_A_THREAD = 2**16  # numbers: handing over work takes some ten microseconds


def elementwise(fill: Callable[..., None], inputs: Sequence[np.ndarray], outputs: int) -> tuple[Any, ...]:
    """Return new arrays like the first input, in memory too, which ``fill(*inputs, *outputs)`` fills block by block."""
    first = inputs[0] if _flat(inputs[0]) is not None else inputs[0].copy(order="K")
    others = (x if x.strides == first.strides else _laid_out(x, first) for x in inputs[1:])
    out = tuple(np.empty_like(first, subok=False) for _ in range(outputs))
    flat: list[Any] = [_flat(array) for array in (first, *others, *out)]

    if first.size <= WORTH_A_THREAD:
        fill(*flat)
        return out

    def fill_blocks(part: slice) -> None:
        for block in split(part, BLOCK):
            fill(*(array[block] for array in flat))

    share(fill_blocks, first.size, WORTH_A_THREAD, along=True)
    return out


def split(part: slice, length: int) -> Iterator[slice]:
    """Yield the part in slices of that length, or of one; the last may be shorter."""
    length = max(length, 1)
    for start in range(part.start, part.stop, length):
        yield slice(start, min(start + length, part.stop))


def evenly(part: slice, length: int) -> Iterator[slice]:
    """Yield the part in slices of at most that length, or of one; none is longer than the first, which makes room."""
    n = part.stop - part.start
    count = max(min(-(-n // max(length, 1)), n), 1)
    for i in range(count if n else 0):
        yield slice(part.start - (-n * i // count), part.start - (-n * (i + 1) // count))


def _laid_out(x: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The same numbers, in memory as those of another array."""
    copy = np.empty_like(like, dtype=x.dtype, subok=False)

    def fill(part: slice) -> None:
        copy[part] = x[part]

    share(fill, len(x), WORTH_A_THREAD // max(x[:1].size, 1), along=True)
    return copy


def _flat(x: np.ndarray) -> np.ndarray | None:
    """A view of all numbers in the order of memory; None where there are gaps between them."""
    if x.flags.c_contiguous:
        return x.reshape(-1)
    packed = x.transpose(sorted(range(x.ndim), key=lambda axis: -x.strides[axis]))
    return packed.reshape(-1) if packed.flags.c_contiguous else None
