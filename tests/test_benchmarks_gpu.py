"""The benchmarks of the GPU, as far as they go without one: what is counted, timed by a clock that is told the time."""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    if not BENCHMARKS.exists():
        pytest.skip("the benchmarks are not beside the tests")
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu

    return gpu


class Clock:
    """Epochs of 100, 200, 300, ... ms, and 5 MB more at every look."""

    def __init__(self):
        self.marks, self.looks = 0, 0

    def mark(self):
        self.marks += 1
        return self.marks

    def ms(self, start, end):
        assert end == start + 1
        return 50 * end

    def used(self):
        self.looks += 1
        return 5_000_000 * self.looks


# Multiplications and additions of an image's forward pass, layer by layer.
FULLY_CONNECTED = {
    "5 x 100": [2 * 3072 * 100, *[2 * 100 * 100] * 4, 2 * 100 * 10],
    "4 x 500": [2 * 3072 * 500, *[2 * 500 * 500] * 3, 2 * 500 * 10],
}
CONVNET = [2 * 7 * 7 * 3 * 32 * 32 * 32, 2 * (32 * 16 * 16) * 100, 2 * 100 * 10]
RESNET9 = [
    2 * 9 * 3 * 64 * 32 * 32,
    2 * 9 * 64 * 128 * 32 * 32,
    *[2 * 9 * 128 * 128 * 16 * 16] * 2,
    2 * 9 * 128 * 256 * 16 * 16,
    2 * 9 * 256 * 512 * 8 * 8,
    *[2 * 9 * 512 * 512 * 4 * 4] * 2,
    2 * 512 * 10,
]
AIRBENCH = [
    2 * 9 * 24 * 64 * 31 * 31,
    2 * 9 * 64 * 64 * 15 * 15,
    2 * 9 * 64 * 256 * 15 * 15,
    *[2 * 9 * 256 * 256 * 7 * 7] * 2,
    2 * 9 * 256 * 256 * 3 * 3,
    2 * 256 * 10,
]
WHITENING = 2 * 4 * 3 * 24 * 31 * 31  # forward alone: its filters do not learn


@pytest.mark.parametrize(
    ("net", "an_image"),
    [
        ("5 x 100", 1_474_800),
        ("4 x 500", 10_674_000),
        ("convnet", 24_188_784),
        ("resnet9", 2_272_032_768),
    ],
)
def test_the_operations_are_three_passes_but_for_the_gradient_of_the_images(gpu, net, an_image):
    layers = {**FULLY_CONNECTED, "convnet": CONVNET, "resnet9": RESNET9}[net]
    assert 3 * sum(layers) - layers[0] == an_image
    assert gpu.demand(gpu.Work(net, 100, "float32")).operations == 100 * an_image


def test_the_operations_of_airbench_are_those_of_its_learning_filters_and_of_muon(gpu):
    an_image = 707_777_088
    assert 3 * sum(AIRBENCH) + WHITENING == an_image
    matrices = [(64, 24 * 9), (64, 64 * 9), (256, 64 * 9), *[(256, 256 * 9)] * 3]
    muon = sum(3 * (4 * m * m * n + 2 * m**3) for m, n in matrices)
    assert gpu.demand(gpu.Work("airbench", 2000, "float16")).operations == 2000 * an_image + muon


def test_the_bytes_are_each_products_arrays_and_the_updates(gpu):
    sizes = [3072, 100, 100, 100, 100, 100, 10]
    numbers = 0
    for first, second in itertools.pairwise(sizes):
        numbers += 7 * first + first * second + 7 * second  # forward
        numbers += 7 * second + 7 * first  # the matrix's gradient
        numbers += (first * second + 7 * first) * (first != 3072)  # the input's
    parameters = 3072 * 100 + 4 * 100 * 100 + 100 * 10 + 510
    # A gradient written and read; the parameter and Adam's two averages read and written.
    assert gpu.demand(gpu.Work("5 x 100", 7, "float32")).bytes == 4 * numbers + 4 * 8 * parameters
    assert gpu.demand(gpu.Work("5 x 100", 7, "float16")).bytes == 2 * numbers + 4 * 8 * parameters


def test_the_floor_is_the_larger_of_products_and_memory(gpu):
    import floor

    demand = floor.Demand(operations=3_000_000, bytes=8_000_000)
    assert floor.milliseconds(demand, operations_per_s=1e9, bytes_per_s=8e9) == 3.0
    assert floor.milliseconds(demand, operations_per_s=1e12, bytes_per_s=8e9) == 1.0


def test_epochs_that_warm_up_are_left_out_and_the_others_divided_by_their_steps(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "SECONDS", 3.0)
    found = gpu.measure("xpnn eager", gpu.Work("5 x 100", 4, "float32"), Clock(), backend="numpy", count=20)
    # Four of an epoch's five steps are timed: 300, 400, 500, 600 and 700 ms are less than the 3 s, but with 800 more.
    assert found == {"ms": [75.0, 100.0, 125.0, 150.0, 175.0, 200.0], "peak_mb": 40.0}  # after the last of eight epochs


def test_pytorch_is_timed_in_the_same_way(gpu, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(gpu, "SECONDS", 3.0)
    found = gpu.measure("torch eager", gpu.Work("5 x 100", 4, "float32"), Clock(), device="cpu", count=20)
    assert found == {"ms": [75.0, 100.0, 125.0, 150.0, 175.0, 200.0], "peak_mb": 40.0}  # after the last of eight epochs


@pytest.mark.parametrize(
    ("net", "precision"),
    [("convnet", "bfloat16"), ("convnet", "float16"), ("airbench", "float16"), ("5 x 100", "tf32")],
)
def test_pytorchs_steps_train_in_every_type(gpu, monkeypatch, net, precision):
    torch = pytest.importorskip("torch")
    import gpu_steps
    import steps

    model = steps.torch_net(net)
    monkeypatch.setattr(steps, "torch_net", lambda net: model)
    step = gpu_steps.torch(net, 4, precision, device="cpu", count=8)
    weights = [w for w in model.parameters() if w.requires_grad]
    before = [w.detach().clone() for w in weights]
    step()
    assert all(torch.isfinite(w).all() for w in weights)
    assert all((w != b).any() for w, b in zip(weights, before, strict=True) if w.ndim > 1)


def test_a_row_is_the_median_of_the_processes_medians_beside_the_floor(gpu):
    measured = {"float32": {"products": 1e12, "copy": 1e15}}
    runs = [
        {"ms": [1.0, 2.0, 9.0], "peak_mb": 10.0},
        {"ms": [4.0, 4.0], "peak_mb": 12.0},
        {"ms": [3.0], "peak_mb": 8.0},
    ]
    row = gpu.row(gpu.Work("5 x 100", 100, "float32"), "xpnn eager", runs, measured)
    assert row == {
        "work": "5 x 100",
        "variant": "xpnn eager",
        "batch": 100,
        "dtype": "float32",
        "median_ms": 3.0,
        "images_per_s": pytest.approx(100 / 0.003),
        "floor_ms": pytest.approx(0.14748),
        "peak_mb": 12.0,
        "min_ms": 1.0,
        "runs": 3,
    }
    assert json.loads(json.dumps(row)) == row


def test_a_variant_without_graphs_says_why(gpu, monkeypatch):
    import gpu_steps

    class Plain:
        graph_reason = "a callback needs each loss"

    with pytest.raises(gpu_steps.NotThere, match="no graph: a callback needs each loss"):
        gpu_steps.check_graph(Plain(), wanted=True)
    gpu_steps.check_graph(Plain(), wanted=False)


@pytest.fixture
def run(gpu, monkeypatch, tmp_path):
    """Run the whole script, in which processes and the device are replaced; return its status and the file."""
    import machine

    device = {"device": "none at all", "driver": "1"}
    monkeypatch.setattr(gpu, "no_device", lambda: "")
    monkeypatch.setattr(machine, "describe_device", lambda: dict(device))
    out, began = tmp_path / "gpu.json", iter(range(9))

    class Now:
        @staticmethod
        def now(zone):
            return datetime(2026, 1, 1, next(began), tzinfo=zone)

    monkeypatch.setattr(gpu, "datetime", Now)

    def run(*flags, ask, **changed):
        device.update(changed)
        monkeypatch.setattr(gpu, "ask", ask)
        flags = ["--dtypes", "float32", "--rounds", "2", "--out", str(out), *flags]
        monkeypatch.setattr(sys, "argv", ["gpu.py", *flags])
        status = gpu.main()
        return status, json.loads(out.read_text()) if out.exists() else None

    return run


def answers(*arguments, ms=2.0, **options):
    if arguments[0] == "--rate":
        return {"products": 1e12, "copy": 1e12}
    return {"ms": [ms], "peak_mb": 3.0}


def test_what_fails_is_one_line_and_the_others_go_on(gpu, run, capsys):
    def ask(*arguments, tf32, **options):
        assert not tf32
        if arguments[1] == "torch eager":
            raise gpu.NotThere("OutOfMemoryError: CUDA out of memory")
        return answers(*arguments)

    status, results = run("--works", "5 x 100", "--variants", "xpnn eager", "torch eager", ask=ask)
    assert status == 1
    assert capsys.readouterr().err.splitlines() == [
        f"torch eager, 5 x 100, batch {batch}, float32: OutOfMemoryError: CUDA out of memory" for batch in (100, 1000)
    ]
    assert results["device"] == {"device": "none at all", "driver": "1"}
    assert [(r["variant"], r["batch"], r["runs"]) for r in results["rows"]] == [
        ("xpnn eager", 100, 2),
        ("xpnn eager", 1000, 2),
    ]


def what(results):
    return [(r["work"], r["batch"], r["variant"], r["median_ms"], r["run"][11:13]) for r in results["rows"]]


def test_the_works_may_be_shared_out_among_runs_and_the_rows_of_one_are_of_one_run(run, capsys):
    both, first = ("--variants", "xpnn eager", "xpnn graph"), ("--variants", "xpnn eager")
    run("--works", "5 x 100", *both, ask=answers)
    status, results = run("--works", "convnet", *both, ask=partial(answers, ms=4.0))
    printed = capsys.readouterr()
    assert "\n2 rows, 0 missing; 6 in " in printed.out
    assert printed.err == ""
    fully_connected = [("5 x 100", batch, v, 2.0, "00") for batch in (100, 1000) for v in both[1:]]
    convnet = [("convnet", 100, v, 4.0, "01") for v in both[1:]]
    assert status == 0
    assert what(results) == [*fully_connected, *convnet]
    _, results = run("--works", "5 x 100", *first, ask=partial(answers, ms=3.0))
    assert what(results) == [*convnet, *(("5 x 100", batch, "xpnn eager", 3.0, "02") for batch in (100, 1000))]
    assert list(results["runs"]) == ["2026-01-01T01:00:00+00:00", "2026-01-01T02:00:00+00:00"]
    assert results["runs"]["2026-01-01T02:00:00+00:00"] == {
        "mode": "reduce-overhead",
        "rates": {"float32": {"products": 1e12, "copy": 1e12}},
    }
    assert capsys.readouterr().err == ""


def test_rows_of_another_device_or_driver_do_not_stay(run, capsys):
    run("--works", "5 x 100", "--variants", "xpnn eager", ask=answers)
    _, results = run("--works", "convnet", "--variants", "xpnn eager", ask=answers, driver="2", cuda="13")
    assert what(results) == [("convnet", 100, "xpnn eager", 2.0, "01")]
    assert results["device"] == {"device": "none at all", "driver": "2", "cuda": "13"}
    assert capsys.readouterr().err.endswith("gpu.json: it is of another driver, cuda, and begins anew\n")


@pytest.mark.parametrize("text", ["", "[]", '{"device": null}', '{"device": {"device": "none at all", "driver": "1"}}'])
def test_a_file_of_something_else_begins_anew(gpu, run, tmp_path, capsys, text):
    (tmp_path / "gpu.json").write_text(text)
    _, results = run("--works", "convnet", "--variants", "xpnn eager", ask=answers)
    assert what(results) == [("convnet", 100, "xpnn eager", 2.0, "00")]
    assert capsys.readouterr().err.endswith("gpu.json: it holds no results of this script, and begins anew\n")


def test_works_for_which_no_time_is_left_are_named_and_what_was_measured_is_kept(gpu, run, monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(gpu, "time", argparse.Namespace(perf_counter=lambda: clock[0]))

    def ask(*arguments, **options):
        clock[0] += 10
        return answers(*arguments)

    status, results = run("--works", "5 x 100", "convnet", "--variants", "xpnn eager", "--seconds", "65", ask=ask)
    # 30 s with the rates, then 20; 15 are left.
    assert [(r["work"], r["batch"]) for r in results["rows"]] == [("5 x 100", 100), ("5 x 100", 1000)]
    assert capsys.readouterr().err == ("convnet, batch 100, float32: not run: 15 s are left, and a work takes 30 s\n")
    assert status == 1


def test_a_person_is_told_how_many_processes_there_will_be(run, capsys):
    run("--works", "5 x 100", "convnet", "--variants", "xpnn eager", "torch compiled", ask=answers)
    # The rates, and 3 works in 2 variants and 2 rounds: each 15 s; PyTorch compiles each work for 105 s more.
    words = "13 processes, perhaps 9 minutes: 3 works, 2 variants, 2 rounds"
    assert capsys.readouterr().out.splitlines()[1] == words


def test_only_a_process_that_tunes_kernels_may_take_long(gpu, run):
    seconds = {}

    def ask(*arguments, **options):
        seconds[arguments[:2]] = options["seconds"]
        return answers(*arguments)

    flags = ("--works", "convnet", "--variants", "xpnn graph", "torch compiled")
    run(*flags, "--mode", "max-autotune", ask=ask)
    assert seconds == {
        ("--rate", "float32"): 300,
        ("--one", "xpnn graph"): 300,
        ("--one", "torch compiled"): 1800,
    }
    run(*flags, ask=ask)
    assert seconds["--one", "torch compiled"] == 300


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch.compile itself imports
def test_pytorchs_compiled_step_is_its_eager_one(gpu):
    """But for the graph, which only a device captures."""
    torch = pytest.importorskip("torch")
    if shutil.which("g++") is None:
        pytest.skip("torch.compile asks for a C++ compiler")
    import gpu_steps
    import steps

    weights = []
    for mode in (None, "reduce-overhead"):
        torch.manual_seed(0)
        model = steps.torch_net("5 x 100")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(steps, "torch_net", lambda net, model=model: model)
            step = gpu_steps.torch("5 x 100", 4, "float32", mode=mode, device="cpu", count=8)
        for _ in range(3):
            step()
        weights.append([w.detach().clone() for w in model.parameters()])
    for eager, compiled in zip(*weights, strict=True):
        # Adam's steps are of about the rate however small a gradient is: a few round to the other side of 0.
        assert ((eager - compiled).abs() > 1e-6).float().mean() < 0.01


def test_work_is_captured_once_and_then_replayed(gpu, monkeypatch):
    import gpu_steps

    done = []

    def graph_of(work):
        done.append("captured")
        return lambda: done.append("replayed")

    monkeypatch.setattr(gpu_steps, "graph_of", graph_of)
    for device in ("cpu", "cuda"):
        captured = gpu_steps.Captured(lambda: done.append("launched"), device)
        captured()
        captured()
    assert done == ["launched", "launched", "captured", "replayed", "replayed"]


def test_rates_on_the_device_are_those_on_the_host(gpu):
    """Those of airbench, which differ from step to step; the first bias stays from a step on."""
    torch = pytest.importorskip("torch")
    import torch_airbench
    import torch_nets

    nets = []
    for on_device in (False, True):
        torch.manual_seed(0)
        net = torch_nets.Airbench((4, 4, 4))
        training = torch_airbench.Training(net, 4, 8, 0.1)
        if on_device:
            training.keep_rates_on("cpu")
        for i in range(6):
            rng = np.random.default_rng(i)
            images = torch.tensor(rng.standard_normal((4, 3, 32, 32), dtype="float32"))
            training.step(images, torch.tensor(rng.integers(0, 10, 4)))
        nets.append(net)
    for host, device in zip(*(net.parameters() for net in nets), strict=True):
        # Rates of float32 in place of Python's, over six steps whose pooling magnifies roundings.
        torch.testing.assert_close(host, device, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("accuracy", "time_to"), [([0.93, 0.95], 3.0), ([0.93, 0.94], None)])
def test_a_training_counts_where_it_reaches_the_accuracy_on_average(gpu, accuracy, time_to):
    args = argparse.Namespace(epochs=8, time_to=0.94)
    row = gpu.training_row("torch eager", args, {"seconds": [4.0, 2.0], "accuracy": accuracy})
    assert row["time_to_s"] == time_to
    assert (row["median_s"], row["min_s"], row["trainings"]) == (3.0, 2.0, 2)
    assert row["images_per_s"] == 8 * 50_000 / 3


def test_a_process_says_what_fails_in_one_line(gpu, monkeypatch, capsys):
    def measure(variant, work, **options):
        raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(gpu, "measure", measure)
    args = argparse.Namespace(rate=None, one=["torch compiled", "5 x 100", "100", "float32"], mode="default")
    assert gpu.answer(args) == 1
    assert capsys.readouterr().err == "RuntimeError: CUDA error: out of memory\n"


def test_a_process_that_fails_or_takes_too_long_is_not_there(gpu):
    with pytest.raises(gpu.NotThere, match=r"\w+Error: |is not installed"):  # no device, or no such type
        gpu.ask("--rate", "float7", seconds=100)
    with pytest.raises(gpu.NotThere, match="not done after 0 s"):
        gpu.ask("--rate", "float7", seconds=0.01)
    with pytest.raises(gpu.NotThere, match="no time is left"):
        gpu.ask("--rate", "float7", seconds=0)


@pytest.mark.parametrize("script", ["gpu.py", "gpu_check.py"])
def test_without_a_device_a_script_is_one_line_and_status_2(gpu, script):
    from xpnn import backend

    if backend.get("cupy").is_available():
        pytest.skip("there is a device")
    done = subprocess.run([sys.executable, BENCHMARKS / script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{script}: expected a CUDA device; received none (")
    assert done.stderr.count("\n") == 1


@pytest.fixture
def speed_run(gpu):
    import speed_run

    return speed_run


def test_the_cut_outs_are_of_the_reflection_up_to_two_pixels_away(speed_run):
    torch = pytest.importorskip("torch")
    image = torch.arange(36.0).reshape(1, 1, 6, 6)
    padded = torch.nn.functional.pad(image, (2,) * 4, "reflect")
    possible = [padded[:, :, i : i + 6, j : j + 6] for i in range(5) for j in range(5)]
    torch.manual_seed(0)
    found = speed_run.crops(padded.expand(400, 1, 10, 10), 2)
    assert found.shape == (400, 1, 6, 6)
    which = [next(i for i, p in enumerate(possible) if torch.equal(p[0], each)) for each in found]
    assert set(which) == set(range(25))


def test_every_second_epoch_is_mirrored(speed_run):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    X = torch.zeros(4, 1, 8, 8)
    X[:, :, :, :4] = torch.arange(1.0, 5.0)[:, None, None, None]  # each image bright on the left
    epochs = list(speed_run.batches(X, torch.arange(4), 4, 2))
    assert len(epochs) == 2
    sides = []
    for images, labels in epochs:
        brighter = images[:, 0, :, :2].sum((1, 2)) > images[:, 0, :, -2:].sum((1, 2))
        sides.append(brighter[labels.argsort()])
    assert torch.equal(sides[0], ~sides[1])


def test_both_sides_train_and_say_their_accuracy(speed_run, monkeypatch):
    pytest.importorskip("torch")
    from xpnn.data import cifar10

    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(10), 4)
    X = (rng.integers(0, 60, (40, 3, 32, 32)) + 19 * y[:, None, None, None]).astype("uint8")  # the brighter, the higher
    monkeypatch.setattr(cifar10, "read_cifar10", lambda folder: (X, y, X[:20], y[:20], ()))
    small = {"batch": 10, "widths": (8, 16, 16)}
    for variant, place in (("xpnn eager", {"backend": "numpy"}), ("torch eager", {"device": "cpu"})):
        found = speed_run.train(variant, "float32", "", 4, 1, **place, **small)
        assert len(found["seconds"]) == len(found["accuracy"]) == 1
        assert found["seconds"][0] > 0
        assert found["accuracy"][0] >= 0.3, variant  # by chance it is 0.1


# ---- gpu_check.py


@pytest.fixture
def gpu_check(gpu):
    import gpu_check

    return gpu_check


def test_a_command_that_takes_too_long_is_interrupted_and_has_failed(gpu_check, capfd):
    code = "import time; print('begun', flush=True)\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('3 passed')"
    outcome = gpu_check.run("tests", [sys.executable, "-c", code], 3.0)
    assert not outcome.passed
    assert outcome.words == "cut off after 3 s: 3 passed"
    assert "begun\n" in capfd.readouterr().out


def test_a_command_is_interrupted_once(gpu_check):
    lines = ["import signal, time", "times = []", "signal.signal(signal.SIGINT, lambda *_: times.append(1))"]
    lines += ["while not times: time.sleep(0.01)", "time.sleep(1)", "print('interrupted', len(times))"]
    assert gpu_check.run("tests", [sys.executable, "-c", "\n".join(lines)], 3.0).words.endswith(": interrupted 1")


def test_a_command_that_does_not_mind_is_killed_and_so_is_what_it_has_started(gpu_check, monkeypatch):
    monkeypatch.setattr(gpu_check, "PATIENCE", 0.5)
    ignores = "import signal, subprocess; signal.signal(signal.SIGINT, signal.SIG_IGN); print('begun', flush=True)"
    code = f"{ignores}; subprocess.run(['sleep', '60'])"
    outcome = gpu_check.run("tests", [sys.executable, "-c", code], 3.0)  # ends once nobody holds its output
    assert not outcome.passed
    assert outcome.words.endswith("s: begun")  # and no KeyboardInterrupt
    assert outcome.seconds < 30


def is_there(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_command_does_not_go_on_after_ctrl_c(gpu_check, monkeypatch):
    seen = []

    def interrupted(line, **options):
        seen.append(line)
        if line.strip().isdigit():
            raise KeyboardInterrupt

    monkeypatch.setattr(gpu_check, "print", interrupted, raising=False)
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        gpu_check.run("tests", [sys.executable, "-c", code], 60.0)
    began = time.perf_counter()
    while is_there(int(seen[-1])):
        assert time.perf_counter() - began < 30
        time.sleep(0.01)


def test_a_command_does_not_go_on_where_the_script_is_terminated(gpu_check):
    command = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"]
    code = f"import sys; sys.path[:0] = {[str(BENCHMARKS), *sys.path]}; import gpu_check as g; "
    code += (
        f"g.gpu.options = lambda *_: None; g.no_device = lambda: ''; g.tests = lambda *_: [g.run('a', {command}, 60)]; "
    )
    code += "sys.argv = ['gpu_check.py']; g.main()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        child = next(int(line) for line in process.stdout if line.strip().isdigit())
        process.terminate()
        process.stdout.read()
    assert not is_there(child)


def test_a_commands_last_line_and_status_are_its_outcome(gpu_check):
    for status, passed in ((0, True), (1, False)):
        outcome = gpu_check.run(
            "tests", [sys.executable, "-c", f"print('== 5 passed =='); raise SystemExit({status})"], 60
        )
        assert (outcome.passed, outcome.words) == (passed, "5 passed")
    assert gpu_check.run("tests", ["false"], 0.0).words == "no time was left"


def test_the_kernels_tests_come_first_and_none_twice(gpu_check, monkeypatch):
    commands = []
    monkeypatch.setattr(gpu_check, "run", lambda name, command, seconds: commands.append((name, command)))
    gpu_check.tests(until=1e9, share=1.0, workers=1)
    (_, first), (_, on_arrays), (_, others) = commands
    assert "tests/test_kernels.py" in first
    assert "tests/training/test_fast_paths.py" in first
    assert first[3:5] == on_arrays[3:5] == others[3:5] == ["--backend", "cupy"]
    assert (on_arrays[-2:], others[-2:]) == (["-k", "cupy"], ["-k", "not cupy"])
    assert on_arrays[:-2] == others[:-2]
    assert "-n" not in first
    assert {f"--ignore={path}" for path in first if path.startswith("tests/")} <= set(others)


def test_a_small_check_is_a_line_and_its_failure_another(gpu_check, monkeypatch, capsys):
    def fails():
        raise AssertionError("differs by 3.0 times\nwhat roundings explain")

    def breaks():
        raise RuntimeError("an illegal address")

    checks = {"good": lambda: "all of it", "wrong": fails, "broken": breaks}
    monkeypatch.setattr(gpu_check.device_checks, "CHECKS", checks)
    assert [gpu_check.answer(name) for name in checks] == [0, 1, 1]
    assert capsys.readouterr().out.splitlines() == [
        "all of it",
        "differs by 3.0 times what roundings explain",
        "RuntimeError: an illegal address",
    ]


def test_one_failure_is_exit_status_1_and_the_table_comes_last(gpu_check, monkeypatch, capsys):
    def run(name, command, seconds, folder=None):
        return gpu_check.Outcome(name, name != "xpnn check", "its last line", 2.0)

    monkeypatch.setattr(gpu_check, "no_device", lambda: "")
    monkeypatch.setattr(gpu_check, "run", run)
    monkeypatch.setattr(gpu_check, "_check", lambda name, seconds: (True, ""))
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--seconds", "100"])
    assert gpu_check.main() == 1
    *_, kernels, on_arrays, others, check, small, benchmarks = capsys.readouterr().out.splitlines()
    assert kernels == "ok           2 s  tests of kernels and graphs: its last line"
    assert on_arrays == "ok           2 s  tests on CuPy's arrays: its last line"
    assert others == "ok           2 s  all other tests: its last line"
    assert check == "FAILED       2 s  xpnn check: its last line"
    assert small.endswith(f"small checks: {len(gpu_check.device_checks.CHECKS)} ok, 0 FAILED")
    assert benchmarks == "ok           2 s  benchmarks: its last line"


@pytest.fixture
def commands(gpu_check, monkeypatch):
    """Run the whole script, in which no command is run; return its status and the commands by name."""

    def run(*flags):
        commands = {}

        def note(name, command, seconds, folder=gpu_check.ROOT):
            commands[name] = command
            assert folder == (Path.cwd() if name == "benchmarks" else gpu_check.ROOT)
            return gpu_check.Outcome(name, True, "", 0.0)

        monkeypatch.setattr(gpu_check, "no_device", lambda: "")
        monkeypatch.setattr(gpu_check, "run", note)
        monkeypatch.setattr(gpu_check, "_check", lambda name, seconds: (True, ""))
        monkeypatch.setattr(sys, "argv", ["gpu_check.py", *flags])
        return gpu_check.main(), commands

    return run


def test_what_follows_two_dashes_is_for_the_benchmarks(commands, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("cifar").mkdir()
    more = ("--time-to", "0.94", "--data", "cifar", "--works", "airbench", "4 x 500", "--dtypes", "float16")
    status, found = commands("--seconds", "100", "--out", "found.json", "--", *more)
    assert status == 0
    _, script, *flags = found["benchmarks"]
    assert script.endswith("gpu.py")
    assert flags[0] == "--seconds"
    assert flags[2:] == ["--out", "found.json", *more]
    assert len(commands("--seconds", "100")[1]["benchmarks"]) == 4
    assert not {"--time-to", "--works"} & {word for name in found if name != "benchmarks" for word in found[name]}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--time-to", "0.94"), "--time-to: expected --data FOLDER, which holds CIFAR-10"),
        (("--time-to", "0.94", "--data", "nowhere"), "--data: expected a folder or archive; there is no nowhere"),
        (("--works", "5 x 99"), "invalid choice: '5 x 99'"),
        (("--rounds", "0"), "--rounds: expected a number above 0; received 0"),
        (("--time-to", "94", "--data", "."), "--time-to: expected an accuracy between 0 and 1; received 94.0"),
        (("--out", "nowhere/a.json"), "--out: expected a file in a folder that exists; received nowhere/a.json"),
    ],
)
def test_options_that_the_benchmarks_refuse_are_refused_before_anything_runs(commands, capsys, more, words):
    with pytest.raises(SystemExit) as stop:
        commands("--", *more)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


# ---- device_checks.py, what needs no emulation of CUDA: that is in test_cuda_checks.py


def test_a_check_of_products_notices_factors_rounded_to_10_bits(gpu):
    import device_checks

    class OnDevice(np.ndarray):
        def get(self):
            return np.asarray(self)

    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((1000, 1000)).astype("float32") for _ in range(2))
    expected = a.astype("float64") @ b
    device_checks.near((a @ b).view(OnDevice), expected, 1000, "f")
    rounded = (a.view("uint32") & np.uint32(0xFFFFE000)).view("float32")
    with pytest.raises(AssertionError, match="times what roundings explain"):
        device_checks.near((rounded @ b).view(OnDevice), expected, 1000, "f")


def test_cupy_has_what_the_checks_and_clocks_ask_for(gpu):
    cupy = pytest.importorskip("cupy")
    for owner, names in {
        cupy.cuda: "Device Event Stream get_elapsed_time",
        cupy.cuda.Device: "synchronize",
        cupy.cuda.Event: "record synchronize",
        cupy.cuda.Stream: "synchronize",
        cupy.cuda.MemoryPool: "set_limit",
        cupy.cuda.runtime: "memGetInfo getDeviceProperties driverGetVersion runtimeGetVersion",
        cupy: "copyto arange full",
    }.items():
        assert [name for name in names.split() if not hasattr(owner, name)] == []
