"""Random bits on the device, the same as on the host."""

import math
from typing import Any

import cupy
import numpy as np

from xpnn.kernels import kernel
from xpnn.kernels.cupy.source import THREADS, Source, given

RANDOM = Source("random.cu", ["philox", "integers"])


@kernel("random.philox", "cupy")
def philox(seed: int, stream: int, counter: Any, n: int) -> Any:
    return _draw("philox", seed, stream, counter, cupy.empty(n, dtype="uint64"))


@kernel("random.integers", "cupy")
def integers(seed: int, stream: int, counter: Any, n: int, low: int, high: int) -> Any:
    out = cupy.empty(n, dtype="int64")
    return _draw("integers", seed, stream, counter, out, np.int64(low), np.float64(high - low))


def _draw(name: str, seed: int, stream: int, counter: Any, out: Any, *bounds: Any) -> Any:
    """A thread draws a block of four."""
    if out.size:
        state = np.uint64(seed), np.uint64(stream), *given(counter, np.uint64)
        grid = (math.ceil(out.size / (4 * THREADS)),)
        RANDOM.launch(name, grid, (THREADS,), (*state, np.uint64(out.size), *bounds, out))
    return out
