"""Update rules on NumPy, written into place."""

from collections.abc import Sequence

import numpy as np

from xpnn.kernels import updates
from xpnn.kernels.numpy.loops import loops


def run(
    loop: str,
    w: np.ndarray,
    dw: np.ndarray,
    state: Sequence[np.ndarray],
    numbers: Sequence[float],
    where: np.ndarray | None,
    factor: np.ndarray | None,
) -> None:
    if where is None or where:
        dw = dw if factor is None else (dw * factor).astype(w.dtype, copy=False)
        # The numbers are of w's dtype, so that compiled loops compute in it.
        getattr(loops, loop)(w, dw, *state, *map(w.dtype.type, numbers))


updates.register("numpy", run)
