"""Steps whose launches a device records once and then replays, as a CUDA graph, in place of launching them anew.

A recorded launch keeps its arguments: addresses, sizes and numbers. What the host computes anew for each step, such as
a learning rate or how far a random generator has counted, therefore goes through `varying`: a number as usual, but
while a step is recorded a place on the device, into which each replay puts the number of its step.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from xpnn.backend import Array, Backend


class Recording(Protocol):
    """What is recorded now."""

    def place(self, compute: Callable[[], Any], count: int | None, dtype: str) -> Array:
        """Return an array (count,), or () for None, that holds what `compute` returns, called before each replay."""


class _Current(threading.local):
    recording: Recording | None = None


_current = _Current()


def varying(compute: Callable[[], Any], count: int | None = None, dtype: str = "float32") -> Any:
    """Return what the host computes anew for each step: ``compute()``, or the place of it while a step is recorded.

    Parameters
    ----------
    compute : callable
        Returns a number or, with `count`, a tuple of so many; it may count on, too. Not called while a step is
        recorded, but once for each replay, in the order of recording.
    count : int, optional
    dtype : str
        Of the place.

    Returns
    -------
    numbers : what `compute` returns, or array () or (count,) of `dtype`
    """
    recording = _current.recording
    return compute() if recording is None else recording.place(compute, count, dtype)


@contextmanager
def recorded_by(recording: Recording) -> Iterator[None]:
    """Within, in this thread, `varying` asks for places."""
    before, _current.recording = _current.recording, recording
    try:
        yield
    finally:
        _current.recording = before


class Rehearsal:
    """Work done as it is to be recorded, with places for numbers that vary: so its kernels are compiled before."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def place(self, compute: Callable[[], Any], count: int | None, dtype: str) -> Array:
        return self.backend.asarray(compute(), dtype)


def overwrite(targets: tuple[Array, ...], sources: tuple[Array, ...]) -> tuple[Array, ...]:
    """The definition of arrays copied into others of their shapes; returns those. No source is a target, too."""
    for target, source in zip(targets, sources, strict=True):
        target[...] = source
    return targets


def obstacle() -> str | None:
    """The definition of what keeps work from being recorded: nothing."""
    return None


class Recorded:
    """Recorded work, done at each call; here by Python itself."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work

    def __call__(self) -> Any:
        return self.work()

    def release(self) -> None:
        """Give back what it holds; it can be called no more."""


def record(work: Callable[[], Any]) -> Recorded:
    """The definition of recording.

    A device's own has the work recorded now, and done at each call: on the arrays that it was recorded with, which must
    still be there. It returns the same arrays each time, with what they hold after the newest call.
    """
    return Recorded(work)
