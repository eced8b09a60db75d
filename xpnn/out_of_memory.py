"""What to do where memory is short: the work in smaller parts, or one line that says what would fit."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from xpnn.backend import Backend
from xpnn.errors import OutOfMemory


def shortage_in(work: Callable[[], Any]) -> str:
    """Do the work; return in words why memory was too short for it, or an empty string."""
    try:
        work()
    except MemoryError as error:  # CuPy's is one, too
        return _released(error)
    return ""


@contextmanager
def memory_for(message: str) -> Iterator[None]:
    """Within, a shortage of memory becomes an `OutOfMemory` with that message, and why it was too short."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemory(f"{message} ({_released(error)})") from None


def _released(error: MemoryError) -> str:
    """Let go of what the failed work held; return the error in words."""
    traceback.clear_frames(error.__traceback__)  # they hold the arrays that there was room for
    return " ".join(str(error).split()) or "out of memory"


def largest_that_fits(work: Callable[[int], Any], n: int, backend: Backend) -> int:
    """Return the largest m of n / 2, n / 4, ..., 1 for which there is memory to do ``work(m)``; 0 for none."""
    fits = n // 2
    while fits:
        backend.free_memory()
        if not shortage_in(partial(work, fits)):
            return fits
        fits //= 2
    return 0


def in_parts(work: Callable[[int, int], Any], n: int, size: int, backend: Backend) -> tuple[list[Any], int]:
    """Do ``work(start, stop)`` for n examples, `size` at a time; for half of them where memory is short, and so on.

    Returns
    -------
    results : list
        Of each part; for n = 0 of one that is empty.
    size : int
        How many examples at a time there was memory for. A shortage in a last, smaller part says nothing of it.

    Raises
    ------
    OutOfMemory
        Where it is too short for a single one.
    """
    results: list[Any] = []
    start, fits = 0, size

    def do(start: int, stop: int) -> None:
        results.append(work(start, stop))

    while start < n or not results:
        stop = min(start + size, n)
        shortage = shortage_in(partial(do, start, stop))
        if not shortage:
            start = stop
        elif stop - start > 1:
            is_full = stop - start == min(size, n)
            size = (stop - start) // 2
            fits = size if is_full else fits
            backend.free_memory()
        else:
            raise OutOfMemory(f"model: expected memory for the scores of one example; received too little ({shortage})")
    return results, fits
