"""Random numbers on NumPy."""

import numpy as np

from xpnn.kernels import kernel
from xpnn.kernels.numpy.blocks import WORTH_A_THREAD
from xpnn.kernels.numpy.loops import loops
from xpnn.threads import share


@kernel("random.dropout_mask", "numpy")
def dropout_mask(seed: int, stream: int, counter: int, n: int, p: float, dtype: str) -> np.ndarray:
    mask = np.empty(n, dtype)
    dropped, kept = np.uint64(min(round(p * 2**32), 2**32 - 1)), mask.dtype.type(1.0 / (1.0 - p))

    def fill(part: slice) -> None:
        carry, start = divmod(counter + part.start, 2**64)
        words = np.uint64(seed), np.uint64(stream), np.uint64(start), np.uint64(carry)
        loops.dropout_mask(*words, dropped, kept, mask[8 * part.start : 8 * part.stop])

    share(fill, -(-n // 8), WORTH_A_THREAD // 8, along=True)
    return mask
