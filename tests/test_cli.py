"""The command line as a user meets it: what it writes, and one clear line for what is wrong."""

import json
import pickle
import signal
import sys

import numpy as np
import pytest

from xpnn import cli
from xpnn.training import Callback, checkpoint


@pytest.fixture
def xpnn(monkeypatch, capsys, tmp_path):
    """Run a command line in an empty folder; return exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XPNN_BACKEND", raising=False)
    monkeypatch.delenv("XPNN_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["xpnn", *map(str, args)])
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
    keys = ["epoch", "iteration", "loss", "train_acc", "val_acc", "learning_rate", "seconds"]
    assert all(list(line) == keys for line in lines)
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["settings"]["hidden"] == [16]
    assert config["versions"]["numpy"] == np.__version__
    assert (tmp_path / "run/curves.png").read_bytes().startswith(b"\x89PNG")


def test_every_flag_reaches_the_run(xpnn, tmp_path):
    status, _, _ = xpnn(
        *("train", "digits", "--model", "fc", "--hidden", "9,8", "--epochs", 1, "--batch-size", 50),
        *("--optimizer", "sgd_momentum", "--lr", 0.02, "--lr-decay", 0.5, "--schedule", "linear", "--reg", 0.1),
        *("--dropout", 0.1, "--batchnorm", "--weight-scale", 0.3, "--preprocess", "center", "--patience", 4),
        *("--sampling", "replacement", "--num-train", 100, "--dtype", "float64", "--seed", 7, "--out", "run"),
        *("--backend", "numpy"),
    )
    assert status == 0
    assert json.loads((tmp_path / "run/config.json").read_text())["settings"] == {
        "dataset": "digits",
        "model": "fc",
        "hidden": [9, 8],
        "epochs": 1,
        "batch_size": 50,
        "optimizer": "sgd_momentum",
        "lr": 0.02,
        "lr_decay": 0.5,
        "schedule": "linear",
        "reg": 0.1,
        "dropout": 0.1,
        "batchnorm": True,
        "weight_scale": 0.3,
        "preprocess": "center",
        "patience": 4,
        "sampling": "replacement",
        "num_train": 100,
        "dtype": "float64",
        "seed": 7,
        "backend": "numpy",
        "data": None,
    }
    arrays, _ = checkpoint.load(tmp_path / "run/best.safetensors")
    assert arrays["W1"].shape == (64, 9)
    assert {array.dtype.name for array in arrays.values()} == {"float64"}


def test_train_without_out_numbers_its_folders(xpnn, tmp_path):
    for _ in range(2):
        assert xpnn("train", *QUICK)[0] == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["digits-1", "digits-2"]


def test_train_takes_cifar10_from_data(xpnn, cifar, monkeypatch):
    arguments = ("--backend", "numpy", "--hidden", "8", "--epochs", 1, "--batch-size", 10)
    # 1,000 of the official 50,000 training images are for validation; the stand-in has 100 in all.
    monkeypatch.setattr("xpnn.data.load", lambda name, root: load_cifar10(root, num_validation=20))
    from xpnn.data import load_cifar10

    status, out, _ = xpnn("train", "cifar10", "--data", cifar, *arguments)
    assert status == 0
    assert "cifar10: 80 training images" in out


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


def test_ctrl_c_saves_what_was_learned_and_says_how_to_go_on(xpnn, tmp_path, monkeypatch):
    class Interrupt(Callback):
        def on_iteration(self, solver):
            if solver.iteration == 9:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(cli.report, "EpochLines", lambda console: Interrupt())
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


def test_evaluate_measures_the_best_weights(xpnn):
    out = xpnn("train", *QUICK, "--out", "run")[1]
    best = out.split("best validation accuracy ")[1].split()[0]
    status, out, _ = xpnn("evaluate", "run")
    assert status == 0
    total = next(line for line in out.splitlines() if "all" in line)
    assert best in total


def test_compare_starts_all_rules_from_the_same_weights(xpnn, tmp_path):
    rules = "sgd,adam:0.002"
    status, out, _ = xpnn("compare", "digits", "--rules", rules, "--epochs", 1, "--out", "c", "--backend", "numpy")
    assert status == 0
    assert "0.01" in next(line for line in out.splitlines() if "│ sgd" in line)
    assert "0.002" in next(line for line in out.splitlines() if "│ adam" in line)
    assert (tmp_path / "c/comparison.png").read_bytes().startswith(b"\x89PNG")


def test_check_reports_every_backend_and_passes(xpnn):
    status, out, _ = xpnn("check", "--backend", "numpy")
    assert status == 0
    assert "21 passed, 0 failed" in out


def test_check_fails_when_a_gradient_is_wrong(xpnn, monkeypatch):
    monkeypatch.setattr("xpnn.layers.relu_backward", lambda dout, cache: dout)
    status, out, _ = xpnn("check", "--backend", "numpy")
    assert status == 1
    assert "numpy: gradient of relu failed: error " in out
    assert "20 passed, 1 failed" in out


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
    (("--model", "resnet"), "--model: expected one of fc, two-layer; received 'resnet'"),
    (("--model", "two-layer", "--hidden", "5,5"), "--hidden: expected one size for --model two-layer; received 2"),
    (("--model", "two-layer", "--batchnorm"), "--batchnorm: expected --model fc"),
    (("--hidden", "a"), "--hidden: expected sizes with commas between, such as 500,500; received 'a'"),
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
    (("--dtype", "float16"), "--dtype: expected one of float32, float64; received 'float16'"),
    (("--seed", "-1"), "--seed: expected a whole number from 0 to 2**64 - 1; received -1"),
    (("--num-train", "99999"), "digits: expected from 1 to 1297 training images; received 99999"),
    (("--download",), "--download: expected cifar10; digits ship with xpnn"),
    (("imagenet", "--model", "two-layer"), "dataset: expected one of digits, cifar10; received 'imagenet'"),
    (("--data", "somewhere"), "--data: expected none for digits, which ship with xpnn; received 'somewhere'"),
    (("--hidden", "99999999999999999999"), "--hidden: expected sizes from 1 to 1,000,000"),
    (("--out", ""), "expected the name of a folder; received an empty one"),
    (("--resume", "nowhere"), "nowhere: expected the folder of a run; it has no config.json"),
    (("imagenet",), "dataset: expected one of digits, cifar10; received 'imagenet'"),
    (("cifar10", "--data", "nowhere"), "nowhere"),
    (("--epochs", "many"), "'--epochs'"),
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


def test_one_image_is_learned_by_heart(xpnn):
    assert xpnn("train", "--backend", "numpy", "--num-train", 1, "--epochs", 1, "--hidden", 4)[0] == 0


@pytest.mark.parametrize("rules", ["adam,adam", "adamw", ""])
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
