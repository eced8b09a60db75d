"""Time and memory of a training step on the CPU, beside PyTorch, JAX and the matrix products alone.

python benchmarks/cpu.py                        needs pytest, torch and jax; about a quarter of an hour on two cores
python benchmarks/cpu.py --works "4 x 500"      some of the works
python benchmarks/cpu.py --variants xpnn torch  some of the variants

A step is: gather a batch of 100 images, loss and gradients, Adam, in float32. Every variant runs in a process of its
own with the same number of threads, in turn and several times, so that the ratios hold where the machine's speed
drifts. Scores of images and the start of a process follow. The table's ratio is to the fastest of the frameworks. A run
of all works and variants writes results/cpu.json, or without numba results/cpu_without_numba.json.
"""

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import steps

COMPILED = importlib.util.find_spec("numba") is not None
TRAINING = {
    "products": steps.products,
    "numpy": steps.numpy,
    "xpnn": steps.xpnn,
    "torch": steps.torch,
    "torch compiled": steps.torch_compiled,
    "jax": steps.jax,
}
SCORES = {
    f"{net}, scores of {count}": (net, count) for net in ("4 x 500", "convnet", "airbench") for count in (1, 1000)
}
STARTS = {
    "import": {"xpnn": ["-c", "import xpnn"], "torch": ["-c", "import torch"], "jax": ["-c", "import jax.numpy"]},
    "xpnn --help": {"xpnn": ["-c", "import sys; sys.argv[1:] = ['--help']; from xpnn.cli import main; main()"]},
    "first step of 5 x 100": {
        name: ["-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
               f"import steps; steps.{name}('5 x 100')()"]
        for name in ("xpnn", "torch", "jax")
    },
}  # fmt: skip
FRAMEWORKS = ("torch", "torch compiled", "jax")
WORKS = [*steps.NETS, *SCORES, *STARTS]
SECONDS = 1.5  # at most, for the steps of one process


def measure(variant: str, work: str) -> dict[str, list[float] | float] | None:
    """Milliseconds of each call, after some that warm up, and the process's peak of memory; None for no such pair."""
    if work in SCORES:
        scores = {"xpnn": steps.xpnn_scores, "torch": steps.torch_scores}.get(variant)
        call = scores(*SCORES[work]) if scores else None
    else:
        call = TRAINING[variant](work)
    if call is None:
        return None
    from xpnn.memory import kept
    from xpnn.threads import steady

    times: list[float] = []
    with steady(), kept():  # as the Solver trains; freed memory is kept for the peers, too
        began = time.perf_counter()
        while len(times) < 10 or (len(times) < 120 and time.perf_counter() - began < SECONDS):
            start = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - start))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return {"ms": times[min(10, len(times) // 2) :], "peak_mb": peak}


def run(variant: str, work: str, environment: dict[str, str]) -> dict | None:
    if work in STARTS:
        if variant not in STARTS[work]:
            return None
        start = time.perf_counter()
        subprocess.run([sys.executable, *STARTS[work][variant]], env=environment, capture_output=True, check=True)
        return {"ms": [1e3 * (time.perf_counter() - start)], "peak_mb": None}
    command = [sys.executable, __file__, "--one", variant, work]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{variant}, {work}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--works", nargs="+", default=WORKS, choices=WORKS, metavar="WORK")
    parser.add_argument("--variants", nargs="+", default=list(TRAINING), choices=list(TRAINING), metavar="VARIANT")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one)))
        return

    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = os.environ | {name: str(args.threads) for name in names}
    environment["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen={'true' if args.threads > 1 else 'false'}"
    runs: dict[tuple[str, str], list[dict]] = {(work, v): [] for work in args.works for v in args.variants}
    for _ in range(args.rounds):
        for (work, variant), results in runs.items():
            if (result := run(variant, work, environment)) is not None:
                results.append(result)

    from machine import describe

    machine = describe(args.threads)
    rows = []
    for (work, variant), results in runs.items():
        if results:
            medians = [statistics.median(result["ms"]) for result in results]
            fastest_first = sorted(ms for result in results for ms in result["ms"])
            rows.append(
                {
                    "work": work,
                    "variant": variant,
                    "batch": int(work.split()[-1]) if work in SCORES else steps.BATCH,
                    "median_ms": statistics.median(medians),
                    "min_ms": fastest_first[0],
                    "p90_ms": fastest_first[int(0.9 * (len(fastest_first) - 1))],
                    "runs": len(results),
                    "peak_mb": None if work in STARTS else max(result["peak_mb"] for result in results),
                }
            )
    if args.works == WORKS and args.variants == list(TRAINING):
        file = Path(__file__).parent / "results" / ("cpu.json" if COMPILED else "cpu_without_numba.json")
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")

    print(machine)
    print(f"{'work':36s}{'variant':16s}{'ms':>9s}{'p90':>9s}{'ratio':>7s}{'peak MB':>9s}")
    for row in rows:
        peers = [r["median_ms"] for r in rows if r["work"] == row["work"] and r["variant"] in FRAMEWORKS]
        ratio = f"{row['median_ms'] / min(peers):7.2f}" if peers else f"{'':7s}"
        peak = "" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}"
        numbers = f"{row['median_ms']:9.2f}{row['p90_ms']:9.2f}{ratio}{peak:>9s}"
        print(f"{row['work']:36s}{row['variant']:16s}{numbers}")


if __name__ == "__main__":
    main()
