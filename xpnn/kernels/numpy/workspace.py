"""Memory that a kernel fills, reads and is done with: kept from one call to the next, since new pages are slow."""

import math
import threading

import numpy as np

LIMIT = 32 * 2**20  # bytes; more than that is not kept

_kept = threading.local()


def workspace(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an array of any content, the thread's own until its next call of the same name."""
    size = math.prod(shape) * dtype.itemsize
    memory = vars(_kept).get(name)
    if memory is None or len(memory) < size:
        memory = np.empty(size, dtype=np.uint8)
        if size <= LIMIT:
            vars(_kept)[name] = memory
    return memory[:size].view(dtype).reshape(shape)


def forget() -> None:
    """Free what is kept for this thread."""
    vars(_kept).clear()
