"""CUDA graphs: work whose launches a device has recorded, and does again at one launch."""

import contextlib
from collections.abc import Callable
from typing import Any

import cupy
import numpy as np

from xpnn.backend import CuPy, get
from xpnn.kernels import kernel
from xpnn.kernels.cupy import cublaslt
from xpnn.kernels.cupy.source import Source
from xpnn.recording import recorded_by

GRAPH = Source("graph.cu", ["put"])

PLACES = 512  # of 8 bytes, at most
AT_ONCE = 8  # that a launch of `put` fills


@kernel("recording.record", "cupy")
class Graph:
    """Recorded work, done at each call on CuPy's current stream.

    All that it allocates lies in a pool of its own, so that nobody else is given the memory which its launches use.

    Attributes
    ----------
    pool : cupy.cuda.MemoryPool
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        get("cupy").free_memory()  # that of the work so far: the graph needs as much
        self.pool = cupy.cuda.MemoryPool()
        self._places = cupy.zeros(PLACES, dtype="uint64")
        self._numbers = np.zeros(PLACES, dtype="uint64")  # the same on the host
        self._computes: list[tuple[Callable[[], Any], np.ndarray]] = []
        self._used = 0
        with cupy.cuda.using_allocator(self.pool.malloc), cupy.cuda.Stream(non_blocking=True) as stream:
            stream.begin_capture()
            try:
                with recorded_by(self):
                    self._results = work()
            except BaseException:
                with contextlib.suppress(Exception):  # which says only that the recording came to nothing
                    stream.end_capture()
                raise
            self._graph = stream.end_capture()
        CuPy.graphs.add(self)

    def place(self, compute: Callable[[], Any], count: int, dtype: str) -> Any:
        size = -(-count * np.dtype(dtype).itemsize // 8)
        taken = slice(self._used, self._used + size)
        if taken.stop > PLACES:
            raise RuntimeError(f"a graph has {PLACES} places for numbers that vary; received more")
        self._used = taken.stop
        self._computes.append((compute, self._numbers[taken].view(dtype)[:count]))
        return self._places[taken].view(dtype)[:count]

    def __call__(self) -> Any:
        for compute, numbers in self._computes:
            numbers[...] = compute()
        for start in range(0, self._used, AT_ONCE):
            some = slice(start, start + AT_ONCE)
            args = self._places[some], min(AT_ONCE, self._used - start), *self._numbers[some]
            GRAPH.launch("put", (1,), (AT_ONCE,), args)
        self._graph.launch()
        return self._results


def describe() -> str:
    """How training steps are launched, for people to read."""
    if cublaslt.library() is None:
        return "launched one by one, as products by cupy.matmul cannot be recorded; pip install nvmath-python"
    return "recorded as CUDA graphs"
