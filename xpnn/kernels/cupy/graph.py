"""CUDA graphs: work whose launches a device has recorded, and does again at one launch."""

import contextlib
import math
import traceback
from collections.abc import Callable
from typing import Any

import cupy
import numpy as np

from xpnn.backend import CuPy, get
from xpnn.kernels import kernel
from xpnn.kernels.cupy import cublaslt, source
from xpnn.kernels.cupy.source import THREADS, Source
from xpnn.recording import recorded_by

FEW, PLACES = 32, 480  # numbers of 8 bytes in a step, at most: a launch takes 4 KB of arguments
COPIES = 160  # at one launch, each of two addresses and a size
WORD = 4  # bytes that a thread copies at a time
GRAPH = Source("graph.cu", [f"put<{FEW}>", f"put<{PLACES}>", f"overwrite<{COPIES}>"])


class Pool:
    """Memory that nobody else is given as long as it is not freed, even where memory runs short meanwhile."""

    def __init__(self) -> None:
        blocks: list[Any] = []  # a pool that runs short gives back what is free just now

        def block(size: int) -> Any:
            blocks.append(cupy.cuda.Memory(size))
            return cupy.cuda.MemoryPointer(blocks[-1], 0)

        self._blocks, self._pool = blocks, cupy.cuda.MemoryPool(block)
        self.malloc = self._pool.malloc
        CuPy.pools.add(self)

    def total_bytes(self) -> int:
        return sum(block.size for block in self._blocks)

    def free(self) -> None:
        """Give it back, once no array lies in it: CuPy's pool itself keeps what is free when it goes."""
        self._pool.free_all_blocks()
        self._blocks.clear()


@kernel("recording.record", "cupy")
class Graph:
    """Recorded work, done at each call on CuPy's current stream. All that it allocates lies in a pool of its own."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._graph: Any = None
        self._results: Any = None
        self._pool: Pool | None = None
        self._pool, self._stream = Pool(), cupy.cuda.Stream(non_blocking=True)
        get("cupy").free_memory()  # that of the work so far: the graph needs as much
        self._places = cupy.zeros(PLACES, dtype="uint64")
        self._numbers = np.zeros(PLACES, dtype="uint64")  # the same on the host
        self._computes: list[tuple[Callable[[], Any], np.ndarray]] = []
        self._used = 0
        try:
            with cupy.cuda.using_allocator(self._pool.malloc), self._stream:
                self._graph = self._captured(work)
                self._graph.upload()  # which may need memory, too
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # they hold arrays of the pool
            self.release()
            raise

    def _captured(self, work: Callable[[], Any]) -> Any:
        self._stream.begin_capture()
        try:
            with recorded_by(self):
                self._results = work()
        except BaseException:
            with contextlib.suppress(Exception):  # which says only that the recording came to nothing
                self._stream.end_capture()
            raise
        return self._stream.end_capture()

    def place(self, compute: Callable[[], Any], count: int | None, dtype: str) -> Any:
        size = -(-(count or 1) * np.dtype(dtype).itemsize // 8)
        taken = slice(self._used, self._used + size)
        if taken.stop > PLACES:
            raise RuntimeError(f"a graph has {PLACES} places for numbers that vary; received more")
        self._used = taken.stop
        part = 0 if count is None else slice(count)
        numbers = self._numbers[taken].view(dtype)[: count or 1]
        self._computes.append((compute, numbers))
        return self._places[taken].view(dtype)[part]

    def __call__(self) -> Any:
        for compute, numbers in self._computes:
            numbers[...] = compute()
        if self._used:
            n = FEW if self._used <= FEW else PLACES
            bits = self._numbers[:n].view([("numbers", "uint64", n)])  # one struct, which CuPy passes by value
            GRAPH.launch(f"put<{n}>", (1,), (self._used,), (self._places, bits))
        self._graph.launch()
        return self._results

    def release(self) -> None:
        """Give its memory back; it can be called no more."""
        self._graph = self._results = None
        if self._pool is not None:
            self._pool.free()

    def __del__(self) -> None:
        self.release()


@kernel("recording.overwrite", "cupy")
def overwrite(targets: tuple[Any, ...], sources: tuple[Any, ...]) -> tuple[Any, ...]:
    """Whole words between arrays of one dtype and without gaps; others are copied one by one."""
    copies = []
    for target, new in zip(targets, sources, strict=True):
        alike = target.shape == new.shape and target.dtype == new.dtype
        dense = target.flags.c_contiguous and new.flags.c_contiguous
        addresses = target.data.ptr, new.data.ptr
        if alike and dense and math.gcd(*addresses, target.nbytes) % WORD == 0:
            copies.append((*addresses, target.nbytes // WORD))
        else:
            target[...] = new
    for first in range(0, len(copies), COPIES):
        some = copies[first : first + COPIES]
        bits = np.zeros(1, [("copies", "uint64", (COPIES, 3))])
        bits["copies"][0, : len(some)] = some
        blocks = min(-(-max(words for _, _, words in some) // THREADS), source.BLOCKS)
        if blocks:
            GRAPH.launch(f"overwrite<{COPIES}>", (blocks, len(some)), (THREADS,), (bits,))
    return targets


@kernel("recording.obstacle", "cupy")
def obstacle() -> str | None:
    missing = cublaslt.obstacle()
    return f"products by cupy.matmul cannot be recorded; {missing}" if missing else None


def describe() -> str:
    """How training steps are launched, for people to read."""
    reason = obstacle()
    return "recorded as CUDA graphs" if reason is None else f"launched one by one; {reason}"
