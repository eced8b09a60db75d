"""What to do when memory is short: say which batch would fit."""

import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from xpnn.backend import Backend


def shortage_in(work: Callable[[], Any]) -> str:
    """Do the work; return in words why memory was too short for it, or an empty string."""
    try:
        work()
    except MemoryError as error:  # CuPy's is one, too
        traceback.clear_frames(error.__traceback__)  # they hold the arrays that there was room for
        return " ".join(str(error).split()) or "out of memory"
    return ""


def largest_that_fits(work: Callable[[int], Any], n: int, backend: Backend) -> int:
    """Return the largest of n / 2, n / 4, ..., 1 examples that there is memory for to do ``work(n)``; 0 for none."""
    fits = n // 2
    while fits:
        backend.free_memory()
        if not shortage_in(partial(work, fits)):
            return fits
        fits //= 2
    return 0
