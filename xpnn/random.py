"""One counter-based random generator: the same seed gives the same numbers on every backend.

Every draw is a function of three numbers, (seed, stream, counter): the Philox 4x64-10 bits of
`numpy.random.Philox` with key (seed, stream), turned into uniforms, integers, masks and normals by
arithmetic that all backends share. Uniforms, integers, permutations and masks agree bit for bit,
normals to rounding. On CuPy the bits are made on the device; elsewhere on the host, then copied.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from xpnn import backend as backends
from xpnn.backend import FLOATING, Array, Backend, Shape, dtype_name, namespace
from xpnn.errors import SettingError
from xpnn.kernels import fast_path
from xpnn.recording import varying

# Streams of one seed, so that no two uses share numbers. Dropout layers count on from the last.
WEIGHTS, BATCHES, EVALUATION, AUGMENTATION, FLIPS, DROPOUT = 0, 1, 2, 3, 4, 16


def philox(seed: int, stream: int, counter: int, n: int) -> Array:
    """Return `n` random uint64 of the blocks after `counter`; a block holds four."""
    generator = np.random.Philox(key=_words(seed, stream), counter=_words(counter, 0, 0, 0))
    return generator.random_raw(n)


def _words(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def dropout_mask(seed: int, stream: int, counter: int, n: int, p: float, dtype: str) -> Array:
    """The definition of `Generator.dropout_mask`: `n` numbers from 32 bits each, of the blocks after `counter`."""
    bits = philox(seed, stream, counter, (n + 1) // 2).view("uint32")[:n]
    keep = bits >= min(round(p * 2**32), 2**32 - 1)
    return keep.astype(dtype) * (1.0 / (1.0 - p))


def integers(seed: int, stream: int, counter: int, n: int, low: int, high: int) -> Array:
    """The definition of `Generator.integers`: `n` numbers from the upper 53 bits of one each, of the blocks after."""
    unit = _unit64(philox(seed, stream, counter, n))
    # unit is at most 1 - 2**-53, so the product rounds to less than high - low
    return (unit * (high - low)).astype("int64") + low


def normals(seed: int, stream: int, counter: int, n: int, mean: float, std: float, dtype: str) -> Array:
    """The definition of `Generator.normal`: pairs of numbers from 53 bits each, one of them half the draw later."""
    pairs = (n + 1) // 2
    unit = _unit64(philox(seed, stream, counter, 2 * pairs))
    radius = np.sqrt(-2.0 * np.log(unit[:pairs] + 2.0**-53))  # (0, 1]: the logarithm stays finite
    angle = 2.0 * math.pi * unit[pairs:]
    z = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:n]
    return (z * std + mean).astype(dtype)


def _unit64(bits: Array) -> Array:
    return (bits >> 11).astype("float64") * 2.0**-53


class Generator:
    """A stream of random numbers whose whole state is (seed, stream, counter).

    Parameters
    ----------
    seed, stream : int
        From 0 to 2**64 - 1. Generators that differ in either give independent numbers.
    counter : int
        How many blocks of four 64-bit numbers have been used.

    Every method takes `backend`, the name or `Backend` that its result is to live on.
    """

    def __init__(self, seed: int = 0, stream: int = 0, counter: int = 0) -> None:
        self.state = (seed, stream, counter)

    @property
    def state(self) -> tuple[int, ...]:
        """(seed, stream, counter); may be set."""
        return self.seed, self.stream, self.counter

    @state.setter
    def state(self, state: Sequence[int]) -> None:
        values = tuple(state)
        if len(values) != 3 or not all(isinstance(v, (int, np.integer)) and 0 <= v < 2**64 for v in values):
            raise SettingError(f"random: expected seed, stream and counter from 0 to 2**64 - 1; received {state!r}")
        self.seed, self.stream, self.counter = (int(v) for v in values)

    def __repr__(self) -> str:
        return f"Generator(seed={self.seed}, stream={self.stream}, counter={self.counter})"

    def spawn(self, stream: int) -> "Generator":
        """Return a generator of the same seed at the start of another stream."""
        return Generator(self.seed, stream)

    def uniform(
        self,
        shape: int | Shape = (),
        low: float = 0.0,
        high: float = 1.0,
        dtype: Any = "float32",
        backend: str | Backend | None = None,
    ) -> Array:
        """Draw from [low, high): 24 random bits each in float32, 53 in float64.

        As with NumPy's, rounding may give `high` itself where the numbers are coarser than the bits.
        """
        target, shape, dtype = backends.get(backend), _shape(shape), _floating(dtype)
        low, high = float(low), float(high)
        n = math.prod(shape)
        unit = self._unit64(n, target) if dtype == "float64" else self._unit32(n, target).astype(dtype)
        return self._deliver(unit * (high - low) + low, shape, target)

    def normal(
        self,
        shape: int | Shape = (),
        mean: float = 0.0,
        std: float = 1.0,
        dtype: Any = "float32",
        backend: str | Backend | None = None,
    ) -> Array:
        """Draw from N(mean, std²), by the Box-Muller transform in float64."""
        target, shape, dtype = backends.get(backend), _shape(shape), _floating(dtype)
        mean, std = float(mean), float(std)
        n = math.prod(shape)
        draw = fast_path("random.normals", target.name) or normals
        numbers = draw(self.seed, self.stream, self._past(-(-n // 4)), n, mean, std, dtype)
        return self._deliver(numbers, shape, target)

    def integers(self, low: int, high: int, shape: int | Shape = (), backend: str | Backend | None = None) -> Array:
        """Draw int64 from {low, ..., high - 1}."""
        if not 0 < high - low < 2**53:
            raise SettingError(f"random.integers: expected low < high < low + 2**53; received {low} and {high}")
        target, shape = backends.get(backend), _shape(shape)
        n = math.prod(shape)
        draw = fast_path("random.integers", target.name) or integers
        return self._deliver(draw(self.seed, self.stream, self._past(-(-n // 4)), n, low, high), shape, target)

    def permutation(self, n: int, backend: str | Backend | None = None) -> Array:
        """Return the int64 numbers 0 to n - 1 in random order."""
        target = backends.get(backend)
        bits = self._bits(n, target)
        xp = namespace(bits)
        # The low bits of each key are replaced by its index: no two keys are equal, and sorting yields the order.
        width = max(n - 1, 1).bit_length()
        keys = ((bits >> width) << width) | xp.arange(n, dtype="uint64")
        order = xp.sort(keys) & ((1 << width) - 1)
        return self._deliver(order.astype("int64"), (n,), target)

    def dropout_mask(
        self, shape: int | Shape, p: float, dtype: Any = "float32", backend: str | Backend | None = None
    ) -> Array:
        """Draw the mask of inverted dropout: 0 with probability `p`, else 1 / (1 - p)."""
        target, shape, dtype = backends.get(backend), _shape(shape), _floating(dtype)
        n = math.prod(shape)
        draw = fast_path("random.dropout_mask", target.name) or dropout_mask
        mask = draw(self.seed, self.stream, self._past(-(-n // 8)), n, float(p), dtype)
        return self._deliver(mask, shape, target)

    def _bits(self, n: int, target: Backend) -> Array:
        """n uint64, on the device where it has a kernel, else on the host; the counter moves past them."""
        draw = fast_path("random.philox", target.name) or philox
        return draw(self.seed, self.stream, self._past(-(-n // 4)), n)

    def _past(self, blocks: int) -> Any:
        """Move the counter past so many blocks; return what it was, or a place for it where a step is recorded."""

        def move() -> int:
            before, self.counter = self.counter, (self.counter + blocks) % 2**64
            return before

        return varying(move, dtype="uint64")

    def _bits32(self, n: int, target: Backend) -> Array:
        return self._bits((n + 1) // 2, target).view("uint32")[:n]

    def _unit64(self, n: int, target: Backend) -> Array:
        return _unit64(self._bits(n, target))

    def _unit32(self, n: int, target: Backend) -> Array:
        return (self._bits32(n, target) >> 8).astype("float32") * 2.0**-24

    @staticmethod
    def _deliver(values: Array, shape: Shape, target: Backend) -> Array:
        return target.asarray(values.reshape(shape))


def as_generator(rng: "Generator | int | None", stream: int = WEIGHTS) -> Generator:
    """Return `rng` itself, or a generator with that seed; for None with a seed that NumPy's global state gives.

    So a script that says ``numpy.random.seed(0)`` and passes no seed is reproducible all the same.
    """
    if isinstance(rng, Generator):
        return rng
    seed = int(np.random.randint(2**31 - 1)) if rng is None else rng  # noqa: NPY002 (the global state is meant)
    return Generator(seed, stream)


def _floating(dtype: Any) -> str:
    name = dtype_name(dtype)
    if name not in FLOATING:
        raise SettingError(f"random: expected a floating-point dtype; received {name}")
    return name


def _shape(shape: int | Shape) -> Shape:
    try:
        return (operator.index(shape),)  # type: ignore[arg-type]
    except TypeError:
        return tuple(operator.index(size) for size in shape)  # type: ignore[union-attr]
