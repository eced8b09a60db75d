"""Update rules, the optimizer that applies them to a model, learning-rate schedules and averages of weights."""

from xpnn.optim.averaging import EMA, Lookahead
from xpnn.optim.groups import ParamGroup
from xpnn.optim.optimizer import Optimizer
from xpnn.optim.rules import (
    RULES,
    adam,
    adamw,
    lion,
    muon,
    nesterov,
    newton_schulz,
    rmsprop,
    sgd,
    sgd_momentum,
    sgd_nesterov_momentum,
)
from xpnn.optim.schedules import SCHEDULES

__all__ = [
    "EMA",
    "RULES",
    "SCHEDULES",
    "Lookahead",
    "Optimizer",
    "ParamGroup",
    "adam",
    "adamw",
    "lion",
    "muon",
    "nesterov",
    "newton_schulz",
    "rmsprop",
    "sgd",
    "sgd_momentum",
    "sgd_nesterov_momentum",
]
