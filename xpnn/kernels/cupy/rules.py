"""Update rules on the device: all groups of parameters that share a rule in one launch."""

from collections.abc import Sequence
from typing import Any

import cupy
import numpy as np

from xpnn.kernels import updates
from xpnn.kernels.cupy import source
from xpnn.kernels.cupy.source import C_TYPES, THREADS, Source, accumulation, in_accumulation, of_each_type
from xpnn.kernels.updates import Segment

SEGMENTS, GROUPS = 72, 8  # at one launch, which takes 4 KB of arguments
STATES = max(len(update.state) for update in updates.UPDATES.values())
NUMBERS = max(update.size for update in updates.UPDATES.values())
RULES = Source("rules.cu", of_each_type(*(f"{update.loop}<T>" for update in updates.UPDATES.values())))

# As in rules.cu.
SEGMENT = np.dtype([("w", "u8"), ("dw", "u8"), ("state", "u8", (STATES,)), ("n", "i8"), ("group", "i8")])
STEPS = {
    number: np.dtype(
        [
            ("segments", SEGMENT, (SEGMENTS,)),
            ("groups", np.dtype([("place", "u8"), ("numbers", number, (NUMBERS,))], align=True), (GROUPS,)),
        ]
    )
    for number in (np.float32, np.float64)
}


def run(loop: str, segments: Sequence[Segment], where: Any | None, factor: Any | None) -> None:
    some: list[Segment] = []
    groups: set[int] = set()  # of those, by their numbers
    for segment in segments:
        if len(some) == SEGMENTS or len(groups | {id(segment.numbers)}) > GROUPS:
            _launch(loop, some, where, factor)
            some, groups = [], set()
        some.append(segment)
        groups.add(id(segment.numbers))
    _launch(loop, some, where, factor)


def _launch(loop: str, segments: Sequence[Segment], where: Any | None, factor: Any | None) -> None:
    first = segments[0].w
    step = np.zeros(1, STEPS[accumulation(first)])
    rows: list[tuple] = []
    groups: dict[int, int] = {}  # the number of a group, by its numbers
    grads = [cupy.ascontiguousarray(segment.dw, dtype=first.dtype) for segment in segments]
    for (w, _, state, numbers), dw in zip(segments, grads, strict=True):
        group = groups.setdefault(id(numbers), len(groups))
        states = [array.data.ptr for array in state] + [0] * (STATES - len(state))
        rows.append((w.data.ptr, dw.data.ptr, states, w.size, group))
        if isinstance(numbers, cupy.ndarray):
            step["groups"]["place"][0, group] = numbers.data.ptr
        else:
            step["groups"]["numbers"][0, group, : len(numbers)] = numbers
    step["segments"][0, : len(rows)] = rows
    packs = -(-max(segment.w.nbytes for segment in segments) // 16)  # of 16 bytes, which a thread takes at a time
    blocks = min(-(-packs // THREADS), source.BLOCKS)
    if blocks:
        args = step, where, in_accumulation(factor, first)
        RULES.launch(f"{loop}<{C_TYPES[first.dtype.char]}>", (blocks, len(segments)), (THREADS,), args)


updates.register("cupy", run)
