"""Update rules on the device, each in one launch."""

from collections.abc import Sequence
from typing import Any

from xpnn.kernels import updates
from xpnn.kernels.cupy.source import C_TYPES, Source, accumulation, given, in_accumulation, of_each_type

RULES = Source("rules.cu", of_each_type(*(f"{update.loop}<T>" for update in updates.UPDATES.values())))


def run(loop: str, w: Any, dw: Any, state: Sequence[Any], numbers: Any, where: Any | None, factor: Any | None) -> None:
    dw, factor = dw.astype(w.dtype, copy=False), in_accumulation(factor, w)
    args = w, dw, where, factor, *state, *given(numbers, accumulation(w))
    RULES.each(f"{loop}<{C_TYPES[w.dtype.char]}>", w.size, *args)


updates.register("cupy", run)
