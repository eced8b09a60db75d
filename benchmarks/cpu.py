"""Time of a training step on the CPU, beside PyTorch and beside the matrix products alone.

python benchmarks/cpu.py            needs torch; about a minute

Every variant runs in a process of its own with the same number of threads, in turn and several times, so that the
ratios hold where the machine's speed drifts. A step is: gather a batch of 100 images, loss and gradients, Adam.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

NETS = {"4 x 500": [500] * 4, "5 x 100": [100] * 5}
VARIANTS = ("products", "xpnn", "torch")
BATCH, INPUT, CLASSES, IMAGES = 100, 3072, 10, 5000


def products(hidden: list[int]) -> Callable[[], object]:
    """The matrix products of forward and backward, written into place."""
    import numpy as np

    rng = np.random.default_rng(0)
    sizes = [INPUT, *hidden, CLASSES]
    array = lambda *shape: rng.standard_normal(shape, dtype=np.float32)  # noqa: E731
    layers = [(array(BATCH, d), array(d, m), array(BATCH, m)) for d, m in itertools.pairwise(sizes)]
    outs = [(np.empty_like(o), np.empty_like(w), np.empty_like(x)) for x, w, o in layers]

    def step() -> None:
        for i, ((x, w, o), (out, dw, dx)) in enumerate(zip(layers, outs, strict=True)):
            np.matmul(x, w, out=out)
            np.matmul(x.T, o, out=dw)
            if i > 0:
                np.matmul(o, w.T, out=dx)

    return step


def xpnn(hidden: list[int]) -> Callable[[], object]:
    import numpy as np

    from xpnn import FullyConnectedNet
    from xpnn.optim import Optimizer

    rng = np.random.default_rng(0)
    X = rng.standard_normal((IMAGES, INPUT), dtype=np.float32)
    y = rng.integers(0, CLASSES, IMAGES)
    model = FullyConnectedNet(hidden, rng=0)
    optimizer = Optimizer(model.params, "adam")
    buffer = model.params.like()

    def step() -> None:
        batch = rng.integers(0, IMAGES, BATCH)
        _, grads = model.loss(np.take(X, batch, axis=0), np.take(y, batch), buffer)
        optimizer.step(grads)

    return step


def torch(hidden: list[int]) -> Callable[[], object]:
    import torch as t
    from torch import nn

    sizes = [INPUT, *hidden]
    layers = [m for d, h in itertools.pairwise(sizes) for m in (nn.Linear(d, h), nn.ReLU())]
    net = nn.Sequential(*layers, nn.Linear(sizes[-1], CLASSES))
    optimizer = t.optim.Adam(net.parameters(), fused=True)
    X, y = t.randn(IMAGES, INPUT), t.randint(CLASSES, (IMAGES,))

    def step() -> None:
        batch = t.randint(IMAGES, (BATCH,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(X[batch]), y[batch]).backward()
        optimizer.step()

    return step


def measure(variant: str, net: str, steps: int) -> list[float]:
    """Milliseconds of each step, after some that warm up."""
    step = globals()[variant](NETS[net])
    times = []
    for i in range(steps + 10):
        start = time.perf_counter()
        step()
        if i >= 10:
            times.append(1e3 * (time.perf_counter() - start))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one, args.steps)))
        return

    threads = {name: str(args.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    times: dict[tuple[str, str], list[float]] = {(net, v): [] for net in NETS for v in VARIANTS}
    for _ in range(args.rounds):
        for net, variant in times:
            command = [sys.executable, __file__, "--steps", str(args.steps), "--one", variant, net]
            output = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True, check=True)
            times[net, variant].append(statistics.median(json.loads(output.stdout)))

    from importlib.metadata import version

    from xpnn import backend

    machine = {
        "processor": backend.get("numpy").device_name(),
        "threads": args.threads,
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "torch")},
    }
    rows = [
        {
            "work": net,
            "variant": v,
            "batch": BATCH,
            "median_ms": statistics.median(ms),
            "min_ms": min(ms),
            "runs": len(ms),
        }
        for (net, v), ms in times.items()
    ]
    results = Path(__file__).parent / "results" / "cpu.json"
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    print(machine)
    print(f"{'net':10s}{'variant':10s}{'ms':>8s}{'to torch':>10s}")
    for row in rows:
        torch_ms = next(r["median_ms"] for r in rows if (r["work"], r["variant"]) == (row["work"], "torch"))
        ratio = row["median_ms"] / torch_ms
        print(f"{row['work']:10s}{row['variant']:10s}{row['median_ms']:8.2f}{ratio:10.2f}")


if __name__ == "__main__":
    main()
