"""Freed memory is kept while a net trains, where the C library can be told so."""

import os
import subprocess
import sys

import pytest

from xpnn import memory


@pytest.fixture
def calls(monkeypatch):
    """What the C library is told."""
    told = []
    monkeypatch.setattr(memory, "_mallopt", lambda: lambda *setting: told.append(setting))
    return told


def test_freed_memory_is_kept_within_and_handed_back_afterwards(calls):
    with memory.kept():
        assert calls == [(memory.MMAP_THRESHOLD, memory.MAPPED), (memory.TRIM_THRESHOLD, memory.NEVER)]
    assert calls[2:] == [(memory.TRIM_THRESHOLD, memory.USUAL)]


def test_it_ends_with_the_last_of_those_who_keep(calls):
    with memory.kept():
        with memory.kept():
            pass
        assert calls[-1] == (memory.TRIM_THRESHOLD, memory.NEVER)
    assert calls[-1] == (memory.TRIM_THRESHOLD, memory.USUAL)


def test_an_error_ends_it_too(calls):
    with pytest.raises(KeyError), memory.kept():
        raise KeyError
    assert calls[-1] == (memory.TRIM_THRESHOLD, memory.USUAL)


def test_a_c_library_that_cannot_be_told_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory, "_mallopt", lambda: None)
    with memory.kept():
        assert memory._depth == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_process_forked_while_a_thread_holds_the_lock_may_keep_memory():
    code = """
import os, signal, warnings
warnings.simplefilter("ignore")
from xpnn import memory
with memory._lock:
    child = os.fork()
    if not child:
        signal.alarm(20)
        with memory.kept():
            os._exit(0)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_glibc_takes_the_settings():
    mallopt = memory._mallopt()
    if mallopt is None:
        pytest.skip("the C library is not glibc")
    try:
        assert mallopt(memory.MMAP_THRESHOLD, memory.MAPPED) == 1
        assert mallopt(memory.TRIM_THRESHOLD, memory.NEVER) == 1
    finally:
        assert mallopt(memory.TRIM_THRESHOLD, memory.USUAL) == 1
