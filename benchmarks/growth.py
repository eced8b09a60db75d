"""How the cost of training on the CPU grows: with the batch, the width, the depth and the number of images.

python benchmarks/growth.py      about four minutes on two cores

Each point is the median time of a training step of the Solver (gather a batch, loss and gradients, Adam, float32),
divided by the images of a batch, for a fully connected net on images of bytes, 3 x 32 x 32 of them or, where their
number grows, 3 x 8 x 8, in a file that is mapped into memory. Beside it stands the time of the step's matrix products
alone, written into place. Of three rounds over all points it is the fastest, as some machines change their speed. The
second table is what surrounds the arithmetic: a step of the same layers on single numbers, with the command line's
progress bar, and a batch gathered and cast to float32, as parts of the step. The last is memory, for many images and
for few: the most that Python and NumPy have allocated at a time while a Solver trains, and the sum of what must be
there: data, parameters, their gradients and Adam's averages, and the outputs of all layers for a batch.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from rich.console import Console
from threadpoolctl import threadpool_info

from xpnn import Airbench, FullyConnectedNet, Model, Solver, ThreeLayerConvNet
from xpnn.data.images import picked
from xpnn.kernels.numpy.workspace import forget
from xpnn.training import Callback
from xpnn.training.report import ProgressBar

SWEEPS: dict[str, list[dict[str, int]]] = {
    "batch": [{"batch": size} for size in (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)],
    "width": [{"width": width} for width in (50, 100, 250, 500, 1000, 2000, 4000)],
    "depth": [{"depth": depth} for depth in (1, 2, 5, 10, 20, 50)],
    "images": [{"images": count, "side": 8} for count in (1000, 10_000, 100_000, 1_000_000, 10_000_000)],
}
USUAL = {"batch": 100, "width": 200, "depth": 4, "images": 20_000, "side": 32}
SECONDS, ROUNDS = 1.2, 3  # for each point and round


class Clock(Callback):
    """The seconds of each step, until time is up."""

    def __init__(self) -> None:
        self.began = self.last = time.perf_counter()
        self.steps: list[float] = []

    def on_iteration(self, solver: Solver) -> None:
        now = time.perf_counter()
        self.steps.append(now - self.last)
        if now - self.began > SECONDS and len(self.steps) > 5:
            solver.stop("time is up")
        self.last = time.perf_counter()


def images(count: int, pixels: int, folder: str) -> dict[str, np.ndarray]:
    """Random labels, and images of zeros in a file that is mapped into memory."""
    file = Path(folder) / f"{count}_{pixels}.bytes"
    if not file.exists():
        with file.open("wb") as stream:
            for part in range(0, count, 10_000):
                stream.write(bytes(min(10_000, count - part) * pixels))
    X = np.memmap(file, np.uint8, "r", shape=(count, pixels))
    y = np.random.default_rng(0).integers(0, 10, count)
    return {"X_train": X, "y_train": y, "X_val": X[:100], "y_val": y[:100]}


def train(model: Model, data: dict[str, np.ndarray], batch: int, clock: Clock, *callbacks: Callback) -> None:
    options: dict[str, Any] = {"update_rule": "adam", "num_train_samples": 1, "seed": 0, "verbose": False}
    Solver(model, data, batch_size=batch, num_epochs=10**6, callbacks=[*callbacks, clock], **options).train()


def times_per_image(
    folder: str, batch: int, width: int, depth: int, images_count: int, side: int
) -> tuple[float, float]:
    """Microseconds: of a training step, and of its products alone."""
    pixels = 3 * side * side
    model, clock = FullyConnectedNet([width] * depth, input_dim=pixels, rng=0), Clock()
    train(model, images(images_count, pixels, folder), batch, clock)
    sizes = [pixels, *[width] * depth, 10]
    layers = [(np.ones((batch, d), "f4"), np.ones((d, m), "f4"), np.ones((batch, m), "f4")) for d, m in pairwise(sizes)]
    outs = [tuple(np.empty_like(array) for array in layer) for layer in layers]
    products = []
    began = time.perf_counter()
    while len(products) < 5 or time.perf_counter() - began < SECONDS / 2:
        start = time.perf_counter()
        for (x, w, dout), (dx, dw, out) in zip(layers, outs, strict=True):
            np.matmul(x, w, out=out)
            np.matmul(x.T, dout, out=dw)
            if x is not layers[0][0]:
                np.matmul(dout, w.T, out=dx)
        products.append(time.perf_counter() - start)
    return tuple(1e6 * statistics.median(times[2:]) / batch for times in (clock.steps, products))


def step_time(folder: str, pixels: int, sizes: list[int], batch: int) -> float:
    """Milliseconds of a step of the Solver beside a progress bar."""
    model, clock = FullyConnectedNet(sizes, input_dim=pixels, rng=0), Clock()
    bar = ProgressBar(Console(file=io.StringIO(), force_terminal=True))
    train(model, images(20_000, pixels, folder), batch, clock, bar)
    return 1e3 * statistics.median(clock.steps[2:])


def gather_time(folder: str, pixels: int, batch: int) -> float:
    """Milliseconds of a batch gathered and cast."""
    X, rng, times = images(20_000, pixels, folder)["X_train"], np.random.default_rng(0), []
    for _ in range(500):
        indices = rng.integers(0, len(X), batch)
        start = time.perf_counter()
        picked(X, indices).astype("f4")
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def memory(model: Model, count: int, batch: int) -> tuple[float, float]:
    """Megabytes: the most that was allocated at a time, and what must be there."""
    shapes = [layer.output_shape(shape) for layer, shape in model.net.walk(model.input_shape)]
    numbers = 4 * model.params.size + batch * sum(int(np.prod(shape)) for shape in shapes)
    forget()  # what kernels have kept of other nets' trainings
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    X, y = np.zeros((count, *model.input_shape), np.uint8), np.zeros(count, np.int64)
    data = {"X_train": X, "y_train": y, "X_val": X[:100], "y_val": y[:100]}
    train(model, data, batch, Clock())
    peak = tracemalloc.get_traced_memory()[1] - before + model.params.flat.nbytes
    tracemalloc.stop()
    return peak / 1e6, (4 * numbers + X.nbytes + y.nbytes) / 1e6


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    for axes, sweep in zip(figure.subplots(2, 2).flat, SWEEPS, strict=True):
        points = [row for row in rows if row.get("sweep") == sweep]
        sizes = [row[sweep] for row in points]
        axes.loglog(sizes, [row["us_per_image"] for row in points], "o-", label="training")
        axes.loglog(sizes, [row["products_us_per_image"] for row in points], "--", label="its products alone")
        axes.set(xlabel={"images": "images in the data set"}.get(sweep, sweep), ylabel="microseconds per image")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(file, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    out = parser.parse_args().out
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        points = [(sweep, USUAL | setting) for sweep, settings in SWEEPS.items() for setting in settings]
        rounds = [[times_per_image(folder, *point.values()) for _, point in points] for _ in range(ROUNDS)]
        for (sweep, point), *times in zip(points, *rounds, strict=True):
            training, products = map(min, zip(*times, strict=True))
            rows.append({"sweep": sweep, **point, "us_per_image": training, "products_us_per_image": products})
            print(f"{sweep:>8s}{point[sweep]:>12,d}{training:12.2f} us an image{products:12.2f} its products alone")
        print("net         ms per step  of single numbers  gather   part")
        for name, sizes in {"4 x 500": [500] * 4, "5 x 100": [100] * 5}.items():
            single_numbers = 1, [1] * len(sizes), 1
            times = [
                (
                    step_time(folder, 3072, sizes, 100),
                    step_time(folder, *single_numbers),
                    gather_time(folder, 3072, 100),
                )
                for _ in range(ROUNDS)
            ]
            step, single, gather = map(min, zip(*times, strict=True))
            rows.append({"net": name, "step_ms": step, "single_numbers_ms": single, "gather_ms": gather})
            print(f"{name:10s}  {step:11.2f}  {single:17.3f}  {gather:6.3f}  {(single + gather) / step:5.1%}")
    print("net         images  MB at most  MB needed  ratio")
    nets: dict[str, Callable[[], Model]] = {
        "4 x 500": lambda: FullyConnectedNet([500] * 4, rng=0),
        "convnet": lambda: ThreeLayerConvNet(rng=0),
        "airbench": lambda: Airbench(rng=0),
    }
    for name, make in nets.items():
        for count in (1000, 50_000):
            peak, needed = memory(make(), count, 100)
            rows.append({"memory": name, "images": count, "peak_mb": peak, "needed_mb": needed})
            print(f"{name:10s}  {count:6d}  {peak:10.0f}  {needed:9.0f}  {peak / needed:5.2f}")
    out.mkdir(parents=True, exist_ok=True)
    machine = describe(max(library["num_threads"] for library in threadpool_info()))
    (out / "growth.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    draw(rows, out / "growth.png")
    print(f"the picture is {out / 'growth.png'}")


if __name__ == "__main__":
    main()
