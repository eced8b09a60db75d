"""Memory that arrays free, kept for the arrays of the next training step.

The C library hands freed memory above a mark back to the system, which clears every page of it when the next step asks
for it again. For a net of convolutions that is a twentieth of a step.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

# From glibc's malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
MAPPED = 32 * 2**20  # bytes; arrays from there on are the system's own, always: glibc's own upper bound
USUAL = 2 * MAPPED  # the mark that glibc sets itself, once arrays of the size above have been freed
NEVER = 2**31 - 1

_lock = threading.Lock()
_depth = 0  # of `kept`


@contextmanager
def kept() -> Iterator[None]:
    """Within, freed memory is not handed back to the system.

    Afterwards it is, above the mark that glibc comes to by itself once large arrays have been freed; the process keeps
    that mark. Does nothing where the C library is not glibc, or where the user has set marks in the environment.
    """
    global _depth
    mallopt = _mallopt()
    if mallopt is None:
        yield
        return
    with _lock:
        _depth += 1
        mallopt(MMAP_THRESHOLD, MAPPED)
        mallopt(TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                mallopt(TRIM_THRESHOLD, USUAL)


def _begin_anew() -> None:
    """In a forked process: a thread that has stayed behind may hold the lock. What kept memory goes on keeping it."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


@cache
def _mallopt() -> Any:
    own = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"} & os.environ.keys()
    if own or not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "mallopt", None)
