"""What a person sees of a run: lines, a progress bar, pictures."""

import math
import time
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xpnn.backend import Fetched
from xpnn.optim.schedules import Schedule, sample
from xpnn.training import checkpoint
from xpnn.training.callbacks import Callback, Metrics
from xpnn.training.solver import Solver

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console

# Okabe and Ito's palette: distinct for all kinds of color vision.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")  # one more each time the colors are used up
FEW = 30  # points that a line of them still shows one by one
HIGH = 3  # times its first value: a loss above it is drawn there, so that it does not flatten the others


class EpochLines(Callback):
    """A plain line after each accuracy check; its speed is that of training alone."""

    only_looks = True

    def __init__(self, console: "Console") -> None:
        self.console = console

    def on_epoch(self, solver: Solver, metrics: Metrics) -> None:
        if metrics["epoch"] == 0:
            return
        width, peak = len(str(solver.total_epochs)), metrics["peak_mb"]
        self.console.print(
            f"epoch {metrics['epoch']:{width}d}/{solver.total_epochs}  {_loss_name(solver)} {metrics['loss']:.4f}  "
            f"train {metrics['train_acc']:.3f}  val {metrics['val_acc']:.3f}  "
            f"{solver.images_per_second:,.0f} images/s{'' if peak is None else f'  {peak:,.0f} MB'}",
            highlight=False,
        )


class ProgressBar(EpochLines):
    """The same lines above a bar with loss, images per second and time left."""

    only_looks = True

    INTERVAL = 0.1  # seconds between two looks at the loss

    def on_train_start(self, solver: Solver) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn(f"{_loss_name(solver)} {{task.fields[loss]}}"),
            TextColumn("val {task.fields[val]}  {task.fields[speed]} images/s"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=self.console, transient=True)
        self._task = self._progress.add_task(
            "epoch", total=solver.num_iterations, completed=solver.iteration, loss="-", val="-", speed="-"
        )
        self._progress.start()
        self._looked = 0.0
        self._coming: Fetched | None = None  # the loss to be shown next

    def on_iteration(self, solver: Solver) -> None:
        now = time.perf_counter()
        if now - self._looked < self.INTERVAL:
            return
        self._looked = now
        self._coming = self._coming or solver.fetch_loss(20)
        if self._coming.is_there:
            self._progress.update(self._task, loss=f"{float(self._coming.to_numpy()):.4f}")
            self._coming = None
        speed = self._progress.tasks[self._task].speed
        self._progress.update(
            self._task,
            completed=solver.iteration,
            description=f"epoch {min(solver.epoch + 1, solver.total_epochs)}/{solver.total_epochs}",
            val=f"{solver.val_acc_history[-1]:.3f}" if solver.val_acc_history else "-",
            speed=f"{speed * solver.batch_size:,.0f}" if speed else "-",
        )

    def on_train_end(self, solver: Solver) -> None:
        self._progress.stop()


class Curves(Callback):
    """Draw ``curves.png`` at the end."""

    only_looks = True

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, solver: Solver) -> None:
        if solver.is_whole:
            plot_curves(self.path, solver)


def plot_curves(path: Path, solver: Solver) -> None:
    """Draw the loss of every iteration and the accuracies of every epoch."""
    figure = _figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    _plot_loss(left, solver, points=True, color=COLORS[0])
    title = solver.stop_reason.partition(",")[0] if solver.diverged else "training loss"
    left.set(xlabel="iteration", ylabel=_loss_name(solver), title=title)
    _plot_accuracy(right, solver.train_acc_history, color=COLORS[1], label="training")
    _plot_accuracy(right, solver.val_acc_history, color=COLORS[0], label="validation")
    right.set(xlabel="epoch", ylabel="accuracy", title=f"accuracy (best validation {solver.best_val_acc:.3f})")
    right.legend(frameon=False)
    _save(figure, path)


def plot_comparison(path: Path, solvers: Mapping[str, Solver], title: str = "") -> None:
    """Draw the course's figure: training loss, training accuracy and validation accuracy, one line each."""
    figure = _figure(12, 3.8)
    loss, train, val = figure.subplots(1, 3)
    for i, (label, solver) in enumerate(solvers.items()):
        style = _style(i)
        _plot_loss(loss, solver, **style, label=f"{label} (diverged)" if _has_diverged(solver) else label)
        _plot_accuracy(train, solver.train_acc_history, **style)
        _plot_accuracy(val, solver.val_acc_history, **style)
    loss.set(xlabel="iteration", title=f"training {_loss_name(solver)}")
    train.set(xlabel="epoch", title="training accuracy")
    val.set(xlabel="epoch", title="validation accuracy")
    _legend_below(figure, loss)
    figure.suptitle(title)
    _save(figure, path)


def plot_schedules(path: Path, schedules: Mapping[str, Schedule], epochs: int | None = None) -> None:
    """Draw the factor of the learning rate from the start of training to its end."""
    figure = _figure(7, 4)
    axes = figure.subplots()
    for i, (label, schedule) in enumerate(schedules.items()):
        progress, factors = sample(schedule, 1001)
        axes.plot([t * (epochs or 100) for t in progress], factors, **_style(i), label=label)
    axes.set(xlabel="epoch" if epochs else "% of training", ylabel="factor of the learning rate")
    axes.margins(x=0.01)
    _legend_below(figure, axes)
    _save(figure, path)


def _plot_loss(axes: "Axes", solver: Solver, points: bool = False, **style: Any) -> None:
    """Draw a running mean of the loss, and where wanted every single loss behind it."""
    highest = _highest(solver)
    losses = [min(highest, loss) for loss in solver.loss_history]  # `highest` for NaN too
    iterations = range(1, len(losses) + 1)
    if points:
        axes.plot(iterations, losses, ".", markersize=2, color=style["color"], alpha=0.25)
    marker = "o" if len(losses) <= FEW else ""
    axes.plot(iterations, _running_mean(losses, max(len(losses) // 50, 1)), marker=marker, markersize=3, **style)


def _plot_accuracy(axes: "Axes", accuracies: Sequence[float], **style: Any) -> None:
    axes.plot(accuracies, marker="o" if len(accuracies) <= FEW else "", markersize=3, **style)


def _highest(solver: Solver) -> float:
    """The highest loss that is drawn as it is."""
    first = solver.loss_history[0] if solver.loss_history else 0.0
    return HIGH * first if 0 < first < math.inf else math.inf


def _has_diverged(solver: Solver) -> bool:
    return solver.diverged or solver.loss_history[-1] > _highest(solver)


def _loss_name(solver: Solver) -> str:
    return "loss (sum)" if solver.reduction == "sum" else "loss"


def _style(i: int) -> dict[str, Any]:
    """Color and dashes of the line with this number."""
    return {"color": COLORS[i % len(COLORS)], "linestyle": DASHES[i // len(COLORS) % len(DASHES)]}


def _legend_below(figure: "Figure", axes: "Axes") -> None:
    """Name the lines below the axes, in a figure that grows by as much."""
    lines, labels = axes.get_legend_handles_labels()
    width, height = figure.get_size_inches()
    columns = max(int(11 * width) // (max(map(len, labels)) + 10), 1)
    figure.set_size_inches(width, height + 0.22 * math.ceil(len(labels) / columns))
    figure.legend(lines, labels, loc="outside lower center", ncols=columns, frameon=False)


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    """The mean of the `width` values around each, of fewer at the ends."""
    sums = list(accumulate(values, initial=0.0))
    spans = ((max(i - width // 2, 0), min(i + width // 2 + 1, len(values))) for i in range(len(values)))
    return [(sums[stop] - sums[start]) / (stop - start) for start, stop in spans]


def _figure(width: float, height: float) -> "Figure":
    """A figure of its own, which touches neither pyplot's state nor a screen."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: "Figure", path: Path) -> None:
    from matplotlib.ticker import MaxNLocator

    for axes in figure.axes:
        axes.grid(alpha=0.25)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.spines[["top", "right"]].set_visible(False)
    checkpoint.write_whole(path, lambda partial: figure.savefig(partial, dpi=120))


def table(console: "Console", title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table; a console that is too narrow for its words breaks those of the first column."""
    from rich.table import Table
    from rich.text import Text  # which takes a path's brackets as they are

    lines = [[str(cell) for cell in cells] for cells in (columns, *rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    words = [max(map(len, " ".join(cells).split())) for cells in zip(*lines, strict=True)]
    frame = 3 * len(columns) + 1
    room = console.width - frame
    while sum(widths) > room and widths != words:
        _, widest = max((width, i) for i, width in enumerate(widths) if width > words[i])
        widths[widest] -= 1
    widths[0] = max(widths[0] - max(sum(widths) - room, 0), min(words[0], 8))  # else it runs over the margin
    grid = Table(title=Text(title) if title else None, title_justify="left", width=sum(widths) + frame)
    for column, width in zip(columns, widths, strict=True):
        grid.add_column(column, width=width, overflow="fold")
    for line in lines[1:]:
        grid.add_row(*map(Text, line))
    console.print(grid, highlight=False, crop=False)
