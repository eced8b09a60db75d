"""Update rules on the device, each in one launch."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from xpnn.kernels import updates
from xpnn.kernels.cupy.source import ACCUMULATION, C_TYPES, Source, of_each_type

RULES = Source("rules.cu", of_each_type(*(f"{update.loop}<T>" for update in updates.UPDATES.values())))

_SCALARS = {"float": np.float32, "double": np.float64}


def run(
    loop: str, w: Any, dw: Any, state: Sequence[Any], numbers: Sequence[float], where: Any | None, factor: Any | None
) -> None:
    char = w.dtype.char
    dw = dw if dw.dtype == w.dtype else dw.astype(w.dtype)
    scalar = _SCALARS[ACCUMULATION[char]]
    RULES.each(f"{loop}<{C_TYPES[char]}>", w.size, w, dw, where, factor, *state, *map(scalar, numbers))


updates.register("cupy", run)
