"""What the kernels of update rules share: each rule's state, and the numbers that a step depends on.

A step is a pass over w, dw and the state with a few numbers, which may change from step to step: rates, and corrections
by how many steps there were. The host computes them in double precision.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from xpnn.kernels import kernel
from xpnn.recording import varying

Array = Any
Config = dict[str, Any]


class Update(NamedTuple):
    """A rule as kernels see it."""

    loop: str  # what passes over the arrays: two rules may differ in their numbers alone
    state: tuple[str, ...]
    size: int  # how many numbers
    numbers: Callable[[Config], tuple[float, ...]]


class Segment(NamedTuple):
    """What a step goes over: parameters with their gradients and state, and the numbers of `InPlaceKernel.advance`."""

    w: Array
    dw: Array
    state: tuple[Array, ...]
    numbers: Any


Run = Callable[[str, Sequence[Segment], Array | None, Array | None], None]


class InPlaceKernel:
    """A rule's form that writes into place, as `optim.in_place` describes it, by a library's own pass over arrays.

    Parameters
    ----------
    update : Update
    run : callable
        ``run(loop, segments, where, factor)`` takes the step of segments of one buffer, which may differ in their
        numbers: those of several rules, too, whose loop is the same.
    """

    def __init__(self, update: Update, run: Run) -> None:
        self.update, self.run = update, run

    def __call__(
        self, w: Array, dw: Array, config: Config, where: Array | None = None, factor: Array | None = None
    ) -> tuple[Array, ...]:
        state = tuple(config[key] for key in self.update.state)
        self.run(self.update.loop, [Segment(w, dw, state, self.advance(config, w))], where, factor)
        return w, *state

    def advance(self, config: Config, w: Array) -> Any:
        """Count a step, and return the numbers that it depends on: a tuple, or a place for them while it is recorded.

        It counts whatever the step's condition says.
        """

        def numbers() -> tuple[float, ...]:
            if "t" in config:
                config["t"] += 1
            return self.update.numbers(config)

        return varying(numbers, self.update.size, "float64" if w.dtype.itemsize == 8 else "float32")


def register(library: str, run: Run) -> None:
    """Register a kernel for every rule, by that library's `run` as in `InPlaceKernel`."""
    for rule, update in UPDATES.items():
        kernel(f"optim.in_place.{rule}", library)(InPlaceKernel(update, run))


def _adam(config: Config, kept: float = 1.0) -> tuple[float, ...]:
    """Adam on w, of which so much is kept."""
    b1, b2, t = config["beta1"], config["beta2"], config["t"]
    # The second moment's correction stands outside the root: sqrt(a c) + eps = sqrt(c) (sqrt(a) + eps / sqrt(c)).
    root = (1 / (1 - b2**t)) ** 0.5
    return kept, config["learning_rate"] / (1 - b1**t) / root, b1, 1 - b1, b2, 1 - b2, config["epsilon"] / root


def _lion(config: Config) -> tuple[float, ...]:
    b1, b2 = config["beta1"], config["beta2"]
    return _kept(config), config["learning_rate"], b1, 1 - b1, b2, 1 - b2


def _rmsprop(config: Config) -> tuple[float, ...]:
    decay = config["decay_rate"]
    return config["learning_rate"], decay, 1 - decay, config["epsilon"]


def _kept(config: Config) -> float:
    return 1 - config["learning_rate"] * config["weight_decay"]


def _these(*names: str) -> Callable[[Config], tuple[float, ...]]:
    return lambda config: tuple(config[name] for name in names)


UPDATES = {
    "sgd": Update("sgd", (), 1, _these("learning_rate")),
    "sgd_momentum": Update("sgd_momentum", ("velocity",), 2, _these("learning_rate", "momentum")),
    "sgd_nesterov_momentum": Update("sgd_nesterov_momentum", ("velocity",), 2, _these("learning_rate", "momentum")),
    "nesterov": Update("nesterov", ("velocity",), 3, _these("learning_rate", "momentum", "weight_decay")),
    "rmsprop": Update("rmsprop", ("a",), 4, _rmsprop),
    "adam": Update("adam", ("v", "a"), 7, _adam),
    "adamw": Update("adam", ("v", "a"), 7, lambda config: _adam(config, _kept(config))),
    "lion": Update("lion", ("v",), 6, _lion),
}


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return how many inputs and outputs a matrix (D, M) has, or filters (F, C, KH, KW): as Muon counts them."""
    first, others = shape[0], math.prod(shape[1:])
    return (first, others) if len(shape) == 2 else (others, first)


def orthogonalized(x: Array, steps: int, product: Callable[..., Array], product_sum: Callable[..., Array]) -> Array:
    """Return a matrix of norm 1 after so many Newton-Schulz steps by these products: see `optim.newton_schulz`."""
    a, b, c = 3.4445, -4.7750, 2.0315
    is_tall = x.shape[0] > x.shape[1]
    for _ in range(steps):
        gram = product(x.T, x) if is_tall else product(x, x.T)  # the smaller one of the two
        polynomial = product_sum(gram, gram, gram, c, b)
        x = product_sum(x, polynomial, x, 1.0, a) if is_tall else product_sum(polynomial, x, x, 1.0, a)
    return x


def muon(config: Config, shape: tuple[int, ...]) -> tuple[float, ...]:
    """Muon's momentum, its rate for weights of that shape, and how much of them is kept."""
    inputs, outputs = fans(shape)
    scale = 1.0 if config["normalize_weights"] else math.sqrt(max(1.0, outputs / max(inputs, 1)))
    return config["momentum"], config["learning_rate"] * scale, _kept(config)
