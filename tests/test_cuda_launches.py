"""What a training step asks of a device, counted: each launch costs it some microseconds, however little it does."""

import importlib
import re
from pathlib import Path

import cublaslt_on_cpu
import cudnn_on_cpu
import pytest
import stand_in

import test_cuda
from xpnn.training import Callback

cupy = test_cuda.cupy
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

# Launches of our own, calls of libraries, and CuPy's own functions.
COUNTS = {
    ("5 x 100", "float32"): (11, 17, 1),
    ("5 x 100, batch norm, dropout 0.25", "float32"): (31, 17, 11),
    ("convnet", "float32"): (17, 8, 3),
    ("resnet9", "float16"): (74, 26, 12),
    ("airbench", "float16"): (78, 76, 8),
}


class Counted(Callback):
    """Of a step, once plans are made: launches of our own, calls of libraries, and CuPy's own functions.

    Or of one that is recorded: all that the graph does.
    """

    only_looks = True

    def on_iteration(self, solver):
        if solver.graph_replays:
            self.recorded = len(solver._recorder._recorded._replay._graph._capture.work)
        if solver.iteration == 2:
            self.counts = len(stand_in.launches), len(stand_in.asked), len(stand_in.computed)

    def on_epoch(self, solver, metrics):
        if solver.iteration == 1:
            for seen in (stand_in.launches, stand_in.asked, stand_in.computed):
                seen.clear()


@pytest.fixture
def gpu_steps(cupy, monkeypatch):
    if not BENCHMARKS.exists():
        pytest.skip("the benchmarks are not beside the tests")
    monkeypatch.setattr(stand_in, "watched", False)  # what their kernels access is looked at elsewhere
    monkeypatch.syspath_prepend(BENCHMARKS)
    cublaslt_on_cpu.install()
    cudnn_on_cpu.install()
    return importlib.import_module("gpu_steps")


@pytest.mark.parametrize(("net", "kept"), COUNTS)
def test_a_step_of_a_net_that_is_timed_takes_these_and_no_more(gpu_steps, net, kept):
    counted = Counted()
    gpu_steps.xpnn(net, 2, kept, graph=False, count=4, epochs=1, callbacks=[counted]).train()
    assert counted.counts == COUNTS[net, kept]


def test_the_benchmarks_readme_has_these_counts():
    text = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .* \| (\d+)[^|]* \| (\d+)[^|]* \| (\d+)[^|]* \|$", text, flags=re.MULTILINE)
    assert [tuple(map(int, row)) for row in rows] == list(COUNTS.values())


@pytest.mark.parametrize("net", ["5 x 100", "5 x 100, batch norm, dropout 0.25", "convnet"])
def test_a_recorded_step_takes_one_more_where_it_keeps_running_statistics(gpu_steps, net):
    counted = Counted()
    solver = gpu_steps.xpnn(net, 2, "float32", graph=True, count=6, epochs=1, callbacks=[counted])
    solver.train()
    assert counted.recorded == sum(COUNTS[net, "float32"]) + ("batch norm" in net)
