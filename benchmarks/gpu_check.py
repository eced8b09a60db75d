"""Everything that only a CUDA device can show: the tests on it, small checks of what the library relies on, benchmarks.

python benchmarks/gpu_check.py                      needs the extras cuda13, cudnn and test, and torch for comparisons
python benchmarks/gpu_check.py --seconds 570        all within so long: the tests take 60 % of it at most
python benchmarks/gpu_check.py --tests-only         without the benchmarks;  --benchmarks-only  with nothing else
python benchmarks/gpu_check.py -- --time-to 0.94 --data FOLDER      what follows the dashes is for gpu.py

In this order: the tests of kernels, graphs and fast paths, those that run on CuPy's arrays, and all others, under
``pytest --backend cupy``; ``xpnn check``, the checks of device_checks.py, gpu.py. A short table comes last. The exit
status is 1 where something failed or did not end in time, and 2 without a device.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Timer
from typing import NamedTuple

import device_checks
import gpu

ROOT = Path(__file__).parents[1]
FIRST = ("tests/test_kernels.py", "tests/training/test_recorded.py", "tests/training/test_fast_paths.py")
EMULATED = "tests/test_cu*.py"  # they replace CuPy by a stand-in, and are for machines without a device
TESTS, CHECK, LONGEST = 0.6, 60, 3600  # of the time; seconds of one small check; seconds for all, unless told
PATIENCE = 15  # seconds that pytest has for its summary once it is interrupted


class Outcome(NamedTuple):
    name: str
    passed: bool
    words: str
    seconds: float


def run(name: str, command: Sequence[str], seconds: float, folder: Path = ROOT) -> Outcome:
    """Run a command, its output going on to ours; the last line of it is the outcome's words."""
    print(f"\n== {name}", flush=True)
    began, last = time.perf_counter(), ""
    if seconds <= 0:
        return Outcome(name, False, "no time was left", 0.0)
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    apart = {"cwd": folder, "text": True, "process_group": 0}
    with subprocess.Popen(command, **apart, **both) as process, _ended(process, seconds):
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip(" =\n") or last
        status = process.wait()
    took = time.perf_counter() - began
    late = took >= seconds
    return Outcome(name, status == 0 and not late, f"cut off after {took:.0f} s: {last}" if late else last, took)


@contextmanager
def _ended(process: subprocess.Popen, seconds: float) -> Iterator[None]:
    """Within, a process and those that it starts are interrupted after so long; afterwards none of them is left."""

    def tell(sign: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)

    # Once, and not as `timeout` does, which tells the process and then its group: a second one ends the summary, too.
    late = Timer(seconds, tell, [signal.SIGINT]), Timer(seconds + PATIENCE, tell, [signal.SIGKILL])
    try:
        for timer in late:
            timer.start()
        yield
    finally:
        for timer in late:
            timer.cancel()
        tell(signal.SIGKILL)
        process.wait()


def tests(until: float, share: float, workers: int) -> list[Outcome]:
    """The suite in three parts: kernels and graphs, what runs on CuPy's arrays, what is the same on every backend."""
    first = sorted({str(path.relative_to(ROOT)) for pattern in FIRST for path in ROOT.glob(pattern)})
    pytest = [sys.executable, "-m", "pytest", "--backend", "cupy", "-q", "--tb", "short"]
    pytest += [f"--ignore-glob={ROOT / EMULATED}", *(["-n", str(workers)] if workers > 1 else [])]
    end = time.perf_counter() + share
    others = ["tests", *(f"--ignore={path}" for path in first)]
    parts = {
        "tests of kernels and graphs": first,
        "tests on CuPy's arrays": [*others, "-k", "cupy"],
        "all other tests": [*others, "-k", "not cupy"],
    }
    return [run(name, [*pytest, *part], min(end, until) - time.perf_counter()) for name, part in parts.items()]


def small_checks(until: float) -> list[Outcome]:
    """Each in a process of its own, one line each."""
    print("\n== small checks", flush=True)
    outcomes = []
    for name in device_checks.CHECKS:
        began = time.perf_counter()
        outcome = Outcome(name, *_check(name, min(CHECK, until - began)), time.perf_counter() - began)
        print(f"{'ok' if outcome.passed else 'FAILED'}: {name}: {outcome.words}".removesuffix(": "), flush=True)
        outcomes.append(outcome)
    return outcomes


def _check(name: str, seconds: float) -> tuple[bool, str]:
    if seconds <= 0:
        return False, "no time was left"
    command = [sys.executable, __file__, "--one", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return False, f"not done after {seconds:.0f} s"
    lines = (done.stdout or done.stderr).strip().splitlines()
    return done.returncode == 0, lines[-1] if lines else f"exit status {done.returncode}" * bool(done.returncode)


def answer(name: str) -> int:
    """Do one small check in this process; print its words, or what is wrong in one line."""
    try:
        print(device_checks.CHECKS[name]() or "")
    except Exception as error:  # whatever a library raises is the check's result
        kind = "" if type(error) is AssertionError else f"{type(error).__name__}: "
        print(kind + " ".join(str(error).split()))
        return 1
    return 0


def no_device() -> str:
    """Why there is none, in words."""
    from xpnn import backend

    return backend.get("cupy").reason


def table(outcomes: Sequence[Outcome]) -> list[str]:
    return [f"{'ok' if o.passed else 'FAILED':8s}{o.seconds:6.0f} s  {o.name}: {o.words}" for o in outcomes]


@contextmanager
def _terminable() -> Iterator[None]:
    """Within, SIGTERM is as Ctrl-C: what runs on the device ends, too."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@_terminable()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=LONGEST, help="for everything together")
    parser.add_argument("--out", help="the file for the benchmarks' results; theirs by default")
    parser.add_argument("--workers", type=int, default=1, help="processes for the tests; more need pytest-xdist")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--tests-only", action="store_true", help="no benchmarks")
    either.add_argument("--benchmarks-only", action="store_true", help="no tests and checks")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("options", nargs="*", metavar="-- OPTIONS", help="for gpu.py, such as --works airbench")
    args = parser.parse_args()
    if args.tests_only and args.options:
        parser.error(f"--tests-only: expected no options for gpu.py; received {' '.join(args.options)}")
    if args.one:
        return answer(args.one)
    gpu.options(args.options)  # or it says what is wrong with them now, and not after the tests
    if reason := no_device():
        print(f"gpu_check.py: expected a CUDA device; received none ({reason})", file=sys.stderr)
        return 2
    until, outcomes = time.perf_counter() + args.seconds, []
    if not args.benchmarks_only:
        outcomes += tests(until, args.seconds * (1 if args.tests_only else TESTS), args.workers)
        command = [sys.executable, "-m", "xpnn", "check", "--backend", "cupy"]
        outcomes.append(run("xpnn check", command, min(2 * CHECK, until - time.perf_counter())))
        checks = small_checks(until)
        failed = sum(not check.passed for check in checks)
        words = f"{len(checks) - failed} ok, {failed} FAILED"
        outcomes.append(Outcome("small checks", not failed, words, sum(check.seconds for check in checks)))
    if not args.tests_only:
        left = until - time.perf_counter()
        command = [sys.executable, str(Path(__file__).parent / "gpu.py"), "--seconds", f"{left - PATIENCE:.0f}"]
        command += [*(["--out", args.out] if args.out else []), *args.options]
        outcomes.append(run("benchmarks", command, left, Path.cwd()))  # where its files are looked for
    print("\n== in short")
    for line in table(outcomes):
        print(line)
    return 0 if all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
