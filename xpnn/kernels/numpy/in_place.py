"""Update rules on NumPy, written into place."""

from typing import Any

import numpy as np

from xpnn.kernels import kernel
from xpnn.kernels.numpy.loops import loops

Config = dict[str, Any]


@kernel("optim.in_place.sgd", "numpy")
def sgd(w: np.ndarray, dw: np.ndarray, config: Config) -> tuple[np.ndarray, ...]:
    loops.sgd(w, dw, *_numbers(w, config["learning_rate"]))
    return (w,)


@kernel("optim.in_place.sgd_momentum", "numpy")
def sgd_momentum(w: np.ndarray, dw: np.ndarray, config: Config) -> tuple[np.ndarray, ...]:
    loops.sgd_momentum(w, dw, config["velocity"], *_numbers(w, config["learning_rate"], config["momentum"]))
    return w, config["velocity"]


@kernel("optim.in_place.sgd_nesterov_momentum", "numpy")
def sgd_nesterov_momentum(w: np.ndarray, dw: np.ndarray, config: Config) -> tuple[np.ndarray, ...]:
    loops.sgd_nesterov_momentum(w, dw, config["velocity"], *_numbers(w, config["learning_rate"], config["momentum"]))
    return w, config["velocity"]


@kernel("optim.in_place.nesterov", "numpy")
def nesterov(w: np.ndarray, dw: np.ndarray, config: Config) -> tuple[np.ndarray, ...]:
    numbers = _numbers(w, config["learning_rate"], config["momentum"], config["weight_decay"])
    loops.nesterov(w, dw, config["velocity"], *numbers)
    return w, config["velocity"]


@kernel("optim.in_place.rmsprop", "numpy")
def rmsprop(w: np.ndarray, dw: np.ndarray, config: Config) -> tuple[np.ndarray, ...]:
    decay = config["decay_rate"]
    loops.rmsprop(w, dw, config["a"], *_numbers(w, config["learning_rate"], decay, 1 - decay, config["epsilon"]))
    return w, config["a"]


@kernel("optim.in_place.adam", "numpy")
def adam(w: np.ndarray, dw: np.ndarray, config: Config) -> tuple[np.ndarray, ...]:
    return _adam(w, dw, config, 1.0)


@kernel("optim.in_place.adamw", "numpy")
def adamw(w: np.ndarray, dw: np.ndarray, config: Config) -> tuple[np.ndarray, ...]:
    return _adam(w, dw, config, 1 - config["learning_rate"] * config["weight_decay"])


def _adam(w: np.ndarray, dw: np.ndarray, config: Config, kept: float) -> tuple[np.ndarray, ...]:
    """Adam on w, of which so much is kept."""
    b1, b2 = config["beta1"], config["beta2"]
    config["t"] = t = config["t"] + 1
    # The second moment's correction stands outside the root: sqrt(a c) + eps = sqrt(c) (sqrt(a) + eps / sqrt(c)).
    root = (1 / (1 - b2**t)) ** 0.5
    step = config["learning_rate"] / (1 - b1**t) / root
    numbers = _numbers(w, kept, step, b1, 1 - b1, b2, 1 - b2, config["epsilon"] / root)
    loops.adam(w, dw, config["v"], config["a"], *numbers)
    return w, config["v"], config["a"]


@kernel("optim.in_place.lion", "numpy")
def lion(w: np.ndarray, dw: np.ndarray, config: Config) -> tuple[np.ndarray, ...]:
    lr, b1, b2 = config["learning_rate"], config["beta1"], config["beta2"]
    numbers = _numbers(w, 1 - lr * config["weight_decay"], lr, b1, 1 - b1, b2, 1 - b2)
    loops.lion(w, dw, config["v"], *numbers)
    return w, config["v"]


def _numbers(w: np.ndarray, *numbers: float) -> list[Any]:
    """The numbers in w's dtype, so that compiled loops compute in it."""
    return [w.dtype.type(number) for number in numbers]
