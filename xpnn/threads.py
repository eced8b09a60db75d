"""Work on NumPy arrays shared out among the processor's cores.

NumPy's matrix products run on several cores by themselves, on the threads of its BLAS. Where arrays are copied,
multiplied and added to in turns it is faster to give each core a part of its own: then all steps are shared, and no
core reads what another has just written. BLAS keeps to one thread meanwhile, and stays so for as long as such work goes
on: once used, its threads look out for more work for a tenth of a second, and keep their cores busy with that.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

Result = TypeVar("Result")

_ours = threading.RLock()  # held by the one thread that may share out work
_depth = 0
_held: list[tuple[Any, int]] = []  # BLAS libraries that keep to one thread, and how many they had


def share(work: Callable[[slice], Result], n: int, least: int = 1) -> list[Result]:
    """Return ``work(part)`` for parts of ``range(n)``, in order; each part is done by a thread of its own.

    There are as many threads as BLAS has, so ``OMP_NUM_THREADS`` holds for both. Work within work, or from two threads
    at a time, is not shared out.

    Parameters
    ----------
    work : callable
        Takes a slice. Its parts must not depend on one another.
    n : int
        How many examples, rows or numbers there are.
    least : int
        How many are worth a thread.
    """
    with steady() as free:
        parts = min(_blas_threads(), n // max(least, 1)) if free else 1
        if parts <= 1:
            return [work(slice(0, n))]
        _keep_blas_to_one_thread()
        first, *rest = (slice(n * i // parts, n * (i + 1) // parts) for i in range(parts))
        others = [_pool().submit(work, part) for part in rest]
        try:
            result = work(first)
        finally:
            wait(others)  # they write into arrays of the caller's
        return [result, *(other.result() for other in others)]


@contextmanager
def steady() -> Iterator[bool]:
    """From the first work that is shared out in here until the end, BLAS keeps to one thread.

    Yields whether this thread may share out work.
    """
    global _depth
    if not _ours.acquire(blocking=False):
        yield False
        return
    _depth += 1
    try:
        yield True
    finally:
        _depth -= 1
        while _depth == 0 and _held:
            library, count = _held.pop()
            library.set_num_threads(count)
        _ours.release()


def _keep_blas_to_one_thread() -> None:
    if not _held:
        for library in _blas():
            _held.append((library, library.num_threads))
            library.set_num_threads(1)


def _blas_threads() -> int:
    return max([count for _, count in _held] or [library.num_threads for library in _blas()], default=1)


@cache
def _blas() -> list[Any]:
    """The BLAS libraries of this process, as far as their threads can be counted and set."""
    from threadpoolctl import ThreadpoolController  # takes some milliseconds

    return ThreadpoolController().select(user_api="blas").lib_controllers


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="xpnn")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
