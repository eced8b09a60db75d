"""Training: the Solver, its callbacks, checkpoints and reports."""

from xpnn.training.callbacks import Checkpoints, EarlyStopping, MetricsLog
from xpnn.training.solver import Callback, Solver

__all__ = ["Callback", "Checkpoints", "EarlyStopping", "MetricsLog", "Solver"]
