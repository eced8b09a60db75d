"""Where a training step's time goes on the CPU: how much of it each kernel takes.

python benchmarks/parts.py                     about a minute on two cores; without numba the other loops
python benchmarks/parts.py --works "4 x 500"   some of the nets

The steps are those of cpu.py. A kernel that calls another counts without it; what none of them takes is Python's own:
layers, checks, dicts. Looking at the clock around each call takes some microseconds of a step itself.
"""

import argparse
import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import steps

from xpnn import kernels

SECONDS = 6.0  # for each net


class Stopwatch:
    """The seconds that functions took, by name, without those that other watched ones took meanwhile."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._within = [0.0]  # watched seconds within each function that has not returned yet

    def watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function, updated=())
        def call(*args: Any, **kwargs: Any) -> Any:
            self._within.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.perf_counter() - start
                self.seconds[name] += took - self._within.pop()
                self._within[-1] += took

        return call


def parts(net: str) -> tuple[float, dict[str, float]]:
    """Milliseconds of a step, and of each part of it."""
    watch, step = Stopwatch(), steps.xpnn(net)
    for _ in range(3):
        step()
    plain, take = dict(kernels.TABLE), np.take
    names = {entry: entry[0].removeprefix("layers.") for entry in plain if entry[1] == "numpy"}
    try:
        kernels.TABLE.update({entry: watch.watched(name, plain[entry]) for entry, name in names.items()})
        kernels.fast_path.cache_clear()
        np.take = watch.watched("gather", take)
        step()
        watch.seconds.clear()
        times = []
        while sum(times) < SECONDS:
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
    finally:
        np.take = take
        kernels.TABLE.update(plain)
        kernels.fast_path.cache_clear()
    ms = {name: 1e3 * seconds / len(times) for name, seconds in watch.seconds.items()}
    mean = 1e3 * statistics.mean(times)
    return mean, ms | {"Python": mean - sum(ms.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", nargs="+", choices=steps.NETS, default=steps.NETS)
    for net in parser.parse_args().works:
        whole, ms = parts(net)
        print(f"{net}: {whole:.2f} ms")
        for name, part in sorted(ms.items(), key=lambda item: -item[1]):
            print(f"  {name:40s} {part:8.2f} ms  {part / whole:5.1%}")


if __name__ == "__main__":
    main()
