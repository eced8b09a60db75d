"""Update rules, the optimizer that applies them to a model, and learning-rate schedules."""

from xpnn.optim.optimizer import Optimizer
from xpnn.optim.rules import RULES, adam, rmsprop, sgd, sgd_momentum, sgd_nesterov_momentum
from xpnn.optim.schedules import SCHEDULES

__all__ = [
    "RULES",
    "SCHEDULES",
    "Optimizer",
    "adam",
    "rmsprop",
    "sgd",
    "sgd_momentum",
    "sgd_nesterov_momentum",
]
