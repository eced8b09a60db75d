"""Training: the Solver, its callbacks, checkpoints and reports."""

from xpnn.training.callbacks import Callback, Checkpoints, EarlyStopping, MetricsLog
from xpnn.training.solver import Solver

__all__ = ["Callback", "Checkpoints", "EarlyStopping", "MetricsLog", "Solver"]
