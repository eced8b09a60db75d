"""Standardizing by fixed statistics of the data."""

from collections.abc import Callable
from typing import Any

import numpy as np

from xpnn import backend as backends
from xpnn.backend import Array, Shape, dtype_name, is_floating, library_of, namespace, to_numpy
from xpnn.kernels import fast_path
from xpnn.layers import initializers
from xpnn.layers.layer import Cache, Layer, Spec
from xpnn.layers.precision import narrowed, widened

Standardization = tuple[Array | float, Array | float | None]  # mean and std, which may be none


def standardizing(statistics: Standardization | None) -> list[Layer]:
    """Return the first layers of a net that takes raw images: `Standardize`, or none without statistics."""
    return [] if statistics is None else [Standardize(*statistics)]


def _check_numbers(where: str, expected: str, value: Any, accepts: Callable[[Any], Any]) -> None:
    numbers = to_numpy(value)
    if numbers.dtype.kind not in "biuf" or not np.all(accepts(numbers)):
        raise ValueError(f"{where}: expected {expected}; received {value!r:.60}")


def standardized(x: Array, mean: Array, std: Array | None, dtype: str) -> Array:
    """The definition of `Standardize`: ``(x - mean) / std`` in single precision at least, then of that dtype."""
    out = (widened(x) if is_floating(x) else namespace(x).astype(x, mean.dtype)) - mean
    if std is not None:
        out /= std
    return narrowed(out, backends.of(x).dtype(dtype))


class Standardize(Layer):
    """``(x - mean) / std`` with fixed statistics of the training data, so that a model takes raw images.

    Parameters
    ----------
    mean : float or array
        Of the shape of one example, or one that broadcasts to it.
    std : float or array, optional
        The same; None to subtract the mean alone.

    The two are state: saved with the model and restored from a checkpoint. Where it is a model's first layer, it takes
    bytes as they are.
    """

    takes_bytes = True
    is_single = True

    def __init__(self, mean: Any = 0.0, std: Any = None, name: str = "") -> None:
        super().__init__(name)
        where = name or "standardize"
        _check_numbers(where, "mean, finite numbers", mean, np.isfinite)
        if std is not None:
            _check_numbers(where, "std, numbers above 0", std, lambda numbers: np.isfinite(numbers) & (numbers > 0))
        self.statistics = {"mean": mean} if std is None else {"mean": mean, "std": std}

    def output_shape(self, input_shape: Shape) -> Shape:
        for key, value in self.statistics.items():
            shape = to_numpy(value).shape
            ends = zip(reversed(shape), reversed(input_shape), strict=False)
            if len(shape) > len(input_shape) or any(size not in (1, end) for size, end in ends):
                where = self.path or "standardize"
                raise ValueError(f"{where}: expected {key} to broadcast to the input's {input_shape}; received {shape}")
        return input_shape

    def state_specs(self, input_shape: Shape) -> dict[str, Spec]:
        return {key: Spec(input_shape, initializers.constant(value)) for key, value in self.statistics.items()}

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        mean, std = self.state["mean"], self.state.get("std")
        dtype = dtype_name(x.dtype) if is_floating(x) else self.compute_dtype or dtype_name(mean.dtype)
        fast = fast_path("layers.standardize.standardized", library_of(x))
        return (fast or standardized)(x, mean, std, dtype), None

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        dx = dout if "std" not in self.state else narrowed(widened(dout) / self.state["std"], dout.dtype)
        return dx, {}
