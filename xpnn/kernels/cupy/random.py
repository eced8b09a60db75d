"""Random bits on the device, the same as on the host."""

import math
from typing import Any

import cupy
import numpy as np

from xpnn.kernels import kernel
from xpnn.kernels.cupy.source import THREADS, Source, given

RANDOM = Source("random.cu", ["philox"])


@kernel("random.philox", "cupy")
def philox(seed: int, stream: int, counter: Any, n: int) -> Any:
    out = cupy.empty(n, dtype="uint64")
    if n:
        args = (np.uint64(seed), np.uint64(stream), *given(counter, np.uint64), np.uint64(n), out)
        RANDOM.launch("philox", (math.ceil(n / (4 * THREADS)),), (THREADS,), args)
    return out
