"""Update rules on NumPy, written into place."""

from collections.abc import Sequence

import numpy as np

from xpnn.kernels import updates
from xpnn.kernels.numpy.loops import loops
from xpnn.kernels.updates import Segment


def run(loop: str, segments: Sequence[Segment], where: np.ndarray | None, factor: np.ndarray | None) -> None:
    if where is not None and not where:
        return
    for w, dw, state, numbers in segments:
        scaled = dw if factor is None else (dw * factor).astype(w.dtype, copy=False)
        # The numbers are of w's dtype, so that compiled loops compute in it.
        getattr(loops, loop)(w, scaled, *state, *map(w.dtype.type, numbers))


updates.register("numpy", run)
