"""First values of parameters: functions of (generator, shape, dtype, backend)."""

import math
from functools import partial
from typing import Any

from xpnn.backend import Array, Backend, Shape
from xpnn.layers.layer import Initializer
from xpnn.random import Generator


def constant(value: Any) -> Initializer:
    """A number, or an array that broadcasts to the shape."""
    return partial(_constant, value)  # unlike a closure it can be pickled


def _constant(value: Any, rng: Generator, shape: Shape, dtype: Any, backend: Backend) -> Array:
    return backend.zeros(shape, dtype) + backend.asarray(value, dtype)


zeros = constant(0.0)
ones = constant(1.0)


def normal(std: float) -> Initializer:
    """N(0, std²), the course's ``weight_scale``."""
    if not 0 <= std < math.inf:
        raise ValueError(f"normal: expected a standard deviation of at least 0; received {std!r}")
    return partial(_normal, float(std))


def _normal(std: float, rng: Generator, shape: Shape, dtype: Any, backend: Backend) -> Array:
    return rng.normal(shape, std=std, dtype=dtype, backend=backend)


def kaiming(rng: Generator, shape: Shape, dtype: Any, backend: Backend) -> Array:
    """N(0, 2 / fan_in) for weights of shape (fan_in, fan_out) before a ReLU.

    Source: He, Zhang, Ren and Sun, "Delving deep into rectifiers", ICCV 2015.
    """
    return rng.normal(shape, std=math.sqrt(2.0 / shape[0]), dtype=dtype, backend=backend)
