"""Ctrl-C that waits for the end of an iteration."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def deferred_interrupt(stop: Callable[[str], None]) -> Iterator[None]:
    """Let the first Ctrl-C call ``stop("interrupted")``, so that no iteration is cut in half; the second interrupts.

    Where Ctrl-C is ignored, as in a shell script's ``xpnn train &``, it stays so.
    """
    is_main = threading.current_thread() is threading.main_thread()  # only the main thread gets signals
    if not is_main or signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
        yield
        return

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, previous)
        stop("interrupted")

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
