"""Learning-rate schedules: functions of the progress of training, from 0 to 1, that give a factor of the base rate.

`constant`, `linear`, `cosine` and `step` are schedules; `exponential`, `one_cycle`, `warmup_linear`,
`warmup_cosine`, `piecewise` and `steps` make one. All can be pickled.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from xpnn.arguments import check_number
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


def steps(milestones: Sequence[float], factor: float = 0.1) -> Schedule:
    """Down by a factor at each milestone: ``factor^k`` once k of them are reached.

    Parameters
    ----------
    milestones : sequence of float
        Progress from 0 to 1, rising.
    factor : float

    Raises
    ------
    SettingError
        For milestones that do not rise within [0, 1], or a factor outside (0, 1].

    Source: He, Zhang, Ren and Sun, "Deep residual learning", CVPR 2016, section 4.2.
    """
    try:
        values = tuple(map(float, milestones))
    except (TypeError, ValueError):
        values = ()
    if not values or not _rise(values):
        raise SettingError(f"steps: expected milestones that rise within [0, 1]; received {milestones!r}")
    factor = check_number("steps", "a factor above 0, at most 1", factor, lambda f: 0 < f <= 1)
    return partial(_steps, values, factor)


def _steps(milestones: tuple[float, ...], factor: float, progress: float) -> float:
    return factor ** sum(progress >= milestone for milestone in milestones)


def exponential(final: float = 0.01) -> Schedule:
    """By the same factor in every step, down to `final`: ``final^t``.

    Raises
    ------
    SettingError
        For a final factor that is not in (0, 1].

    Source: torch.optim.lr_scheduler.ExponentialLR, whose gamma over n steps is ``final^(1/n)``.
    """
    final = check_number("exponential", "final to be above 0, at most 1", final, lambda f: 0 < f <= 1)
    return partial(math.pow, final)


def one_cycle(peak: float = 0.3, start: float = 1 / 25, end: float = 1e-4) -> Schedule:
    """Half a cosine up from `start` to 1 at progress `peak`, and half a cosine down to `end`.

    ``start + (1 - start) (1 - cos(pi t / peak)) / 2``, then
    ``end + (1 - end) (1 + cos(pi (t - peak) / (1 - peak))) / 2``.

    Parameters
    ----------
    peak : float
        Where the rate is the base rate, in (0, 1).
    start, end : float
        Factors of the base rate, in [0, 1].

    Raises
    ------
    SettingError
        For a number outside its range.

    Source: Smith and Topin, "Super-convergence", 2018, in the form of torch.optim.lr_scheduler.OneCycleLR.
    """
    peak = check_number("one-cycle", "peak to be above 0 and below 1", peak, lambda p: 0 < p < 1)
    start = check_number("one-cycle", "start to be from 0 to 1", start, lambda f: 0 <= f <= 1)
    end = check_number("one-cycle", "end to be from 0 to 1", end, lambda f: 0 <= f <= 1)
    return partial(_one_cycle, peak, start, end)


def _one_cycle(peak: float, start: float, end: float, progress: float) -> float:
    if progress < peak:
        return start + (1.0 - start) * (1.0 - cosine(progress / peak))
    return end + (1.0 - end) * cosine((progress - peak) / (1.0 - peak))


def warmup_linear(warmup: float = 0.1) -> Schedule:
    """Straight up from zero, then straight down to zero: ``t / warmup``, then ``(1 - t) / (1 - warmup)``.

    Raises
    ------
    SettingError
        For a warm-up that is not in [0, 1).

    Source: Goyal et al., "Accurate, large minibatch SGD", 2017, section 2.2, for the warm-up.
    """
    return partial(_warmup, _share("warmup-linear", warmup), linear)


def warmup_cosine(warmup: float = 0.1) -> Schedule:
    """Straight up from zero, then half a cosine down: ``t / warmup``, then `cosine` of ``(t - warmup) / (1 - warmup)``.

    Raises
    ------
    SettingError
        For a warm-up that is not in [0, 1).

    Source: Goyal et al., "Accurate, large minibatch SGD", 2017, section 2.2, and Loshchilov and Hutter, "SGDR", 2017.
    """
    return partial(_warmup, _share("warmup-cosine", warmup), cosine)


def _share(name: str, warmup: float) -> float:
    return check_number(name, "warmup to be at least 0 and below 1", warmup, lambda w: 0 <= w < 1)


def _warmup(warmup: float, then: Schedule, progress: float) -> float:
    return progress / warmup if progress < warmup else then((progress - warmup) / (1.0 - warmup))


def piecewise(*points: tuple[float, float]) -> Schedule:
    """Straight lines between points (progress, factor); level before the first and after the last.

    ``piecewise((0, 0.2), (0.23, 1), (1, 0.07))`` is the schedule of airbench94's first version.

    Raises
    ------
    SettingError
        For no points, a progress that does not rise within [0, 1], or a factor that is negative or infinite.

    Source: Page, "How to train your ResNet", 2018.
    """
    try:
        pairs = tuple((float(t), float(factor)) for t, factor in points)
    except (TypeError, ValueError):
        raise SettingError(f"piecewise: expected points (progress, factor); received {_text(points)}") from None
    if not pairs or not _rise([t for t, _ in pairs]):
        raise SettingError(f"piecewise: expected points whose progress rises within [0, 1]; received {_text(points)}")
    if not all(0 <= factor < math.inf for _, factor in pairs):
        raise SettingError(f"piecewise: expected factors of at least 0; received {_text(points)}")
    return partial(_piecewise, pairs)


def _piecewise(points: tuple[tuple[float, float], ...], progress: float) -> float:
    before, low = points[0]
    for after, high in points:
        if progress < after:
            share = 1.0 if after == before else (progress - before) / (after - before)
            return low + share * (high - low)
        before, low = after, high
    return low


def _rise(values: Sequence[float]) -> bool:
    return all(0 <= value <= 1 for value in values) and all(a < b for a, b in pairwise(values))


def _text(values: Sequence[object]) -> str:
    return ", ".join(map(repr, values)) or "none"


SCHEDULES: dict[str, Schedule] = {
    **{f.__name__: f for f in (constant, linear, cosine, step)},
    **{f.__name__: f() for f in (exponential, one_cycle, warmup_linear, warmup_cosine)},
}

# What makes a schedule out of the arguments in a text, and the text with an example of them.
_FACTORIES: dict[str, tuple[Callable[..., Schedule], str]] = {
    "step": (steps, "step:0.5,0.75,factor=0.1"),
    "exponential": (exponential, "exponential:final=0.01"),
    "one_cycle": (one_cycle, "one-cycle:peak=0.3,start=0.04,end=1e-4"),
    "warmup_linear": (warmup_linear, "warmup-linear:0.1"),
    "warmup_cosine": (warmup_cosine, "warmup-cosine:0.1"),
    "piecewise": (piecewise, "piecewise:0=0.2,0.23=1,1=0.07"),
}


def get(schedule: str | Schedule) -> Schedule:
    """Return a schedule by name, or by the text of a command line; a callable is returned as it is.

    Parameters
    ----------
    schedule : str or callable
        A name from `SCHEDULES`, with hyphens or underscores, and after a colon its arguments, if it has any:
        ``"one-cycle:peak=0.2"``, ``"step:0.5,0.75"``, ``"piecewise:0=0.2,0.23=1,1=0.07"``.

    Raises
    ------
    SettingError
        For an unknown name, or arguments that do not fit.
    """
    if callable(schedule):
        return schedule
    text = str(schedule)
    name, colon, arguments = text.partition(":")
    name = name.strip().replace("-", "_")
    if name not in SCHEDULES and name not in _FACTORIES:
        known = ", ".join(dict.fromkeys((*SCHEDULES, *_FACTORIES)))
        raise SettingError(f"schedule: expected one of {known}, or a callable; received {schedule!r}")
    if not colon and name in SCHEDULES:
        return SCHEDULES[name]
    if name not in _FACTORIES:
        raise SettingError(f"schedule: expected {name} without arguments; received {schedule!r}")
    factory, example = _FACTORIES[name]
    try:
        return _made(name, factory, arguments)
    except SettingError as error:
        raise SettingError(f"schedule {text!r}: {error}") from None
    except (TypeError, ValueError):
        raise SettingError(f"schedule: expected a text such as {example!r}; received {schedule!r}") from None


def _made(name: str, factory: Callable[..., Schedule], arguments: str) -> Schedule:
    items = [item.partition("=") for item in arguments.split(",")]
    if name == "piecewise":
        return factory(*((float(t), float(value)) for t, _, value in items))
    numbers = [float(number) for number, equals, _ in items if not equals]
    named = {key.strip(): float(value) for key, equals, value in items if equals}
    return factory(numbers, **named) if name == "step" else factory(*numbers, **named)


def sample(schedule: str | Schedule, n: int = 200) -> tuple[list[float], list[float]]:
    """Return n values of progress from 0 to 1, evenly apart, and a schedule's factors there: what a plot needs.

    Raises
    ------
    SettingError
        For an unknown schedule, or fewer than two values.
    """
    if n < 2:
        raise SettingError(f"sample: expected at least 2 values; received {n}")
    function = get(schedule)
    ts = [i / (n - 1) for i in range(n)]
    return ts, [float(function(t)) for t in ts]
