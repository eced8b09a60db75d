"""Learning-rate schedules: functions of the progress of training, from 0 to 1, that give a factor of the base rate."""

import math
from collections.abc import Callable

from xpnn.errors import SettingError

Schedule = Callable[[float], float]


def constant(progress: float) -> float:
    """``1``."""
    return 1.0


def linear(progress: float) -> float:
    """Straight down to zero: ``1 - t``."""
    return 1.0 - progress


def cosine(progress: float) -> float:
    """Half a cosine down to zero: ``(1 + cos(pi t)) / 2``.

    Source: Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017.
    """
    return (1.0 + math.cos(math.pi * progress)) / 2.0


def step(progress: float) -> float:
    """A tenth after half of training, a hundredth after three quarters.

    Source: He, Zhang, Ren and Sun, "Deep residual learning", CVPR 2016, section 4.2.
    """
    return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01


SCHEDULES: dict[str, Schedule] = {f.__name__: f for f in (constant, linear, cosine, step)}


def get(schedule: str | Schedule) -> Schedule:
    """Return a schedule by name; a callable is returned as it is."""
    if callable(schedule):
        return schedule
    if schedule not in SCHEDULES:
        raise SettingError(f"schedule: expected one of {', '.join(SCHEDULES)}, or a callable; received {schedule!r}")
    return SCHEDULES[schedule]
