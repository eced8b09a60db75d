"""Update rules on the device, each in one launch."""

from collections.abc import Sequence
from typing import Any

from xpnn.kernels import updates
from xpnn.kernels.cupy.source import C_TYPES, Source, accumulation, given, of_each_type

RULES = Source("rules.cu", of_each_type(*(f"{update.loop}<T>" for update in updates.UPDATES.values())))


def run(loop: str, w: Any, dw: Any, state: Sequence[Any], numbers: Any, where: Any | None, factor: Any | None) -> None:
    dw = dw if dw.dtype == w.dtype else dw.astype(w.dtype)
    args = w, dw, where, factor, *state, *given(numbers, accumulation(w))
    RULES.each(f"{loop}<{C_TYPES[w.dtype.char]}>", w.size, *args)


updates.register("cupy", run)
