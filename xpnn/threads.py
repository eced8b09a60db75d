"""Work on NumPy arrays shared out among the processor's cores.

NumPy's matrix products run on several cores by themselves, on the threads of its BLAS. Where arrays are copied,
multiplied and added to in turns it is faster to give each core a part of its own: then all steps are shared, and no
core reads what another has just written. BLAS keeps to one thread meanwhile, and stays so for as long as such work goes
on: once used, its threads look out for more work for a tenth of a second, and keep their cores busy with that.
"""

import contextvars
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

Result = TypeVar("Result")


class _State:
    """Of this process: a forked one begins anew."""

    def __init__(self) -> None:
        self.ours = threading.RLock()  # held by the one thread that may share out work
        self.depth = 0  # of `steady`
        self.is_busy = False
        self.held: list[tuple[Any, int]] = []  # BLAS libraries that keep to one thread, and how many they had
        self.pool: ThreadPoolExecutor | None = None


_state = _State()


def share(work: Callable[[slice], Result], n: int, least: int = 1, along: bool = False) -> list[Result]:
    """Return ``work(part)`` for parts of ``range(n)``, in order; each part is done by a thread of its own.

    There are as many threads as BLAS has, so ``OMP_NUM_THREADS`` holds for both. Work within work, or from two threads
    at a time, is not shared out. Sums over all parts are rounded otherwise where the parts are others.

    Parameters
    ----------
    work : callable
        Takes a slice. Its parts must not depend on one another.
    n : int
        How many examples, rows or numbers there are.
    least : int
        How many are worth a thread.
    along : bool
        Share out only where other work has made BLAS keep to one thread: for what is too little to do so itself.
    """
    if along and not is_held():
        return [work(slice(0, n))]
    with steady() as free:
        parts = min(_thread_count(), n // max(least, 1)) if free else 1
        if parts <= 1:
            return [work(slice(0, n))]
        _keep_blas_to_one_thread()
        first, *rest = (slice(n * i // parts, n * (i + 1) // parts) for i in range(parts))
        others: list[Future[Result]] = []
        _state.is_busy = True
        try:
            # np.errstate is part of the context.
            others.extend(_pool().submit(contextvars.copy_context().run, work, part) for part in rest)
            result = work(first)
        finally:
            try:
                _wait_for(others)  # they write into arrays of the caller's
            finally:
                _state.is_busy = False
        return [result, *(other.result() for other in others)]


@contextmanager
def steady() -> Iterator[bool]:
    """From the first work that is shared out in here until the end, BLAS keeps to one thread.

    Yields whether this thread may share out work.
    """
    state = _state
    if not state.ours.acquire(blocking=False):
        yield False
        return
    state.depth += 1
    try:
        yield not state.is_busy
    finally:
        state.depth -= 1
        if state.depth == 0:
            state.is_busy = False  # where Ctrl-C came before `share` could say so
            while state.held:
                library, count = state.held.pop()
                library.set_num_threads(count)
        state.ours.release()


def _wait_for(others: list[Future[Any]]) -> None:
    """Wait to the end, also where Ctrl-C comes meanwhile."""
    try:
        wait(others)
    except KeyboardInterrupt:
        _wait_for(others)
        raise


def is_held() -> bool:
    """Whether BLAS keeps to one thread."""
    return bool(_state.held)


def _keep_blas_to_one_thread() -> None:
    if not _state.held:
        for library in _blas():
            _state.held.append((library, library.num_threads))
            library.set_num_threads(1)


def _thread_count() -> int:
    return max([count for _, count in _state.held] or [library.num_threads for library in _blas()], default=1)


@cache
def _blas() -> list[Any]:
    """The BLAS libraries of this process whose threads can be counted and set."""
    import numpy as np  # noqa: F401 - it brings its BLAS
    from threadpoolctl import ThreadpoolController  # takes some milliseconds

    libraries = ThreadpoolController().select(user_api="blas").lib_controllers
    return [library for library in libraries if library.num_threads is not None]


def _pool() -> ThreadPoolExecutor:
    if _state.pool is None:
        _state.pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="xpnn")
    return _state.pool


def _begin_anew() -> None:
    """In a forked process: its threads, and those that held locks, have stayed behind.

    BLAS has its threads back where the one that forked had taken them. Where another had, or work is under way, it is
    left as it is: a thread that has stayed behind may have been within it.
    """
    global _state
    before, _state = _state, _State()
    if before.held and not before.is_busy and before.ours.acquire(blocking=False):
        for library, count in before.held:
            library.set_num_threads(count)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
