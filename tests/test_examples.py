"""The examples as a user meets them: one clear line for what is wrong."""

import runpy
import sys
from pathlib import Path

import pytest

from xpnn import Solver

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ("batchnorm", "convnet", "dropout", "finetune", "optimizers", "vit")


@pytest.fixture
def example(monkeypatch, capsys, tmp_path):
    """Run an example in an empty folder; return exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delenv("XPNN_DATA", raising=False)

    def run(name, *flags):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *flags])
        status = 0
        try:
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--epochs", "0"), "argument --epochs: expected a whole number of at least 1; received '0'"),
        (("--backend", "foo"), "backend: expected one of numpy"),
        (("--dataset", "cifar10", "--data", "nowhere"), "looked in nowhere"),
        (("--out", "q.foo"), "argument --out: expected a .png, .pdf or .svg that can be written; received q.foo"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, tuple) else "",
)
def test_a_wrong_flag_is_one_line_and_status_2(example, name, flags, message):
    status, out, err = example(name, *flags)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_fine_tuning_says_how_many_examples_there_are(example):
    flags = ("--backend", "numpy", "--images", "100", "--shots", "1000", "--epochs", "1", "--out", "a.svg")
    assert example("finetune", *flags)[0] == 0
    assert "examples of the 5 new classes" in Path("a.svg").read_text()


@pytest.mark.parametrize("name", ["batchnorm", "dropout", "finetune", "optimizers"])
def test_ctrl_c_ends_all_trainings(example, monkeypatch, name):
    trained = []

    def interrupted(solver):
        trained.append(solver)
        solver.stop_reason = "interrupted"

    monkeypatch.setattr(Solver, "train", interrupted)
    assert example(name, "--backend", "numpy")[0] == 130
    assert len(trained) == 1
