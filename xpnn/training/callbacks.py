"""Callbacks that come with xpnn."""

import json
import math
import os
from pathlib import Path

from xpnn.arguments import check_whole
from xpnn.training import checkpoint
from xpnn.training.solver import Callback, Metrics, Solver


class EarlyStopping(Callback):
    """Stop when the validation accuracy has not risen for `patience` epochs."""

    def __init__(self, patience: int) -> None:
        self.patience = check_whole("EarlyStopping", "patience", patience)

    def on_epoch(self, solver: Solver, metrics: Metrics) -> None:
        history = solver.val_acc_history
        waited = len(history) - 1 - history.index(max(history))
        if waited >= self.patience:
            solver.stop(f"validation accuracy has not risen for {waited} epochs")


class MetricsLog(Callback):
    """Append the metrics of each epoch to a file, a line of JSON each."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def on_epoch(self, solver: Solver, metrics: Metrics) -> None:
        if metrics["epoch"] > 0:
            with self.path.open("a") as file:
                file.write(json.dumps({key: _number(value) for key, value in metrics.items()}) + "\n")


def _number(value: float | None) -> float | None:
    """JSON has no NaN."""
    return value if value is None or math.isfinite(value) else None


class Checkpoints(Callback):
    """Keep two files: ``last.safetensors``, from which training resumes, and ``best.safetensors``, the best weights."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.saved = -1

    def on_epoch(self, solver: Solver, metrics: Metrics) -> None:
        if not solver.diverged:
            self._save_last(solver)
        if solver.best_params and solver.best_epoch != self.saved:
            self.saved = solver.best_epoch
            meta = {"epoch": solver.best_epoch, "val_acc": solver.best_val_acc}
            checkpoint.save(self.folder / "best.safetensors", solver.best_arrays(), meta)

    def on_train_end(self, solver: Solver) -> None:
        # otherwise the last epoch's weights are worth more than these
        if solver.is_whole and solver.iteration and not solver.diverged:
            self._save_last(solver)

    def _save_last(self, solver: Solver) -> None:
        solver.save(self.folder / "last.safetensors")
