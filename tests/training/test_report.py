"""Pictures and tables: what they show of the numbers they are given."""

import io
import math
from types import SimpleNamespace

import pytest
from rich.console import Console

from xpnn.training import report


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, in place of files."""
    drawn = []
    save = report._save
    monkeypatch.setattr(report.checkpoint, "write_whole", lambda path, write: write(io.BytesIO()))
    monkeypatch.setattr(report, "_save", lambda figure, path: (drawn.append(figure), save(figure, path)))
    return drawn


def solver(losses, accuracies=(0.1,), diverged=False, reduction="mean"):
    return SimpleNamespace(
        loss_history=losses,
        train_acc_history=list(accuracies),
        val_acc_history=list(accuracies),
        best_val_acc=max(accuracies),
        diverged=diverged,
        reduction=reduction,
        stop_reason=f"the loss is nan at iteration {len(losses)}, first in layer affine1" if diverged else "",
    )


def ticks(axes):
    low, high = axes.get_xlim()
    return [tick for tick in axes.get_xticks() if low <= tick <= high]


def test_curves_of_one_check_show_a_point_at_epoch_0(figures):
    report.plot_curves("curves.png", solver([2.3]))
    accuracy = figures[0].axes[1]
    assert [line.get_marker() for line in accuracy.lines] == ["o", "o"]
    assert ticks(accuracy) == [0]


def test_curves_say_where_training_diverged(figures):
    report.plot_curves("curves.png", solver([2.3, 1e30, math.nan], diverged=True))
    assert figures[0].axes[0].get_title() == "the loss is nan at iteration 3"


def test_curves_say_that_a_loss_is_a_sum(figures):
    report.plot_curves("curves.png", solver([230.0], reduction="sum"))
    assert figures[0].axes[0].get_ylabel() == "loss (sum)"


def test_a_rule_that_diverges_is_marked_and_leaves_the_others_readable(figures):
    runs = {"good": solver([2.0, 1.0]), "nan": solver([2.0, math.nan], diverged=True), "huge": solver([2.0, 1e30])}
    report.plot_comparison("comparison.png", runs)
    assert figures[0].axes[0].get_ylim()[1] < 7
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert labels == ["good", "nan (diverged)", "huge (diverged)"]


def test_every_line_of_a_comparison_has_a_style_of_its_own(figures):
    report.plot_comparison("comparison.png", {str(i): solver([2.0, 1.0]) for i in range(20)})
    for axes in figures[0].axes:
        assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 20


def test_a_picture_of_schedules_ends_with_the_training(figures):
    report.plot_schedules("schedules.png", {"linear": lambda t: 1 - t})
    axes = figures[0].axes[0]
    assert axes.get_xlim()[1] == pytest.approx(101)  # 1% for the line itself
    assert axes.get_legend() is None  # it lies below


@pytest.mark.parametrize("width", [30, 40, 60, 80])
def test_a_table_keeps_words_whole_but_those_of_its_first_column(width):
    console = Console(width=width, file=io.StringIO())
    report.table(console, "", ("name of it", "a", "b"), [("long_name_of_a_check, float64", "5e-09", "FAILED 1e-03")])
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert {"5e-09", "FAILED", "1e-03"} <= set(" ".join(lines).split())
