"""Random numbers on the device, the same as on the host; normals to rounding."""

import math
from typing import Any

import cupy
import numpy as np

from xpnn.kernels import kernel
from xpnn.kernels.cupy.source import C_TYPES, THREADS, Source, given, of_each_type

RANDOM = Source("random.cu", ["philox", "integers", *of_each_type("normals<T>")])


@kernel("random.philox", "cupy")
def philox(seed: int, stream: int, counter: Any, n: int) -> Any:
    return _draw("philox", seed, stream, counter, cupy.empty(n, dtype="uint64"))


@kernel("random.integers", "cupy")
def integers(seed: int, stream: int, counter: Any, n: int, low: int, high: int) -> Any:
    out = cupy.empty(n, dtype="int64")
    return _draw("integers", seed, stream, counter, out, np.int64(low), np.float64(high - low))


@kernel("random.normals", "cupy")
def normals(seed: int, stream: int, counter: Any, n: int, mean: float, std: float, dtype: str) -> Any:
    out = cupy.empty(n, dtype)
    name = f"normals<{C_TYPES[out.dtype.char]}>"
    return _draw(name, seed, stream, counter, out, np.float64(mean), np.float64(std), parts=2)


def _draw(name: str, seed: int, stream: int, counter: Any, out: Any, *numbers: Any, parts: int = 1) -> Any:
    """A thread draws a block of four, for the first of so many equal parts of the draw."""
    if out.size:
        state = np.uint64(seed), np.uint64(stream), *given(counter, np.uint64)
        grid = (math.ceil(out.size / (4 * parts * THREADS)),)
        RANDOM.launch(name, grid, (THREADS,), (*state, np.uint64(out.size), *numbers, out))
    return out
