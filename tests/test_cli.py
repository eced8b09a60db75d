"""The command line as a user meets it: what it writes, and one clear line for what is wrong."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from xpnn import backend as backends
from xpnn import cli
from xpnn.backend import Backend
from xpnn.data import load_cifar10, load_digits
from xpnn.training import Callback, Solver, checkpoint


@pytest.fixture
def xpnn(monkeypatch, capsys, tmp_path):
    """Run a command line in an empty folder; return exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XPNN_BACKEND", raising=False)
    monkeypatch.delenv("XPNN_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["xpnn", *map(str, args)])
        monkeypatch.setattr(cli, "console", Console(soft_wrap=True))  # as wide as COLUMNS says now
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return run


QUICK = ("--backend", "numpy", "--hidden", "16", "--epochs", "2", "--num-train", "200")


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """A stand-in for CIFAR-10 in the official layout: 20 gray images a file, brighter for higher labels."""
    folder = tmp_path_factory.mktemp("data") / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for i, name in enumerate(names, start=1):
        labels = np.arange(20) % 10
        images = (25 * labels[:, None] + rng.integers(0, 20, (20, 3072))).astype(np.uint8)
        label = b"testing batch 1 of 1" if name == "test_batch" else f"training batch {i} of 5".encode()
        batch = {b"batch_label": label, b"labels": labels.tolist(), b"data": images}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=3))
    meta = {b"num_cases_per_batch": 20, b"label_names": [str(i).encode() for i in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=3))
    return folder


def test_train_writes_config_metrics_curves_and_checkpoints(xpnn, tmp_path):
    status, out, err = xpnn("train", *QUICK, "--out", "run")
    assert (status, err) == (0, "")
    assert "epoch 2/2  loss " in out
    assert "best validation accuracy 0." in out
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "best.safetensors",
        "config.json",
        "curves.png",
        "last.safetensors",
        "metrics.jsonl",
    ]
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    keys = ["epoch", "iteration", "loss", "train_acc", "val_acc", "learning_rate", "seconds", "peak_mb"]
    assert all(list(line) == keys for line in lines)
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["settings"]["hidden"] == [16]
    assert config["versions"]["numpy"] == np.__version__
    assert (tmp_path / "run/curves.png").read_bytes().startswith(b"\x89PNG")


def test_every_flag_reaches_the_run(xpnn, tmp_path):
    status, _, _ = xpnn(
        *("train", "digits", "--model", "fc", "--hidden", "9,8", "--epochs", 1, "--batch-size", 50),
        *("--optimizer", "nesterov", "--lr", 0.02, "--lr-decay", 0.5, "--schedule", "one-cycle:peak=0.2"),
        *("--momentum", 0.8, "--weight-decay", 0.01, "--clip-norm", 5, "--accumulate", 2, "--ema", 0.5),
        *("--label-smoothing", 0.2, "--augment", "crop:1:zero", "--tta", "mirror", "--keep-last", "--reg", 0.1),
        *("--dropout", 0.1, "--batchnorm", "--weight-scale", 0.3, "--preprocess", "center", "--patience", 4),
        *("--sampling", "sequential", "--num-train", 100, "--dtype", "float64", "--seed", 7, "--out", "run"),
        *("--backend", "numpy"),
    )
    assert status == 0
    assert json.loads((tmp_path / "run/config.json").read_text())["settings"] == {
        "dataset": "digits",
        "model": "fc",
        "hidden": [9, 8],
        "epochs": 1,
        "batch_size": 50,
        "optimizer": "nesterov",
        "lr": 0.02,
        "momentum": 0.8,
        "weight_decay": 0.01,
        "clip_norm": 5.0,
        "accumulate": 2,
        "ema": 0.5,
        "lr_decay": 0.5,
        "schedule": "one-cycle:peak=0.2",
        "label_smoothing": 0.2,
        "augment": "crop:1:zero",
        "tta": "mirror",
        "drop_last": False,
        "reg": 0.1,
        "dropout": 0.1,
        "batchnorm": True,
        "weight_scale": 0.3,
        "preprocess": "center",
        "patience": 4,
        "sampling": "sequential",
        "num_train": 100,
        "dtype": "float64",
        "seed": 7,
        "backend": "numpy",
        "data": None,
        **dict.fromkeys(("widths", "filters", "filter_size", "patch", "dim", "depth", "heads")),
    }
    arrays, _ = checkpoint.load(tmp_path / "run/best.safetensors")
    assert arrays["W1"].shape == (64, 9)
    assert {array.dtype.name for array in arrays.values()} == {"float64"}


def test_train_without_out_numbers_its_folders(xpnn, tmp_path):
    for _ in range(2):
        assert xpnn("train", *QUICK)[0] == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["digits-1", "digits-2"]


@pytest.fixture
def train_cifar(xpnn, cifar, monkeypatch):
    """Run `xpnn train cifar10` on the stand-in."""
    # 1,000 of the official 50,000 training images are for validation; the stand-in has 100 in all.
    monkeypatch.setattr(
        "xpnn.data.load",
        lambda name, root: load_digits() if name == "digits" else load_cifar10(root, num_validation=20),
    )
    return lambda *args: xpnn("train", "cifar10", "--data", cifar, "--backend", "numpy", *args)


def test_train_takes_cifar10_from_data(train_cifar):
    status, out, _ = train_cifar("--hidden", "8", "--epochs", 1, "--batch-size", 10)
    assert status == 0
    assert "cifar10: 80 training images" in out


SMALL_NETS = {
    "fc": ("--hidden", "8,8"),
    "two-layer": ("--hidden", "8"),
    "convnet": ("--filters", 4, "--filter-size", 3, "--hidden", 8),
    "resnet20": ("--widths", "2,2,2"),
    "resnet56": ("--widths", "2,2,2"),
    "resnet9": ("--widths", "2"),
    "airbench": ("--widths", "4,4,4"),
    "vit": ("--patch", 8, "--dim", 8, "--depth", 1, "--heads", 2),
}


@pytest.mark.parametrize("model", SMALL_NETS)
def test_every_model_trains_an_epoch(train_cifar, tmp_path, model):
    flags = ("--epochs", 1, "--batch-size", 40, "--out", "run")
    status, out, err = train_cifar("--model", model, *SMALL_NETS[model], *flags)
    assert (status, err) == (0, "")
    assert "epoch 1/1  loss " in out
    settings = json.loads((tmp_path / "run/config.json").read_text())["settings"]
    for name, value in zip(SMALL_NETS[model][::2], SMALL_NETS[model][1::2], strict=True):
        saved = settings[name.removeprefix("--").replace("-", "_")]
        assert (",".join(map(str, saved)) if isinstance(saved, list) else saved) in (value, str(value))


@pytest.mark.parametrize("model", ["convnet", "resnet20", "vit"])
def test_nets_of_images_train_on_digits(xpnn, model):
    assert xpnn("train", "--model", model, "--backend", "numpy", "--epochs", 1, "--num-train", 64)[0] == 0


def test_summary_shows_the_net_and_writes_nothing(train_cifar, tmp_path):
    status, out, _ = train_cifar("--model", "resnet20", "--summary")
    assert status == 0
    assert "layer3.block3.conv2 (Conv)" in out
    assert "in all" in out
    assert list(tmp_path.iterdir()) == []


def test_the_best_validation_accuracy_says_how_it_was_measured(train_cifar):
    out = train_cifar("--model", "airbench", *SMALL_NETS["airbench"], "--epochs", 1, "--batch-size", 40)[1]
    assert re.search(r"best validation accuracy \d\.\d{4} with mirror-translate after", out)


def test_resume_continues_to_the_new_number_of_epochs(xpnn, tmp_path):
    flags = (*QUICK, "--dropout", 0.2, "--schedule", "constant")
    xpnn("train", *flags, "--out", "straight", "--epochs", 4)
    xpnn("train", *flags, "--out", "run")
    status, out, _ = xpnn("train", "--resume", "run", "--epochs", 4)
    assert status == 0
    assert "epoch 3/4" in out
    assert "epoch 2/4" not in out
    metrics = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("run", "straight")
    ]
    assert len(metrics[0]) == 4
    assert metrics[0] == metrics[1]


class Interrupt(Callback):
    """Ctrl-C after some iterations."""

    def __init__(self, iteration):
        self.iteration = iteration

    def on_iteration(self, solver):
        if solver.iteration == self.iteration:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("iteration", [2, 3], ids=["at the end of an epoch", "within one"])
def test_airbench_resumes_as_if_it_had_never_stopped(train_cifar, xpnn, tmp_path, monkeypatch, iteration):
    flags = ("--model", "airbench", *SMALL_NETS["airbench"], "--epochs", 2, "--batch-size", 30, "--ema", 0.9)
    flags = (*flags, "--augment", "alternating-flip,crop:2,cutout:8,mixup:0.2", "--accumulate", 2, "--tta", "none")
    assert train_cifar(*flags, "--out", "straight")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(cli.report, "EpochLines", lambda console: Interrupt(iteration))
        assert train_cifar(*flags, "--out", "run")[0] == 130
    assert xpnn("train", "--resume", "run")[0] == 0
    for name in ("last", "best"):
        expected, received = (checkpoint.load(tmp_path / run / f"{name}.safetensors")[0] for run in ("straight", "run"))
        assert expected.keys() == received.keys()
        for key in expected:
            np.testing.assert_array_equal(received[key], expected[key], err_msg=key)


def test_ctrl_c_saves_what_was_learned_and_says_how_to_go_on(xpnn, tmp_path, monkeypatch):
    monkeypatch.setattr(cli.report, "EpochLines", lambda console: Interrupt(9))
    status, out, _ = xpnn("train", *QUICK, "--out", "run")
    assert status == 130
    assert "xpnn train --resume run trains on" in out
    assert checkpoint.load(tmp_path / "run/last.safetensors")[1]["iteration"] == 9
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert xpnn("train", "--resume", "run")[0] == 0


def test_a_loss_that_is_no_number_is_one_line_and_status_1(xpnn):
    status, out, err = xpnn("train", *QUICK, "--optimizer", "sgd", "--lr", "1e30", "--dtype", "float32")
    assert (status, err) == (1, "")
    assert "stopped: the loss is nan at iteration" in out
    assert "first in layer affine" in out


def accuracies(out):
    """Each column of `xpnn evaluate`, and its number for all classes."""
    rows = [re.split("[│┃]", line)[1:-1] for line in out.splitlines() if line.startswith(("│", "┃"))]
    return {name.strip(): number.strip() for name, number in zip(rows[0], rows[-1], strict=True)}


def test_evaluate_measures_the_best_weights(xpnn):
    out = xpnn("train", *QUICK, "--out", "run")[1]
    best = out.split("best validation accuracy ")[1].split()[0]
    status, out, _ = xpnn("evaluate", "run")
    assert status == 0
    assert accuracies(out)["validation"] == best


def test_evaluate_shows_test_time_augmentation_beside_the_plain_accuracy(train_cifar, xpnn):
    train_cifar("--model", "convnet", *SMALL_NETS["convnet"], "--epochs", 1, "--batch-size", 40, "--out", "run")
    plain = xpnn("evaluate", "run")[1]
    status, out, _ = xpnn("evaluate", "run", "--tta", "mirror-translate")
    assert status == 0
    header = next(line for line in out.splitlines() if "class" in line)
    assert header.count("validation") == header.count("test") == 2
    assert "mirror-translate" in header
    total, total_plain = (next(line for line in text.splitlines() if "all" in line) for text in (out, plain))
    assert total.split("│")[1:4] == total_plain.split("│")[1:4]
    assert len(total.split("│")) == 7


def test_evaluate_takes_the_runs_own_test_time_augmentation(train_cifar, xpnn):
    flags = ("--model", "airbench", *SMALL_NETS["airbench"], "--epochs", 1, "--batch-size", 40, "--out", "run")
    best = train_cifar(*flags)[1].split("best validation accuracy ")[1].split()[0]
    assert accuracies(xpnn("evaluate", "run")[1])["validation, mirror-translate"] == best


def test_evaluate_takes_weights_that_name_no_epoch(xpnn, tmp_path):
    xpnn("train", *QUICK, "--out", "run")
    arrays, _ = checkpoint.load(tmp_path / "run/best.safetensors")
    checkpoint.save(tmp_path / "run/best.safetensors", arrays, {})
    status, out, _ = xpnn("evaluate", "run")
    assert status == 0
    assert "accuracy of run, on numpy" in out


@pytest.mark.parametrize("command", [("evaluate", "c"), ("train", "--resume", "c")], ids=" ".join)
def test_a_comparison_is_no_run(xpnn, command):
    flags = ("--rules", "sgd", "--epochs", 1, "--num-train", 100, "--backend", "numpy", "--out", "c")
    assert xpnn("compare", *flags)[0] == 0
    status, _, err = xpnn(*command)
    assert status == 2
    assert err.endswith(" c: expected the folder of `xpnn train`; its config.json has no settings\n")
    assert ("--resume: " in err) == ("--resume" in command)


def test_a_config_that_cannot_be_read_is_said_so(xpnn, tmp_path):
    (tmp_path / "run/config.json").mkdir(parents=True)
    status, _, err = xpnn("evaluate", "run")
    assert status == 2
    assert err.startswith("xpnn: run/config.json: cannot be read (")
    assert err.count("\n") == 1


def test_evaluate_names_an_unknown_level(xpnn):
    xpnn("train", *QUICK, "--out", "run")
    status, _, err = xpnn("evaluate", "run", "--tta", "rotate")
    assert (status, err) == (
        2,
        "xpnn: --tta: expected one of none, mirror, mirror-translate; received 'rotate'\n",
    )


def test_schedule_draws_every_named_one(xpnn, tmp_path):
    status, out, err = xpnn("schedule")
    assert (status, err) == (0, "")
    names = [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")]
    assert names == [
        "constant",
        "linear",
        "cosine",
        "step",
        "exponential",
        "one-cycle",
        "warmup-linear",
        "warmup-cosine",
    ]
    assert (tmp_path / "schedules.png").read_bytes().startswith(b"\x89PNG")


def test_schedule_takes_what_train_takes(xpnn, tmp_path):
    status, out, _ = xpnn("schedule", "piecewise:0=0.2,0.5=1,1=0", "linear", "--epochs", 20, "--out", "s.png")
    assert status == 0
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert cells == [
        ["piecewise:0=0.2,0.5=1,1=0", "0.20", "0.36", "0.60", "1.00", "0.50", "0.20", "0.00"],
        ["linear", "1.00", "0.90", "0.75", "0.50", "0.25", "0.10", "0.00"],
    ]
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("sine",),
            "schedule: expected one of constant, linear, cosine, step, exponential, one-cycle, warmup-linear, "
            "warmup-cosine, piecewise:0=0.2,0.5=1,1=0; received 'sine'\n",
        ),
        (("step:0.1,0.2,factor=1e200",), "schedule 'step:0.1,0.2,factor=1e200': steps: expected a factor above 0"),
        (("one-cycle:peak=2",), "schedule 'one-cycle:peak=2': one-cycle: expected peak to be above 0 and below 1"),
        (("--epochs", 0), "--epochs: expected a whole number of at least 1; received 0"),
        (("--out", "a.pdf"), "--out: expected a .png in a folder that exists; received a.pdf"),
        (("--out", "nowhere/a.png"), "--out: expected a .png in a folder that exists; received nowhere/a.png"),
    ],
)
def test_schedule_says_what_is_wrong_in_one_line(xpnn, tmp_path, arguments, message):
    status, _, err = xpnn("schedule", *arguments)
    assert status == 2
    assert err.startswith(f"xpnn: {message}")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_cannot_be_written_is_named_before_the_table(xpnn, tmp_path):
    (tmp_path / "a.png").mkdir()
    assert xpnn("schedule", "--out", "a.png") == (2, "", "xpnn: --out: cannot write to a.png: Is a directory\n")


@pytest.mark.parametrize("columns", [60, 80])
def test_tables_fit_a_narrow_terminal_with_whole_numbers(xpnn, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    for command, numbers in ((("schedule",), r"[01]\.\d\d"), (("check", "--backend", "numpy"), r"\de-\d\d|0e\+00|")):
        rows = [line for line in xpnn(*command)[1].splitlines() if line.startswith("│")]
        assert {len(row) <= columns for row in rows} == {True}
        cells = [cell.strip() for row in rows for cell in row.split("│")[2:-1]]
        assert [cell for cell in cells if not re.fullmatch(numbers, cell)] == []


def test_compare_names_a_rate_that_is_impossible_by_its_own_flag(xpnn):
    assert xpnn("compare", "--rules", "sgd:-1")[::2] == (
        2,
        "xpnn: --rules: expected a finite number above 0; received -1.0\n",
    )


def test_compare_starts_all_rules_from_the_same_weights(xpnn, tmp_path):
    rules = "sgd,adam:0.002"
    status, out, _ = xpnn("compare", "digits", "--rules", rules, "--epochs", 1, "--out", "c", "--backend", "numpy")
    assert status == 0
    assert "0.01" in next(line for line in out.splitlines() if "│ sgd" in line)
    assert "0.002" in next(line for line in out.splitlines() if "│ adam" in line)
    assert (tmp_path / "c/comparison.png").read_bytes().startswith(b"\x89PNG")
    histories = json.loads((tmp_path / "c/comparison.json").read_text())
    first, second = (histories[rule]["loss_history"] for rule in rules.split(","))
    assert first[0] == second[0]
    assert first[1] != second[1]


def test_compare_takes_another_model(xpnn, tmp_path):
    flags = ("--model", "convnet", "--epochs", 1, "--num-train", 100, "--backend", "numpy", "--out", "c")
    assert xpnn("compare", "--rules", "adam,muon", *flags)[0] == 0
    config = json.loads((tmp_path / "c/config.json").read_text())
    assert [config[rule]["filters"] for rule in ("adam", "muon")] == [32, 32]
    assert config["muon"]["lr"] == 0.02


def test_compare_writes_nothing_where_a_rule_cannot_train_the_net(xpnn, tmp_path):
    status, _, err = xpnn("compare", "--model", "two-layer", "--rules", "adam,muon", "--out", "c")
    assert (status, err) == (2, "xpnn: --rules: expected another than muon, as two-layer has one hidden layer\n")
    assert list(tmp_path.iterdir()) == []


def test_check_of_one_backend_passes(xpnn):
    status, out, _ = xpnn("check", "--backend", "numpy")
    assert status == 0
    assert "55 passed, 0 failed" in out


def test_check_fails_when_a_gradient_is_wrong(xpnn, monkeypatch):
    monkeypatch.setattr("xpnn.layers.relu_backward", lambda dout, cache: dout)
    status, out, _ = xpnn("check", "--backend", "numpy")
    assert status == 1
    assert "numpy: gradient of relu failed: error " in out
    assert "54 passed, 1 failed" in out


def test_check_reports_a_backend_that_breaks(xpnn, monkeypatch):
    def broken(*args):
        raise RuntimeError("out of order")

    monkeypatch.setattr("xpnn.layers.softmax_loss", broken)
    status, out, _ = xpnn("check", "--backend", "numpy")
    assert status == 1
    assert "gradient of softmax_loss failed: RuntimeError: out of order" in out


def test_info_names_every_backend_and_what_auto_takes(xpnn):
    status, out, _ = xpnn("info")
    assert status == 0
    for name in ("numpy", "cupy", "torch", "array-api-strict", "auto takes "):
        assert name in out


def test_info_says_whose_loops_the_kernels_run_on(xpnn):
    pytest.importorskip("numba")
    assert "loops of numpy's kernels: compiled by numba " in xpnn("info")[1]


@pytest.mark.parametrize(
    ("environment", "statement", "reason"),
    [
        ({"NUMBA_DISABLE_JIT": "1"}, "pass", "NUMBA_DISABLE_JIT is set"),
        ({}, "sys.modules['numba'] = None", "pip install numba"),
    ],
)
def test_info_says_why_loops_are_not_compiled(environment, statement, reason):
    if environment:
        pytest.importorskip("numba")
    code = f"import sys; {statement}; from xpnn.__main__ import main; sys.argv = ['xpnn', 'info']; main()"
    environment = {**os.environ, "COLUMNS": "120", **environment}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert f"loops of numpy's kernels: NumPy's own, not compiled: {reason}\n" in done.stdout


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "xpnn", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("xpnn ")


def test_version_is_the_packages(xpnn):
    from xpnn import __version__

    assert xpnn("--version") == (0, f"xpnn {__version__}\n", "")


def test_a_bare_command_shows_the_help(xpnn):
    status, out, err = xpnn()
    assert status in (0, 2)  # by typer's version
    assert err == ""
    assert "compare" in out


def test_the_environment_names_a_backend(xpnn, monkeypatch):
    monkeypatch.setenv("XPNN_BACKEND", "jax")
    assert xpnn("train", *QUICK[2:])[2].startswith("xpnn: backend: expected one of numpy, cupy")


BAD_FLAGS = [
    (("--backend", "jax"), "backend: expected one of numpy, cupy, torch, array-api-strict, auto; received 'jax'"),
    (("--backend", "numpy:1"), "backend numpy:1: NumPy has no device '1'"),
    (
        ("--model", "resnet"),
        "--model: expected one of fc, two-layer, convnet, resnet20, resnet56, resnet9, airbench, vit; received",
    ),
    (
        ("--model", "airbench"),
        "--model: expected another than airbench, whose images are 32 x 32 pixels; those of digits are 8 x 8",
    ),
    (
        ("--model", "airbench", "--preprocess", "center"),
        "--preprocess: expected standardize for --model airbench; received center",
    ),
    (("--summary", "--out", "run"), "--out: expected none with --summary, which trains nothing; received 'run'"),
    (("--summary", "--resume", "full"), "--resume: expected none with --summary, which trains nothing; received"),
    (("--model", "resnet9"), "--model: expected another than resnet9, whose images are 32 x 32 pixels"),
    (("--model", "two-layer", "--hidden", "5,5"), "--hidden: expected one size for --model two-layer; received 2"),
    (("--model", "two-layer", "--batchnorm"), "--batchnorm: expected --model fc"),
    (("--hidden", "a"), "--hidden: expected sizes with commas between, such as 500,500; received 'a'"),
    (("--widths", "16,32"), "--widths: expected --model resnet20, resnet56, resnet9 or airbench; received fc"),
    (("--model", "resnet20", "--widths", "16,32"), "--widths: expected 3 sizes for --model resnet20; received 2"),
    (("--model", "resnet9", "--widths", "4,8"), "--widths: expected one size for --model resnet9; received 2"),
    (("--model", "resnet20", "--widths", "a"), "--widths: expected sizes with commas between, such as 500,500"),
    (("--model", "resnet20", "--widths", "1,0,1"), "--widths: expected sizes from 1 to 1,000,000; received (1, 0, 1)"),
    (("--filters", "8"), "--filters: expected --model convnet; received fc"),
    (("--model", "convnet", "--filters", "0"), "--filters: expected a whole number from 1 to 1,000,000; received 0"),
    (("--model", "convnet", "--filter-size", "-1"), "--filter-size: expected a whole number from 1 to 1,000,000"),
    (("--model", "convnet", "--hidden", "8,8"), "--hidden: expected one size for --model convnet; received 2"),
    (("--model", "convnet", "--dropout", "0.5"), "--dropout: expected --model fc or two-layer; received convnet"),
    (("--model", "vit", "--patch", "3"), "--patch: expected a divisor of the images' 8 x 8 pixels; received 3"),
    (("--model", "vit", "--heads", "5"), "--heads: expected a divisor of --dim 48; received 5"),
    (("--model", "vit", "--dim", "0"), "--dim: expected a whole number from 1 to 1,000,000; received 0"),
    (("--depth", "2"), "--depth: expected --model vit; received fc"),
    (("--model", "vit", "--depth", "1001"), "--depth: expected a whole number from 1 to 1,000; received 1001"),
    (("--augment", "rotate"), "--augment: expected none, or some of flip, alternating-flip, crop:4, crop:4:zero"),
    (("--augment", "crop:9"), "--augment: RandomCrop: expected images of more than 9 rows and columns to reflect"),
    (("--augment", "mixup:0"), "--augment mixup:0: Mixup: expected alpha to be a number above 0; received 0.0"),
    (("--label-smoothing", "1"), "--label-smoothing: expected a number in [0, 1); received 1.0"),
    (
        ("--weight-decay", "0.1"),
        "--weight-decay: expected --optimizer nesterov or adamw or lion or muon; received adam",
    ),
    (
        ("--optimizer", "adamw", "--weight-decay", "-1"),
        "--weight-decay: expected a number of at least 0; received -1.0",
    ),
    (
        ("--momentum", "0.9"),
        "--momentum: expected --optimizer sgd_momentum or sgd_nesterov_momentum or nesterov or muon",
    ),
    (("--optimizer", "muon", "--momentum", "1"), "--momentum: expected a number in [0, 1); received 1.0"),
    (
        ("--model", "two-layer", "--optimizer", "muon"),
        "--optimizer: expected another than muon, as two-layer has one hidden layer",
    ),
    (("--clip-norm", "0"), "--clip-norm: expected a finite number above 0; received 0.0"),
    (("--ema", "1"), "--ema: expected a number in [0, 1); received 1.0"),
    (("--accumulate", "0"), "--accumulate: expected a whole number from 1 to 2**31 - 1; received 0"),
    (("--tta", "rotate"), "--tta: expected one of none, mirror, mirror-translate; received 'rotate'"),
    (("--sampling", "random"), "--sampling: expected one of replacement, shuffle, sequential; received 'random'"),
    (("--schedule", "sine"), "--schedule: expected one of constant, linear, cosine, step, exponential, one-cycle"),
    (("--schedule", "one-cycle:peak=2"), "--schedule 'one-cycle:peak=2': one-cycle: expected peak to be above 0"),
    (("--hidden", "10,0"), "--hidden: expected sizes from 1 to 1,000,000; received (10, 0)"),
    (("--epochs", "0"), "--epochs: expected a whole number from 1 to 2**31 - 1; received 0"),
    (("--batch-size", "-5"), "--batch-size: expected a whole number from 1 to 2**31 - 1; received -5"),
    (
        ("--optimizer", "adamx"),
        "--optimizer: expected one of sgd, sgd_momentum, sgd_nesterov_momentum, nesterov, rmsprop",
    ),
    (("--lr", "0"), "--lr: expected a finite number above 0; received 0.0"),
    (("--lr", "nan"), "--lr: expected a finite number above 0; received nan"),
    (("--lr", "inf"), "--lr: expected a finite number above 0; received inf"),
    (("--lr-decay", "1.5"), "--lr-decay: expected a number above 0, at most 1; received 1.5"),
    (("--reg", "-1"), "--reg: expected a number of at least 0; received -1.0"),
    (("--dropout", "1"), "--dropout: expected a probability in [0, 1); received 1.0"),
    (("--dtype", "float8"), "--dtype: expected one of float32, float64, float16, bfloat16; received 'float8'"),
    (("--dtype", "bfloat16"), "dtype: expected one that numpy has, such as 'float32'; received 'bfloat16'"),
    (("--seed", "-1"), "--seed: expected a whole number from 0 to 2**64 - 1; received -1"),
    (("--num-train", "99999"), "digits: expected from 1 to 1297 training images; received 99999"),
    (("--download",), "--download: expected cifar10; digits ship with xpnn"),
    (("imagenet", "--model", "two-layer"), "dataset: expected one of digits, cifar10; received 'imagenet'"),
    (("--data", "somewhere"), "--data: expected none for digits, which ship with xpnn; received 'somewhere'"),
    (("--hidden", "99999999999999999999"), "--hidden: expected sizes from 1 to 1,000,000"),
    (("--out", ""), "expected the name of a folder; received an empty one"),
    (("--resume", "nowhere"), "--resume: nowhere: expected the folder of a run; it has no config.json"),
    (("imagenet",), "dataset: expected one of digits, cifar10; received 'imagenet'"),
    (("cifar10", "--data", "nowhere"), "nowhere"),
    (("--epochs", "many"), "'--epochs'"),
    (("--epochs", "1.5"), "'1.5'"),
    (("--colour", "red"), "--colour"),
    (("--out", "file"), "--out: expected a folder; file is a file"),
    (("--out", "file/run"), "--out: cannot write to file/run: Not a directory"),
    (("--out", "full"), "--out: expected a new or empty folder; full has files in it"),
]


@pytest.mark.parametrize(("flags", "message"), BAD_FLAGS, ids=[" ".join(flags) for flags, _ in BAD_FLAGS])
def test_a_wrong_flag_is_one_line_and_status_2_and_writes_nothing(xpnn, tmp_path, flags, message):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("x")
    status, _, err = xpnn("train", *flags)
    assert status == 2
    assert err.count("\n") == 1
    assert message in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full"]
    assert (tmp_path / "file").read_text() == "x"


@pytest.fixture
def default_ctrl_c():
    """Ctrl-C as in a terminal, also where the tests run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("default_ctrl_c")
def test_ctrl_c_in_the_first_training_of_a_comparison_leaves_no_folder(xpnn, tmp_path, monkeypatch):
    def step(self, real=Solver._step):
        real(self)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Solver, "_step", step)
    status, _, err = xpnn("compare", *QUICK, "--out", "both")
    assert (status, err) == (130, "xpnn: interrupted\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("default_ctrl_c")
def test_a_second_ctrl_c_leaves_the_last_whole_epoch(xpnn, tmp_path, monkeypatch):
    class Impatient(Callback):
        def on_iteration(self, solver):
            if solver.iteration == 9:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(cli.report, "EpochLines", lambda console: Impatient())
    assert xpnn("train", *QUICK, "--out", "run")[0] == 130
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert checkpoint.load(tmp_path / "run/last.safetensors")[1]["iteration"] == 6
    assert xpnn("train", "--resume", "run")[0] == 0


def test_a_full_disk_is_one_line_and_status_2(xpnn, monkeypatch):
    from safetensors import SafetensorError

    def full(*args, **kwargs):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    status, _, err = xpnn("train", *QUICK, "--out", "run")
    assert status == 2
    assert err == "xpnn: run/last.safetensors: cannot be written (I/O error: No space left on device (os error 28))\n"


def test_too_little_memory_is_one_line_and_status_2(xpnn, monkeypatch):
    def allocate(*args):
        raise MemoryError("Unable to allocate 3.64 TiB")

    monkeypatch.setattr(cli, "build_model", allocate)
    assert xpnn("train", *QUICK)[::2] == (2, "xpnn: not enough memory: Unable to allocate 3.64 TiB\n")


@pytest.mark.parametrize("command", ["train", "compare"])
def test_data_that_do_not_fit_are_one_line_that_names_the_flag_and_nothing_is_written(
    xpnn, monkeypatch, tmp_path, command
):
    def asarray(self, x, *args, real=Backend.asarray, **kwargs):
        if getattr(x, "shape", ()) == (200, 1, 8, 8):
            raise MemoryError("Unable to allocate 3.64 TiB")
        return real(self, x, *args, **kwargs)

    monkeypatch.setattr(Backend, "asarray", asarray)
    status, _, err = xpnn(command, *QUICK)
    assert status == 2
    assert err == (
        "xpnn: --num-train: expected fewer images or a smaller net, which fit into memory together; received more "
        "(Solver: expected fewer examples, which fit into memory; "
        "received X_train (200, 1, 8, 8) of uint8, 0.0 MB (Unable to allocate 3.64 TiB))\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_first_step_that_fails_leaves_no_folder_and_one_after_an_epoch_what_there_is(
    xpnn, monkeypatch, tmp_path, command
):
    def step(self, real=Solver._step):
        if self.epoch == epochs:
            raise MemoryError("Unable to allocate 3.64 TiB")
        real(self)

    epochs = 0
    monkeypatch.setattr(Solver, "_step", step)
    status, _, err = xpnn(command, *QUICK, "--out", "run")
    size = {"train": 32, "compare": 100}[command]
    received = f"whose gradients fit into memory; received {size} (Unable to allocate 3.64 TiB)"
    assert (status, err) == (2, f"xpnn: Solver: expected batch_size {size // 2}, {received}\n")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "own").mkdir()
    for out in ("own", "own/."):
        assert xpnn(command, *QUICK, "--out", out)[2] == err
    assert [path.name for path in tmp_path.rglob("*")] == ["own"]  # a folder of the user's stays
    if command == "train":
        epochs = 1
        assert xpnn(command, *QUICK, "--out", "run")[0] == 2
        assert (tmp_path / "run" / "last.safetensors").exists()


def test_a_device_needs_a_gpu(xpnn, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    why = f"; cupy: {backends.get('cupy').reason}".removesuffix("; cupy: ")
    expected = f"xpnn: --device: expected a backend on a GPU, such as cupy; received numpy{why}\n"
    assert xpnn("train", *QUICK, "--backend", "numpy", "--device", 0)[::2] == (2, expected)
    assert xpnn("check", "--backend", "numpy", "--device", 0)[::2] == (2, expected)


def test_a_device_that_is_not_there_is_named(xpnn, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    expected = "xpnn: --device: expected a number below 2, as CUDA_VISIBLE_DEVICES lists 3,5; received 2\n"
    assert xpnn("train", *QUICK, "--device", 2)[::2] == (2, expected)


def test_a_runs_folder_that_cannot_be_made_is_named(xpnn, tmp_path):
    (tmp_path / "runs").symlink_to(tmp_path / "nowhere")
    status, _, err = xpnn("train", *QUICK)
    assert (status, err) == (2, "xpnn: --out: cannot write to runs/digits-1: File exists\n")


@pytest.mark.parametrize(
    "change",
    [{"hidden": [1.5]}, {"num_train": 2.5}, {"backend": 5}, {"epochs": None}, {"batchnorm": "no"}, {"lr": True}],
)
def test_a_config_of_other_types_is_damaged(xpnn, tmp_path, change):
    xpnn("train", *QUICK, "--out", "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    config["settings"] |= change
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    status, _, err = xpnn("train", "--resume", "run", "--epochs", 5)
    assert status == 2
    assert f"it is damaged (expected {next(iter(change))} to be " in err
    assert err.count("\n") == 1


def test_a_run_from_before_a_setting_was_there_has_its_default(xpnn, tmp_path):
    best = xpnn("train", *QUICK, "--out", "run")[1].split("best validation accuracy ")[1].split()[0]
    config = json.loads((tmp_path / "run/config.json").read_text())
    for name in ("augment", "tta", "widths", "label_smoothing", "drop_last"):
        del config["settings"][name]
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    status, out, _ = xpnn("evaluate", "run")
    assert status == 0
    assert accuracies(out)["validation"] == best
    assert xpnn("train", "--resume", "run", "--epochs", 3)[0] == 0


def test_one_image_is_learned_by_heart(xpnn):
    assert xpnn("train", "--backend", "numpy", "--num-train", 1, "--epochs", 1, "--hidden", 4)[0] == 0


@pytest.mark.parametrize("rules", ["adam,adam", "adamax", ""])
def test_compare_names_rules_that_it_cannot_compare(xpnn, rules):
    status, _, err = xpnn("compare", "--rules", rules)
    assert status == 2
    assert err.startswith("xpnn: --rules: expected some of sgd, ")


def test_resume_refuses_other_settings(xpnn):
    xpnn("train", *QUICK, "--out", "run")
    status, _, err = xpnn("train", "--resume", "run", "--lr", 1, "--epochs", 5)
    assert status == 2
    assert "--lr: cannot change when a run is resumed" in err


@pytest.mark.parametrize(("argument", "name"), [(("cifar10",), "dataset"), (("--out", "other"), "--out")])
def test_resume_refuses_another_data_set_or_folder(xpnn, argument, name):
    xpnn("train", *QUICK, "--out", "run")
    status, _, err = xpnn("train", *argument, "--resume", "run", "--epochs", 5)
    assert status == 2
    assert f"{name}: cannot change when a run is resumed" in err


def test_resume_drops_a_line_of_metrics_that_was_cut_short(xpnn, tmp_path):
    xpnn("train", *QUICK, "--out", "run")
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "iter')
    assert xpnn("train", "--resume", "run", "--epochs", 3)[0] == 0
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]


def test_resume_keeps_the_epoch_of_the_best_weights(xpnn, tmp_path):
    flags = ("--backend", "numpy", "--num-train", 50, "--hidden", 4, "--optimizer", "sgd", "--lr", 1e-30)
    xpnn("train", *flags, "--epochs", 1, "--out", "run")
    xpnn("train", "--resume", "run", "--epochs", 3)
    assert checkpoint.load(tmp_path / "run/best.safetensors")[1]["epoch"] == 0


def test_the_two_layer_model_has_two_layers(xpnn, tmp_path):
    flags = ("--backend", "numpy", "--epochs", 1, "--num-train", 50)
    assert xpnn("train", "--model", "two-layer", *flags, "--out", "run")[0] == 0
    arrays, _ = checkpoint.load(tmp_path / "run/best.safetensors")
    assert {"W1", "b1", "W2", "b2"} <= arrays.keys()
    assert "W3" not in arrays


def test_resume_of_a_finished_run_asks_for_more_epochs(xpnn):
    xpnn("train", *QUICK, "--out", "run")
    status, _, err = xpnn("train", "--resume", "run")
    assert (status, err) == (2, "xpnn: --epochs: expected more than 2, which run has done; received 2\n")


@pytest.mark.parametrize("name", ["config.json", "last.safetensors"])
def test_a_damaged_run_is_named(xpnn, tmp_path, name):
    xpnn("train", *QUICK, "--out", "run")
    (tmp_path / "run" / name).write_text("{")
    status, _, err = xpnn("train", "--resume", "run", "--epochs", 5)
    assert status == 2
    assert f"run/{name}: expected " in err
    assert err.count("\n") == 1


def test_a_damaged_cifar_batch_ends_training_before_it_starts(xpnn, tmp_path, cifar):
    copy = tmp_path / "cifar-10-batches-py"
    copy.mkdir()
    for file in cifar.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "data_batch_3").write_bytes((cifar / "data_batch_3").read_bytes()[:-100])
    status, _, err = xpnn("train", "cifar10", "--data", tmp_path, "--backend", "numpy")
    assert status == 2
    assert "data_batch_3" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()
