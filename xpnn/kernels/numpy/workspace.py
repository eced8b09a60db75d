"""Memory that a kernel fills, reads and is done with: kept from one call to the next, since new pages are slow."""

import math
import threading
from weakref import WeakValueDictionary

import numpy as np

LIMIT = 16 * 2**20  # bytes; more than that is not kept


class _Memory(dict[str, np.ndarray]):
    """By name, of one thread."""


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.memory = _Memory()
        _of_all_threads[threading.get_ident()] = self.memory


_of_all_threads: WeakValueDictionary[int, _Memory] = WeakValueDictionary()
_of_thread = _OfThread()


def workspace(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an array of any content, the thread's own until its next call of the same name."""
    kept, size = _of_thread.memory, math.prod(shape) * dtype.itemsize
    memory = kept.get(name)
    if memory is None or len(memory) < size:
        memory = np.empty(size, dtype=np.uint8)
        if size <= LIMIT:
            kept[name] = memory
    return memory[:size].view(dtype).reshape(shape)


def forget() -> None:
    """Free what is kept for all threads."""
    for memory in list(_of_all_threads.values()):
        memory.clear()
