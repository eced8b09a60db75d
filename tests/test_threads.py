"""Work shared out among threads."""

import concurrent.futures
import itertools
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import threadpoolctl

from xpnn import threads
from xpnn.kernels.numpy.workspace import LIMIT, forget, workspace
from xpnn.threads import share, steady


@pytest.fixture
def three_threads(monkeypatch):
    """As on a machine whose BLAS has three threads."""
    monkeypatch.setattr(threads, "_thread_count", lambda: 3)


def blas_threads():
    return [library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]


def parts(n, least=1):
    return [(part.start, part.stop) for part in share(lambda part: part, n, least)]


def test_each_thread_has_a_part_and_results_come_in_order(three_threads):
    assert parts(10) == [(0, 3), (3, 6), (6, 10)]


def test_less_than_is_worth_a_thread_is_done_by_fewer(three_threads):
    assert parts(10, least=5) == [(0, 5), (5, 10)]
    assert parts(10, least=6) == [(0, 10)]
    assert parts(0) == [(0, 0)]


def test_parts_are_done_by_different_threads(three_threads):
    everyone = threading.Barrier(3, timeout=30)
    names = share(lambda part: (everyone.wait(), threading.get_ident())[1], 3)
    assert len(set(names)) == 3
    assert names[0] == threading.get_ident()


def test_work_within_work_is_not_shared_out(three_threads):
    assert share(lambda part: parts(part.stop - part.start), 6) == [[(0, 2)], [(0, 2)], [(0, 2)]]


def test_one_of_two_threads_that_share_out_work_does_it_alone(three_threads):
    found = []
    with steady():
        other = threading.Thread(target=lambda: found.extend(parts(6)))
        other.start()
        other.join()
    assert found == [(0, 6)]


def test_blas_keeps_to_one_thread_meanwhile(three_threads):
    before = blas_threads()
    assert share(lambda part: set(blas_threads()), 3) == [set(blas_threads()) and {1}] * 3
    assert blas_threads() == before


def test_blas_keeps_to_one_thread_until_the_outer_end(three_threads):
    before = blas_threads()
    with steady():
        with steady():
            assert blas_threads() == before
            share(lambda part: None, 3)
        assert set(blas_threads()) == {1}
    assert blas_threads() == before


@pytest.mark.parametrize("failing", [0, 2])
def test_an_error_is_the_callers_once_all_parts_are_done(three_threads, failing):
    before, done = blas_threads(), []

    def work(part):
        if part.start == failing:
            raise ValueError(f"part {part.start}")
        done.append(part.start)

    with pytest.raises(ValueError, match=f"part {failing}"):
        share(work, 3)
    assert sorted(done) == sorted({0, 1, 2} - {failing})
    assert blas_threads() == before


def test_what_is_shared_out_along_goes_with_other_work_only(three_threads):
    with steady():
        assert len(share(lambda part: part, 6, along=True)) == 1
        share(lambda part: part, 6)
        assert len(share(lambda part: part, 6, along=True)) == 3


def test_numpys_settings_hold_in_all_threads(three_threads):
    with np.errstate(over="raise"):
        assert [state["over"] for state in share(lambda part: np.geterr(), 3)] == ["raise"] * 3


def test_there_are_as_many_threads_as_blas_has():
    code = "from xpnn.threads import share; print(len(share(lambda part: part, 100)))"
    for count in (1, 2):
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": str(count), "OMP_NUM_THREADS": str(count)}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert int(done.stdout) == (count if any(blas_threads()) else 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_has_threads_of_its_own():
    code = """
import os, warnings
warnings.simplefilter("ignore")  # of a fork where there are threads
from xpnn import threads
threads._thread_count = lambda: 2
threads.share(lambda part: part, 2)
child = os.fork()
if not child:
    os._exit(0 if len(threads.share(lambda part: part, 2)) == 2 else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("by", ["the thread that trains", "another"])
def test_a_process_forked_along_the_way_has_blas_threads_where_none_was_within(by):
    code = """
import os, sys, threading, warnings
warnings.simplefilter("ignore")
from xpnn import threads

class Library:
    num_threads = 5
    def set_num_threads(self, count):
        self.num_threads = count

def fork():
    child = os.fork()
    if not child:
        os._exit(library.num_threads)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

library, statuses = Library(), []
threads._blas = lambda: [library]
with threads.steady():
    threads.share(lambda part: part, 5)
    assert library.num_threads == 1
    if sys.argv[1] == "another":
        other = threading.Thread(target=fork)
        other.start()
        other.join()
    else:
        fork()
    assert library.num_threads == 1
assert library.num_threads == 5
print(*statuses)
"""
    done = subprocess.run([sys.executable, "-c", code, by], timeout=60, capture_output=True, text=True, check=True)
    assert int(done.stdout) == (1 if by == "another" else 5)


def test_a_workspace_is_the_same_memory_until_more_is_asked_for():
    forget()
    first = workspace("a test's", (4, 5), np.dtype("float32"))
    assert (first.shape, first.dtype) == ((4, 5), np.float32)
    assert np.shares_memory(first, workspace("a test's", (3,), np.dtype("float64")))
    assert not np.shares_memory(first, workspace("another", (4, 5), np.dtype("float32")))
    assert not np.shares_memory(first, workspace("a test's", (50, 5), np.dtype("float32")))


def test_each_thread_has_a_workspace_of_its_own(three_threads):
    everyone = threading.Barrier(3, timeout=30)

    def work(part):
        everyone.wait()
        return workspace("a test's", (8,), np.dtype("float32"))

    spaces = share(work, 3)
    assert not any(np.shares_memory(one, other) for one, other in itertools.combinations(spaces, 2))


def test_a_large_workspace_is_not_kept():
    forget()
    large = workspace("a test's", (LIMIT + 1,), np.dtype("uint8"))
    assert not np.shares_memory(large, workspace("a test's", (8,), np.dtype("uint8")))


def test_ctrl_c_waits_for_the_others_and_leaves_all_as_it_was(three_threads, monkeypatch):
    ends, done = threading.Event(), []

    def work(part):
        if part.start:
            assert ends.wait(10)
            done.append(part)

    waits = []

    def wait(others):
        waits.append(1)
        if len(waits) < 3:  # as often as the user has no patience
            raise KeyboardInterrupt
        ends.set()
        return concurrent.futures.wait(others)

    monkeypatch.setattr(threads, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        threads.share(work, 3)
    assert len(done) == 2
    monkeypatch.setattr(threads, "wait", concurrent.futures.wait)
    assert parts(3) == [(0, 1), (1, 2), (2, 3)]
