"""What may be done along the way of a training, and what of that comes with xpnn."""

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xpnn.arguments import check_whole
from xpnn.training import checkpoint

if TYPE_CHECKING:
    from xpnn.training.solver import Solver

Metrics = dict[str, Any]


class Callback:
    """What may be done along the way; every method does nothing unless a subclass says so.

    A callback may end the training with ``solver.stop("the reason")``.

    Attributes
    ----------
    only_looks : bool
        Whether it changes nothing that a step depends on, but for the learning rate: where it says so, a device may
        replay recorded steps between its calls.
    """

    only_looks: ClassVar[bool] = False

    def on_train_start(self, solver: "Solver") -> None:
        """Before the first iteration."""

    def on_iteration(self, solver: "Solver") -> None:
        """After each batch. To read a loss here is to wait for the device; on CuPy `Solver.fetch_loss` does not."""

    def on_epoch(self, solver: "Solver", metrics: Metrics) -> None:
        """After each accuracy check: epoch, iteration, loss, train_acc, val_acc, learning_rate, seconds, peak_mb.

        Epoch 0 is the check after the first iteration. The peak, in millions of bytes, is that of the process so far as
        `Backend.peak_memory` counts it, and so never falls; None where nobody counts it.
        """

    def on_train_end(self, solver: "Solver") -> None:
        """After the last iteration, even where an error ended it; the parameters are those of that iteration."""


class EarlyStopping(Callback):
    """Stop when the validation accuracy has not risen for `patience` epochs."""

    only_looks = True

    def __init__(self, patience: int) -> None:
        self.patience = check_whole("EarlyStopping", "patience", patience)

    def on_epoch(self, solver: "Solver", metrics: Metrics) -> None:
        history = solver.val_acc_history
        waited = len(history) - 1 - history.index(max(history))
        if waited >= self.patience:
            solver.stop(f"validation accuracy has not risen for {waited} epochs")


class MetricsLog(Callback):
    """Append the metrics of each epoch to a file, a line of JSON each."""

    only_looks = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def on_epoch(self, solver: "Solver", metrics: Metrics) -> None:
        if metrics["epoch"] > 0:
            with self.path.open("a") as file:
                file.write(json.dumps({key: _number(value) for key, value in metrics.items()}) + "\n")


def _number(value: float | None) -> float | None:
    """JSON has no NaN."""
    return value if value is None or math.isfinite(value) else None


class Checkpoints(Callback):
    """Keep two files: ``last.safetensors``, from which training resumes, and ``best.safetensors``, the best weights."""

    only_looks = True

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.saved = -1

    def on_epoch(self, solver: "Solver", metrics: Metrics) -> None:
        if not solver.diverged:
            self._save_last(solver)
        if solver.best_params and solver.best_epoch != self.saved:
            self.saved = solver.best_epoch
            meta = {"epoch": solver.best_epoch, "val_acc": solver.best_val_acc}
            checkpoint.save(self.folder / "best.safetensors", solver.best_arrays(), meta)

    def on_train_end(self, solver: "Solver") -> None:
        # otherwise the last epoch's weights are worth more than these
        if solver.is_whole and solver.iteration and not solver.diverged:
            self._save_last(solver)

    def _save_last(self, solver: "Solver") -> None:
        solver.save(self.folder / "last.safetensors")
