"""Time of a training step on a CUDA device, beside PyTorch and the floor; airbench's time to an accuracy.

python benchmarks/gpu.py                                needs the extras cuda13 and cudnn, pytest and torch
python benchmarks/gpu.py --works "4 x 500" airbench     some of the works; --variants and --dtypes likewise
python benchmarks/gpu.py --time-to 0.94 --data FOLDER   trainings of airbench on CIFAR-10, too; with --works, alone

Each variant of each work runs in a process of its own, in turn and several times. An epoch is timed by the device's
events, from the end of its first step to the end of its last: with nothing queued before, and everything done after.
The first epochs warm up, and a row is the median of processes' medians. What a step is, gpu_steps.py says.

The floor is the larger of a step's operations over the rate of a large matrix product in that type, and its bytes over
the bandwidth of a large copy, both measured in the same run; floor.py says what is counted. peak_mb is what the driver
counts beyond what a process needs before it has any array, so it holds for every library and for graphs.

float32 is exact in all variants, and "tf32" lets all of them round factors to 10 bits of fraction. What fails is one
line on standard error, and the others go on; the exit status is then 1.

A run of all variants writes results/gpu.json, any run the file that --out names, work by work. The works may be shared
out among runs: where device, driver, versions and commit are the same, the rows of other works stay, each with the time
of its run; otherwise the file begins anew. The rows of a work are of one run. With --seconds, a work begins where as
much time is left as the longest has taken, and those left over are named.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import floor
import gpu_steps
import numpy as np
import speed_run
import steps
from gpu_steps import MODE, VARIANTS, NotThere

RESULTS = Path(__file__).parent / "results" / "gpu.json"
BATCHES = {"5 x 100": (100, 1000), "4 x 500": (100, 1000), "convnet": (100,), "resnet9": (512,), "airbench": (2000,)}
DTYPES = {net: ("float32",) if net in steps.FULLY_CONNECTED else tuple(floor.SIZES) for net in BATCHES}
USUAL = ("float32", "float16")
WARM, LEAST, MOST, SECONDS = 2, 5, 100, 2.0  # epochs that warm up; that are timed, while they take so long together
HALF = "float16"  # of the trainings, as in the original
WAIT, TUNING = 300, 1800  # seconds, at most, for a process: compilation included; where it tries many kernels
GUESS = 15, 120  # seconds that a process takes: most of them, and those in which PyTorch compiles
WORK = ("work", "batch", "dtype")


class Work(NamedTuple):
    net: str
    batch: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.net}, batch {self.batch}, {self.dtype}"


class Clock(Protocol):
    """A device's: `mark` waits for all work and notes the time, `ms` is between two notes."""

    def mark(self) -> Any: ...
    def ms(self, start: Any, end: Any) -> float: ...
    def used(self) -> int: ...


class CuPyClock:
    def __init__(self) -> None:
        import cupy

        self.cuda = cupy.cuda
        cupy.cuda.Device().synchronize()

    def mark(self) -> Any:
        self.cuda.Device().synchronize()  # all streams, also a graph's own
        event = self.cuda.Event()
        event.record()
        event.synchronize()
        return event

    def ms(self, start: Any, end: Any) -> float:
        return self.cuda.get_elapsed_time(start, end)

    def used(self) -> int:
        free, total = self.cuda.runtime.memGetInfo()
        return total - free


class TorchClock:
    def __init__(self) -> None:
        import torch

        self.cuda = torch.cuda
        torch.cuda.init()
        torch.cuda.synchronize()

    def mark(self) -> Any:
        self.cuda.synchronize()
        event = self.cuda.Event(enable_timing=True)
        event.record()
        event.synchronize()
        return event

    def ms(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end)

    def used(self) -> int:
        free, total = self.cuda.mem_get_info()
        return total - free


class Laps:
    """Milliseconds of a step, epoch by epoch."""

    def __init__(self, clock: Clock, length: int) -> None:
        self.clock, self.length = clock, length  # steps between the marks of an epoch
        self.all: list[float] = []
        self.used = 0  # bytes, at most

    def begin(self) -> None:
        self.start = self.clock.mark()

    def end(self) -> None:
        self.all.append(self.clock.ms(self.start, self.clock.mark()) / self.length)
        self.used = max(self.used, self.clock.used())  # a graph's memory goes when the training ends

    @property
    def timed(self) -> list[float]:
        return self.all[WARM:]

    @property
    def are_enough(self) -> bool:
        took = self.length * sum(self.timed) / 1e3
        return len(self.timed) >= LEAST and (len(self.timed) >= MOST or took >= SECONDS)


def measure(variant: str, work: Work, clock: Clock | None = None, **options: Any) -> dict[str, Any]:
    """Milliseconds of a step in each epoch, and the peak of memory; `options` go to gpu_steps."""
    is_xpnn = variant.startswith("xpnn")
    clock = clock or (CuPyClock() if is_xpnn else TorchClock())
    before, options = clock.used(), VARIANTS[variant] | options
    laps = (_xpnn_laps if is_xpnn else _torch_laps)(work, clock, options)
    return {"ms": laps.timed, "peak_mb": (laps.used - before) / 1e6}


def _xpnn_laps(work: Work, clock: Clock, options: dict[str, Any]) -> Laps:
    from xpnn.training import Callback

    class Timer(Callback):
        only_looks = True

        def on_iteration(self, solver: Any) -> None:
            row = solver.iteration % solver.iterations_per_epoch
            if row == 1:
                laps.begin()
            elif row == 0:
                laps.end()
                if laps.are_enough:
                    solver.stop("measured")

    solver = gpu_steps.xpnn(*work, callbacks=[Timer()], **options)
    laps = Laps(clock, solver.iterations_per_epoch - 1)
    solver.train()
    gpu_steps.check_graph(solver, options["graph"])
    if not laps.are_enough:
        raise NotThere(f"the training ended before it was measured: {solver.stop_reason}")
    return laps


def _torch_laps(work: Work, clock: Clock, options: dict[str, Any]) -> Laps:
    step = gpu_steps.torch(*work, **options)
    laps = Laps(clock, max(options.get("count", gpu_steps.IMAGES) // work.batch - 1, 1))
    while not laps.are_enough:
        step()
        laps.begin()
        for _ in range(laps.length):
            step()
        laps.end()
    return laps


def rates(dtype: str) -> dict[str, float]:
    """Operations a second of a product of large matrices, and bytes a second, read and written, of a large copy."""
    import cupy

    from xpnn import backend

    clock, device, n = CuPyClock(), backend.get("cupy").require(), 8192
    single = np.random.default_rng(0).standard_normal((2, n, n), dtype="float32")
    a, b = cupy.asarray(single).astype(device.dtype("float32" if dtype == "tf32" else dtype))
    product, source = cupy.empty_like(a), cupy.zeros(2**30, dtype="uint8")
    target = cupy.empty_like(source)
    return {
        "products": 2 * n**3 / best_seconds(clock, lambda: cupy.matmul(a, b, out=product)),
        "copy": 2 * source.nbytes / best_seconds(clock, lambda: cupy.copyto(target, source)),
    }


def best_seconds(clock: Clock, call: Callable[[], object], times: int = 20, repeats: int = 10) -> float:
    """The quickest of several measurements, as a floor is to be one."""
    found = []
    for _ in range(repeats):
        call()
        start = clock.mark()
        for _ in range(times):
            call()
        found.append(clock.ms(start, clock.mark()) / times / 1e3)
    return min(found)


def demand(work: Work) -> floor.Demand:
    """What a step of the work asks for, of a model that nobody trains, on the host."""
    model, training = gpu_steps.model_and_training(work.net, work.batch, "float32", "numpy")
    return floor.of_step(model, work.batch, floor.SIZES[work.dtype], gpu_steps.optimizer(model, training))


def works(nets: list[str], dtypes: list[str]) -> list[Work]:
    pairs = [(net, dtype) for net in nets for dtype in dtypes if dtype in DTYPES[net]]
    return [Work(net, batch, dtype) for net, dtype in pairs for batch in BATCHES[net]]


def row(work: Work, variant: str, runs: list[dict[str, Any]], measured: dict[str, dict[str, float]]) -> dict[str, Any]:
    """A line of the results: `runs` are what `measure` gave, `measured` what `rates` did for each type."""
    ms = statistics.median(statistics.median(run["ms"]) for run in runs)
    rate = measured[work.dtype]
    return {
        "work": work.net,
        "variant": variant,
        "batch": work.batch,
        "dtype": work.dtype,
        "median_ms": ms,
        "images_per_s": 1e3 * work.batch / ms,
        "floor_ms": floor.milliseconds(demand(work), rate["products"], rate["copy"]),
        "peak_mb": max(run["peak_mb"] for run in runs),
        "min_ms": min(min(run["ms"]) for run in runs),
        "runs": len(runs),
    }


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The rows for people to read, each with its ratio to the quicker PyTorch and to the floor."""
    yield f"{'work':10s}{'batch':>6s} {'dtype':9s}{'variant':16s}{'ms':>9s}{'images/s':>11s}{'to torch':>9s}" + (
        f"{'to floor':>9s}{'MB':>8s}"
    )
    for r in rows:
        same = [s for s in rows if all(s[key] == r[key] for key in WORK)]
        peers = [s["median_ms"] for s in same if s["variant"].startswith("torch")]
        ratio = f"{r['median_ms'] / min(peers):9.2f}" if peers else f"{'':9s}"
        numbers = f"{r['median_ms']:9.3f}{r['images_per_s']:11.0f}{ratio}{r['median_ms'] / r['floor_ms']:9.1f}"
        yield f"{r['work']:10s}{r['batch']:6d} {r['dtype']:9s}{r['variant']:16s}{numbers}{r['peak_mb']:8.0f}"


def ask(*arguments: str, seconds: float, tf32: bool = False) -> Any:
    """What this script answers in a process of its own; NotThere with one line if it fails, or time is over."""
    if seconds <= 0:
        raise NotThere("no time is left")
    environment = os.environ | dict.fromkeys(("XPNN_TF32", "CUPY_TF32"), "1" if tf32 else "0")
    command = [sys.executable, str(Path(__file__)), *arguments]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise NotThere(f"not done after {seconds:.0f} s") from None
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    if done.returncode or not lines:
        raise NotThere(lines[-1] if lines else f"exit status {done.returncode}")
    return json.loads(lines[-1])


def no_device() -> str:
    """Why nothing can be measured here; empty where it can."""
    from xpnn import backend

    return backend.get("cupy").reason


def complain(what: object, error: object) -> None:
    print(f"{what}: {error}", file=sys.stderr, flush=True)


def options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What the words ask for, by default those of the command line; SystemExit with one line for what cannot be."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("gpu.py", description=__doc__, formatter_class=form)
    parser.add_argument("--rounds", type=int, default=3, help="how often each step is timed anew")
    parser.add_argument("--seconds", type=float, default=3600, help="for everything; what does not fit is named")
    for name, least, known, usual in (
        ("work", "*", BATCHES, BATCHES),
        ("variant", "+", VARIANTS, VARIANTS),
        ("dtype", "+", floor.SIZES, USUAL),
    ):
        values = f"of {', '.join(known)}"
        parser.add_argument(
            f"--{name}s", nargs=least, choices=list(known), default=list(usual), metavar=name.upper(), help=values
        )
    parser.add_argument("--mode", default=MODE, help="torch.compile's, such as the original airbench's max-autotune")
    parser.add_argument("--out", type=Path, help="the file for the results")
    parser.add_argument("--time-to", type=float, metavar="ACCURACY", help="train airbench, too, for that test accuracy")
    parser.add_argument("--data", help="the folder of CIFAR-10, for --time-to")
    parser.add_argument("--epochs", type=int, default=8, help="of such a training; the recipe's by default")
    parser.add_argument("--trainings", type=int, default=5, help="how many are timed")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--rate", help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    for name in ("rounds", "epochs", "trainings", "seconds"):
        if not getattr(args, name) > 0:
            parser.error(f"--{name}: expected a number above 0; received {getattr(args, name)}")
    if args.time_to is not None and not 0 < args.time_to < 1:
        parser.error(f"--time-to: expected an accuracy between 0 and 1; received {args.time_to}")
    if args.out is not None and not args.out.resolve().parent.is_dir():
        parser.error(f"--out: expected a file in a folder that exists; received {args.out}")
    if args.time_to is not None and args.data is None:
        parser.error("--time-to: expected --data FOLDER, which holds CIFAR-10")
    if args.data is not None and not Path(args.data).exists():
        parser.error(f"--data: expected a folder or archive; there is no {args.data}")
    return args


def main() -> int:
    args = options()
    if args.one or args.rate:
        return answer(args)
    if reason := no_device():
        complain("gpu.py", f"expected a CUDA device; received none ({reason})")
        return 2

    from machine import describe_device

    out = args.out or (RESULTS if args.variants == list(VARIANTS) else None)
    results = Results(describe_device(), args.mode, out)
    print(", ".join(f"{name} {value}" for name, value in results.device.items()))
    chosen = works(args.works, args.dtypes)
    print(plan(chosen, args), flush=True)
    until = time.perf_counter() + args.seconds
    missing = time_steps(chosen, args, until, results)
    if args.time_to is not None:
        missing += time_trainings(args, until, results)
    for line in table(results.rows):
        print(line)
    for r in results.trainings:
        print(f"training of airbench, {r['dtype']}, {r['variant']}: {r['median_s']:.2f} s, to {r['mean_accuracy']:.4f}")
    rows = [*results.rows, *results.trainings]
    new = sum(r["run"] == results.began for r in rows)
    print(f"{new} rows, {missing} missing" + (f"; {len(rows)} in {out}" if out else ""))
    return 1 if missing else 0


def plan(chosen: list[Work], args: argparse.Namespace) -> str:
    """How many processes there will be, and how long they may take, for a person to decide whether to wait."""
    rates = len({work.dtype for work in chosen})
    trainings = 0 if args.time_to is None else len(args.variants)
    compiled = "torch compiled" in args.variants
    n = rates + trainings + len(chosen) * len(args.variants) * args.rounds
    seconds = n * GUESS[0] + compiled * (len(chosen) + bool(trainings)) * (GUESS[1] - GUESS[0])
    tunes = ", more where PyTorch tunes its kernels" * (compiled and "autotune" in args.mode)
    numbers = f"{len(chosen)} works, {len(args.variants)} variants, {args.rounds} rounds"
    return f"{n} processes, perhaps {math.ceil(seconds / 60)} minutes{tunes}: {numbers}"


class Results:
    """What has been measured, here or by earlier runs on the same device with the same code, and its file."""

    def __init__(self, device: dict[str, Any], mode: str, out: Path | None) -> None:
        self.device, self.out = device, out
        self.run: dict[str, Any] = {"mode": mode, "rates": {}}
        self.began = datetime.now(UTC).isoformat(timespec="seconds")
        self.runs: dict[str, dict[str, Any]] = {}
        self.rows: list[dict[str, Any]] = []
        self.trainings: list[dict[str, Any]] = []
        if out is not None and out.exists():
            self._take_over(out)
        self.runs[self.began] = self.run

    def _take_over(self, file: Path) -> None:
        try:
            before = json.loads(file.read_text())
            there, here = before["device"], self.device
            others = [key for key in there | here if there.get(key) != here.get(key)]
            if not others:
                self.runs, self.rows, self.trainings = (before[name] for name in ("runs", "rows", "trainings"))
                return
            why = f"it is of another {', '.join(others)}"
        except (ValueError, KeyError, TypeError, AttributeError):
            why = "it holds no results of this script"
        complain(file, f"{why}, and begins anew")

    def take(self, work: Work, rows: list[dict[str, Any]]) -> None:
        """Put a work's rows in the place of those that there are."""
        others = [r for r in self.rows if [r[key] for key in WORK] != list(work)]
        self.rows = [*others, *({**r, "run": self.began} for r in rows)]
        self.write()

    def take_trainings(self, rows: list[dict[str, Any]]) -> None:
        self.trainings = [{**r, "run": self.began} for r in rows]
        self.write()

    def write(self) -> None:
        used = {r["run"] for r in [*self.rows, *self.trainings]}
        runs = {began: run for began, run in self.runs.items() if began in used}
        if self.out is not None and used:
            self.out.parent.mkdir(exist_ok=True)
            found = {"device": self.device, "runs": runs, "rows": self.rows, "trainings": self.trainings}
            self.out.write_text(json.dumps(found, indent=1) + "\n")


def time_steps(chosen: list[Work], args: argparse.Namespace, until: float, results: Results) -> int:
    """Fill the rows, work by work; return how many are missing."""
    missing, longest = 0, 0.0
    for work in chosen:
        began = time.perf_counter()
        if until - began < longest or began >= until:
            complain(work, f"not run: {max(until - began, 0):.0f} s are left, and a work takes {longest:.0f} s")
            missing += len(args.variants)
            continue
        runs, failed = time_work(work, args, until, results.run["rates"])
        rows = [row(work, variant, found, results.run["rates"]) for variant, found in runs.items() if found]
        missing += failed
        if rows:
            results.take(work, rows)
        longest = max(longest, time.perf_counter() - began)
    return missing


def time_work(work: Work, args: argparse.Namespace, until: float, rates: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """What `measure` gave for each variant, in turn and several times, and how many variants failed."""
    runs: dict[str, list[Any]] = {variant: [] for variant in args.variants}
    failed, tf32 = set(), work.dtype == "tf32"
    for number in range(args.rounds):
        for variant, found in runs.items():
            left = until - time.perf_counter()
            if variant in failed or (left <= 0 and number > 0):
                continue
            try:
                if work.dtype not in rates:
                    rates[work.dtype] = ask("--rate", work.dtype, seconds=min(left, WAIT), tf32=tf32)
                words = ("--one", variant, *map(str, work), "--mode", args.mode)
                found.append(ask(*words, seconds=min(left, limit(variant, args)), tf32=tf32))
            except NotThere as error:
                if found and time.perf_counter() >= until:  # cut off, but measured before
                    continue
                failed.add(variant)
                complain(f"{variant}, {work}", error)
    return runs, len(failed)


def limit(variant: str, args: argparse.Namespace) -> float:
    """Seconds for a process. The first in which PyTorch tries kernels takes many minutes, and then it knows them."""
    return TUNING if variant == "torch compiled" and "autotune" in args.mode else WAIT


def time_trainings(args: argparse.Namespace, until: float, results: Results) -> int:
    """Fill the results' trainings; return how many are missing."""
    options = ("--data", args.data, "--trainings", str(args.trainings), "--mode", args.mode)
    rows = []
    for variant in args.variants:
        seconds = min(until - time.perf_counter(), limit(variant, args))
        try:
            found = ask("--one", "training", variant, HALF, str(args.epochs), *options, seconds=seconds)
        except NotThere as error:
            complain(f"{variant}, training of airbench", error)
        else:
            rows.append(training_row(variant, args, found))
            results.take_trainings(rows)
    return len(args.variants) - len(rows)


def training_row(variant: str, args: argparse.Namespace, found: dict[str, list[float]]) -> dict[str, Any]:
    """A line of the results: the time to an accuracy is that of a training which reaches it on average."""
    seconds, accuracy = statistics.median(found["seconds"]), statistics.mean(found["accuracy"])
    return {
        "work": "airbench",
        "variant": variant,
        "batch": speed_run.BATCH,
        "dtype": HALF,
        "epochs": args.epochs,
        "trainings": len(found["seconds"]),
        "median_s": seconds,
        "min_s": min(found["seconds"]),
        "mean_accuracy": accuracy,
        "accuracy": args.time_to,
        "time_to_s": seconds if accuracy >= args.time_to else None,
        "images_per_s": args.epochs * speed_run.BATCH * (50_000 // speed_run.BATCH) / seconds,
    }


def answer(args: argparse.Namespace) -> int:
    """Do what `ask` asks for; one line for what goes wrong."""
    try:
        if args.rate:
            found: Any = rates(args.rate)
        elif args.one[0] == "training":
            _, variant, dtype, epochs = args.one
            found = speed_run.train(variant, dtype, args.data, int(epochs), args.trainings, **mode(variant, args))
        else:
            variant, net, batch, dtype = args.one
            found = measure(variant, Work(net, int(batch), dtype), **mode(variant, args))
    except Exception as error:  # of a library, a compiler, the device
        kind = "" if isinstance(error, NotThere) else f"{type(error).__name__}: "
        print(kind + (str(error).strip() or "without a message").splitlines()[0], file=sys.stderr)
        return 1
    print(json.dumps(found))
    return 0


def mode(variant: str, args: argparse.Namespace) -> dict[str, str]:
    return {"mode": args.mode} if variant == "torch compiled" else {}


if __name__ == "__main__":
    sys.exit(main())
