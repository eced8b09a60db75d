"""Checks of arguments that are not arrays: each returns the value, or says where it was given and what was expected."""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from xpnn.backend import describe
from xpnn.errors import SettingError

BOUND = 2**31  # sizes and counts are below it, so that no library overflows


def check_whole(where: str, name: str, value: Any, least: int = 1) -> int:
    """Return a whole number of at least `least`."""
    try:
        if least <= operator.index(value) < BOUND:
            return operator.index(value)
    except TypeError:
        pass
    raise SettingError(
        f"{where}: expected {name}, a whole number of at least {least}, below 2**31; received {value!r:.60}"
    )


def check_sizes(where: str, name: str, values: Any) -> list[int]:
    """Return whole numbers of at least 1, one of them at least."""
    try:
        sizes = list(values)
    except TypeError:
        sizes = []
    if not sizes:
        raise SettingError(f"{where}: expected {name}, one whole number at least; received {values!r:.60}")
    return [check_whole(where, f"each of {name}", size) for size in sizes]


def check_number(where: str, expected: str, value: Any, accepts: Callable[[Any], bool] = math.isfinite) -> float:
    """Return a finite real number that `accepts` takes, as Python's: a scalar of NumPy would make float32 float64."""
    try:
        if math.isfinite(value) and accepts(value):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise SettingError(f"{where}: expected {expected}; received {value!r:.60}")


def check_flag(where: str, name: str, value: Any) -> bool:
    """Return True or False; a text such as "no" would count as true."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{where}: expected {name}, True or False; received {value!r:.60}")
    return bool(value)


def check_keys(where: str, param: Any, *known: str, private: tuple[str, ...] = ()) -> None:
    """Refuse what is no dict, and a key that nothing would read; `private` ones are for layers, not for users."""
    *rest, last = known
    expected = f"{where}: expected a dict of {', '.join(rest)} and {last}"
    if not isinstance(param, Mapping):
        raise TypeError(f"{expected}; received {describe(param)}")
    if unknown := [key for key in param if key not in (*known, *private)]:
        raise ValueError(f"{expected}; received {', '.join(map(repr, unknown))}")
