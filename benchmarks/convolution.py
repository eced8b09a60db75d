"""Time and memory of a convolution on the CPU, beside PyTorch.

python benchmarks/convolution.py            needs torch; about two minutes

Every variant runs in a process of its own with the same number of threads, in turn and several times, so that the
ratios hold where the machine's speed drifts. Forward is out = conv(x, w) + b; backward gives dx, dw and db. PyTorch
runs in its default memory format and in channels_last; the ratio is to the faster of the two.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

# N, C, H, F, K: images of H x H with C channels, F filters of K x K, a stride of 1, zeros that keep the size
SHAPES = [(100, 3, 32, 32, 7), (100, 32, 16, 64, 3), (100, 64, 16, 64, 3), (100, 128, 8, 128, 3)]
VARIANTS = ("xpnn", "torch", "torch channels_last")
Call = Callable[[], object]


def xpnn(n: int, c: int, h: int, f: int, k: int) -> tuple[Call, Call]:
    import numpy as np

    from xpnn.layers import conv_backward, conv_forward

    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(s, dtype=np.float32) for s in ((n, c, h, h), (f, c, k, k), (f,)))
    x = _channels_last(x)  # as a layer before it would give it
    out, cache = conv_forward(x, w, b, {"pad": k // 2})
    dout = _channels_last(rng.standard_normal(out.shape, dtype=np.float32))
    return lambda: conv_forward(x, w, b, {"pad": k // 2}), lambda: conv_backward(dout, cache)


def _channels_last(x: Any) -> Any:
    return x.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)


def torch(n: int, c: int, h: int, f: int, k: int, channels_last: bool = False) -> tuple[Call, Call]:
    import torch as t

    t.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    memory_format = t.channels_last if channels_last else t.contiguous_format
    x = t.randn(n, c, h, h).to(memory_format=memory_format).requires_grad_()
    w, b = (t.randn(*s).requires_grad_() for s in ((f, c, k, k), (f,)))
    forward = lambda: t.nn.functional.conv2d(x, w, b, padding=k // 2)  # noqa: E731
    out = forward()
    dout = t.randn_like(out)
    return forward, lambda: t.autograd.grad(out, (x, w, b), dout, retain_graph=True)


def measure(variant: str, shape: tuple[int, ...], steps: int) -> dict[str, float]:
    """Median milliseconds of a forward and a backward pass, and for xpnn what they allocate at the peak."""
    from xpnn.kernels.numpy.workspace import forget

    passes = xpnn(*shape) if variant == "xpnn" else torch(*shape, channels_last="last" in variant)
    result = {}
    for name, call in zip(("forward", "backward"), passes, strict=True):
        if variant == "xpnn":
            forget()  # what is kept from one call to the next counts
            tracemalloc.start()
            call()
            result[f"{name}_mb"] = tracemalloc.get_traced_memory()[1] / 1e6
            tracemalloc.stop()
        times = []
        for i in range(steps + 3):
            start = time.perf_counter()
            call()
            if i >= 3:
                times.append(1e3 * (time.perf_counter() - start))
        result[name] = statistics.median(times)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], json.loads(args.one[1]), args.steps)))
        return

    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = os.environ | {name: str(args.threads) for name in names}
    runs: dict[tuple[tuple[int, ...], str], list[dict[str, float]]] = {(s, v): [] for s in SHAPES for v in VARIANTS}
    for _ in range(args.rounds):
        for shape, variant in runs:
            command = [sys.executable, __file__, "--steps", str(args.steps), "--one", variant, json.dumps(shape)]
            output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            runs[shape, variant].append(json.loads(output.stdout))

    from machine import describe

    rows = []
    for (shape, variant), results in runs.items():
        n, c, h, f, _ = shape
        for direction in ("forward", "backward"):
            times = [result[direction] for result in results]
            row = {"work": f"conv {shape} {direction}", "variant": variant, "batch": n, "runs": len(times)}
            row |= {"median_ms": statistics.median(times), "min_ms": min(times)}
            if variant == "xpnn":
                row |= {"peak_mb": results[0][f"{direction}_mb"], "activations_mb": 4e-6 * n * h * h * (c + f)}
            rows.append(row)
    results_file = Path(__file__).parent / "results" / "convolution.json"
    results_file.parent.mkdir(exist_ok=True)
    results_file.write_text(json.dumps({"machine": describe(args.threads), "rows": rows}, indent=1) + "\n")

    print(describe(args.threads))
    columns = ("xpnn", "torch", "last", "ratio", "peak MB", "activations MB")
    print(f"{'N, C, H, F, K':24s}{'pass':10s}" + "".join(f"{column:>9s}" for column in columns))
    for shape, direction in itertools.product(SHAPES, ("forward", "backward")):
        work = f"conv {shape} {direction}"
        ours, *peers = (next(r for r in rows if (r["work"], r["variant"]) == (work, v)) for v in VARIANTS)
        ms = [row["median_ms"] for row in (ours, *peers)]
        numbers = (*ms, ms[0] / min(ms[1:]), ours["peak_mb"], ours["activations_mb"])
        print(f"{', '.join(map(str, shape)):24s}{direction:10s}" + "".join(f"{number:9.2f}" for number in numbers))


if __name__ == "__main__":
    main()
