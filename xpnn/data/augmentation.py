"""Augmentation: random changes of a training batch, made on the device by a seeded generator.

A transform is called with the images of a batch, as they are stored (uint8, say), and with what else is known of it;
it returns other images. One seed gives the same crops and flips on every backend, and nothing waits for the device.

    >>> from xpnn.backend import get
    >>> x = get("numpy").zeros((2, 3, 32, 32), "uint8")
    >>> batch = Batch(y=None, indices=get("numpy").asarray([4, 7]), rng=Generator(0), num_examples=10)
    >>> Compose([AlternatingFlip(), RandomCrop(2)])(x, batch).shape
    (2, 3, 32, 32)

A net that begins with `Standardize` takes raw images, keeps their mean in its checkpoint, and leaves crops and flips to
bytes; that is the usual way. `Normalize` does the same among the transforms, where the net has no such layer: it is the
one transform that the `Solver` applies when it measures accuracy, too.
"""

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from xpnn import backend as backends
from xpnn.backend import Array, dtype_name, is_floating, is_integer, library_of, namespace
from xpnn.data.images import PADDINGS, check_images, check_padding, pick_standardized, picked
from xpnn.errors import SettingError
from xpnn.kernels import fast_path
from xpnn.places import Chain, Mirrored, Places, Shifted
from xpnn.random import FLIPS, Generator

RowsAndColumns = tuple[Places | None, Places | None]

_channels: dict[tuple[Any, ...], Array] = {}  # what `_per_channel` has made


@dataclass
class Batch:
    """What is known of a batch besides its images.

    Attributes
    ----------
    y : array (N,) of integers, or (N, num_classes) of floats
        Labels; a transform may replace them by soft ones.
    indices : int64 array (N,)
        Where the images stand in the data set.
    rng : Generator
        For all that is drawn.
    epoch : int, or int64 array ()
        How many are complete; the array where the step is recorded.
    num_examples : int
        The size of the data set.
    num_classes : int or None
        Where it is known.
    dtype : str
        Of images and labels that can be integers no longer: the model's.
    """

    y: Array
    indices: Array
    rng: Generator
    epoch: int | Array = 0
    num_examples: int = 0
    num_classes: int | None = None
    dtype: str = "float32"


class Transform:
    """A change of a batch; `repr` says all that decides it."""

    def __call__(self, x: Array, batch: Batch) -> Array:
        """Return the changed images of a training batch.

        Parameters
        ----------
        x : array (N, C, H, W)
            Of uint8 or floats; not modified.
        batch : Batch
            Its `rng` moves on, and its `y` may be replaced.

        Returns
        -------
        out : array (N, C, H, W)
            Of the same dtype, unless the transform says otherwise.
        """
        places = self.places(x, batch)
        if places is None:
            raise NotImplementedError
        return picked(x, None, *map(_chain, places))

    def places(self, x: Array, batch: Batch, n: int | None = None) -> RowsAndColumns | None:
        """Return where the pixels of a batch come from, for a transform that only moves them.

        A `Compose` asks for it: then several of them, and the gathering of the batch, are one pass over the images.

        Parameters
        ----------
        x : array (M, C, H, W)
            Those of the batch, or of the whole data set.
        batch : Batch
            Its `rng` moves on.
        n : int, optional
            How many images the batch has, N: M by default.

        Returns
        -------
        rows, columns : Shifted, Mirrored, int64 array (N, H) or (N, W), or None
            Of `xpnn.places`, or for each row and column of each image that from which it comes; None where all
            stay. None in place of both, and nothing is drawn, when the transform does more.
        """
        return None

    def evaluate(self, x: Array, dtype: str = "float32") -> Array:
        """Return what the model is to see when nothing is left to chance: the images themselves, as a rule."""
        return x


@dataclass(frozen=True)
class Normalize(Transform):
    """``(x - mean) / std``, in training and in evaluation.

    Parameters
    ----------
    mean, std : float or sequence of float
        One for all channels or one for each, in the units of the images: 0 to 255 for bytes. Images of integers
        become floats of the batch's dtype. That of half types is computed in single precision.
    """

    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]

    def __post_init__(self) -> None:
        _set(self, mean=_numbers("Normalize", "mean", self.mean), std=_numbers("Normalize", "std", self.std))
        if any(std <= 0 for std in _tuple(self.std)):
            raise SettingError(f"Normalize: expected std above 0; received {self.std!r}")

    def __call__(self, x: Array, batch: Batch) -> Array:
        return self.evaluate(x, batch.dtype)

    def evaluate(self, x: Array, dtype: str = "float32") -> Array:
        return self.of_picked(x, dtype)

    def of_picked(
        self, x: Array, dtype: str, indices: Array | None = None, rows: Chain = (), columns: Chain = ()
    ) -> Array:
        """Return what `evaluate` makes of `picked` images, in one pass over them."""
        check_images("Normalize", x)
        for name, values in (("mean", self.mean), ("std", self.std)):
            _check_channels("Normalize", name, values, x)
        dtype = dtype_name(x.dtype) if is_floating(x) else dtype
        channels = max(len(_tuple(self.mean)), len(_tuple(self.std)))
        kept = "float64" if dtype == "float64" else "float32"
        mean, std = (_per_channel(_tuple(values, channels), x, kept) for values in (self.mean, self.std))
        fast = fast_path("data.images.pick_standardized", library_of(x))
        return (fast or pick_standardized)(x, mean, std, dtype, indices, rows, columns)


@dataclass(frozen=True)
class RandomCrop(Transform):
    """Shift each image by up to `padding` pixels either way, in rows and in columns.

    Parameters
    ----------
    padding : int
        At least 1.
    mode : str
        What comes in at the edge: ``"reflect"``, the image mirrored at its outermost pixels, or ``"zero"``.
    """

    padding: int
    mode: str = "reflect"

    def __post_init__(self) -> None:
        _set(self, padding=_whole("RandomCrop", "padding", self.padding))
        if self.mode not in PADDINGS:
            raise SettingError(f"RandomCrop: expected mode to be one of {', '.join(PADDINGS)}; received {self.mode!r}")

    def places(self, x: Array, batch: Batch, n: int | None = None) -> RowsAndColumns:
        check_images("RandomCrop", x)
        m, _, height, width = x.shape
        check_padding("RandomCrop", self.mode, self.padding, height, width)
        shape = 2, m if n is None else n
        shifts = batch.rng.integers(-self.padding, self.padding + 1, shape, backends.of(x))
        return Shifted(shifts[0, ...], self.mode), Shifted(shifts[1, ...], self.mode)


@dataclass(frozen=True)
class RandomFlip(Transform):
    """Exchange left and right in every second image, at random."""

    def places(self, x: Array, batch: Batch, n: int | None = None) -> RowsAndColumns:
        check_images("RandomFlip", x)
        return None, Mirrored(batch.rng.integers(0, 2, x.shape[0] if n is None else n, backends.of(x)))


@dataclass(frozen=True)
class AlternatingFlip(Transform):
    """Flip each image of the data set at random once, and all of them in every second epoch.

    So in two successive epochs each image is seen both ways, where `RandomFlip` shows half of them twice the same. The
    first flips depend on the generator's seed and on the image's place in the data set alone.

    Source: Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, section 3.6.
    """

    _drawn: dict[tuple[Any, ...], Array] = field(default_factory=dict, init=False, repr=False, compare=False)

    def places(self, x: Array, batch: Batch, n: int | None = None) -> RowsAndColumns:
        xp = check_images("AlternatingFlip", x)
        if batch.num_examples < 1:
            raise SettingError("AlternatingFlip: expected a batch that knows the size of its data set; received 0")
        coins = self._coins(batch.rng.seed, batch.num_examples, backends.of(x))
        return None, Mirrored(xp.take(coins, batch.indices, axis=0) ^ (batch.epoch % 2))

    def _coins(self, *drawn_for: Any) -> Array:
        """A coin for each image, drawn once for a seed, size and backend, and kept: a recorded step knows the array."""
        if drawn_for not in self._drawn:
            seed, num_examples, backend = drawn_for
            self._drawn[drawn_for] = Generator(seed, FLIPS).integers(0, 2, num_examples, backend)
        return self._drawn[drawn_for]


@dataclass(frozen=True)
class Cutout(Transform):
    """Cover a square of each image, whose center may be any pixel: it may hang over the edge.

    Parameters
    ----------
    size : int
        Its side, at least 1.
    fill : float or sequence of float
        What covers it: one number or one for each channel, in the units of the images.

    Source: DeVries and Taylor, "Improved regularization of convolutional neural networks with cutout", 2017.
    """

    size: int
    fill: float | tuple[float, ...] = 0.0

    def __post_init__(self) -> None:
        _set(self, size=_whole("Cutout", "size", self.size), fill=_numbers("Cutout", "fill", self.fill))

    def __call__(self, x: Array, batch: Batch) -> Array:
        xp = check_images("Cutout", x)
        n, _, height, width = x.shape
        _check_channels("Cutout", "fill", self.fill, x)
        if is_integer(x):
            low, high = xp.iinfo(x.dtype).min, xp.iinfo(x.dtype).max
            for value in _tuple(self.fill):
                if value != int(value) or not low <= value <= high:
                    where = f"from {low} to {high}, as the images are {dtype_name(x.dtype)}"
                    raise SettingError(f"Cutout: expected fill to be whole and {where}; received {value!r}")
        covered = True
        for axis, length in ((2, height), (3, width)):
            center = batch.rng.integers(0, length, n, backends.of(x))
            pixel = xp.arange(length, dtype=xp.int64, device=x.device)
            from_first = pixel[None, :] - (center[:, None] - self.size // 2)
            inside = (from_first >= 0) & (from_first < self.size)
            covered = covered & xp.reshape(inside, (n, 1, length, 1) if axis == 2 else (n, 1, 1, length))
        return xp.where(covered, _per_channel(self.fill, x, dtype_name(x.dtype)), x)


@dataclass(frozen=True)
class ColorJitter(Transform):
    """Multiply each image by one random factor, and its distance from its own mean by another.

    ``x = b x``, then ``x = c x + (1 - c) mean(x)``, with b in ``[1 - brightness, 1 + brightness)`` and c likewise;
    the mean is over all channels and pixels of the image. Images of integers are rounded and kept in their dtype's
    range; floats are not bounded.

    Parameters
    ----------
    brightness, contrast : float
        From 0, which leaves the images as they are, to 1.
    """

    brightness: float = 0.0
    contrast: float = 0.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast"):
            value = _number("ColorJitter", name, getattr(self, name))
            if not 0 <= value <= 1:
                raise SettingError(f"ColorJitter: expected {name} from 0 to 1; received {value!r}")
            _set(self, **{name: value})

    def __call__(self, x: Array, batch: Batch) -> Array:
        xp = check_images("ColorJitter", x)
        n, *image = x.shape
        dtype = x.dtype if is_floating(x) else xp.float32
        draws = batch.rng.uniform((2, n, 1, 1, 1), -1.0, 1.0, dtype, backends.of(x))
        brighter, sharper = 1.0 + self.brightness * draws[0, ...], 1.0 + self.contrast * draws[1, ...]
        if is_floating(x):
            mean = xp.mean(x, axis=(1, 2, 3), keepdims=True)
        else:  # in integers the sum is exact, and so the same on every backend
            total = xp.sum(x, axis=(1, 2, 3), keepdims=True, dtype=xp.int64)
            mean = xp.astype(total, dtype) / math.prod(image)
        out = xp.astype(x, dtype, copy=False) * (sharper * brighter) + (1.0 - sharper) * brighter * mean
        if is_floating(x):
            return out
        info = xp.iinfo(x.dtype)
        # Not by clip, which array-api-compat has wait for a device.
        return xp.astype(xp.minimum(xp.maximum(xp.round(out), info.min), info.max), x.dtype)


@dataclass(frozen=True)
class Mixup(Transform):
    """Blend each example with another one of the batch: ``l x + (1 - l) x'``, and its label likewise.

    One l for the batch is drawn from Beta(alpha, alpha). Images of integers become floats; labels become soft ones,
    (N, num_classes), in which each row sums to 1.

    Parameters
    ----------
    alpha : float
        Above 0; the larger, the nearer is l to a half.

    Source: Zhang, Cisse, Dauphin and Lopez-Paz, "mixup: beyond empirical risk minimization", ICLR 2018.
    """

    alpha: float
    recordable: ClassVar[bool] = False  # l is drawn on the host

    def __post_init__(self) -> None:
        _set(self, alpha=_number("Mixup", "alpha", self.alpha))
        if self.alpha <= 0:
            raise SettingError(f"Mixup: expected alpha to be a number above 0; received {self.alpha!r}")

    def __call__(self, x: Array, batch: Batch) -> Array:
        weight = beta(self.alpha, batch.rng)
        others = batch.rng.permutation(x.shape[0], backends.of(x))
        batch.y = _blend(_one_hot(batch), others, weight)
        return _blend(_floats(x, batch.dtype), others, weight)


class Compose(Transform):
    """Several transforms, one after the other.

    Parameters
    ----------
    transforms : iterable of Transform, or of functions ``transform(x, batch) -> x``
    """

    def __init__(self, transforms: Iterable[Callable[[Array, Batch], Array]] = ()) -> None:
        parts: list[Callable[[Array, Batch], Array]] = []
        for transform in transforms:
            if not callable(transform):
                raise SettingError(f"Compose: expected transforms, or functions (x, batch); received {transform!r}")
            parts += transform.transforms if type(transform) is Compose else [transform]
        self.transforms: tuple[Callable[[Array, Batch], Array], ...] = tuple(parts)

    def __repr__(self) -> str:
        return f"[{', '.join(map(_describe, self.transforms))}]"

    def __call__(self, x: Array, batch: Batch, indices: Array | None = None) -> Array:
        """Return the changed images: with `indices`, int64 (N,), of those images of x alone."""
        n = None if indices is None else indices.shape[0]
        rows: Chain = ()
        columns: Chain = ()
        for transform in self.transforms:
            places = _places(transform, x, batch, n)
            if places is not None:
                rows, columns = rows + _chain(places[0]), columns + _chain(places[1])
                continue
            if type(transform) is Normalize:
                x = transform.of_picked(x, batch.dtype, indices, rows, columns)
            else:
                x = transform(picked(x, indices, rows, columns), batch)
            n, indices, rows, columns = None, None, (), ()
        return picked(x, indices, rows, columns)

    def evaluate(self, x: Array, dtype: str = "float32") -> Array:
        for transform in self.transforms:
            if isinstance(transform, Transform):
                x = transform.evaluate(x, dtype)
        return x


def as_compose(augment: Any) -> Compose:
    """Return a transform, a sequence of them, or None for none, as a `Compose`."""
    if augment is None or isinstance(augment, Compose):
        return augment or Compose()
    return Compose(augment if isinstance(augment, Iterable) else [augment])


def beta(alpha: float, rng: Generator) -> float:
    """Draw from Beta(alpha, alpha), on the host.

    ``(1 + sign(c) sqrt((1 - q) c² / (q + (1 - q) c²))) / 2`` with ``q = u^(1 / alpha)`` and ``c = cos(2 pi v)``, where
    u and v are uniform.

    Source: Devroye, "Random variate generation in one line of code", Winter Simulation Conference 1996; after Bailey,
    "Polar generation of random variates with the t-distribution", Mathematics of Computation 1994.
    """
    u, v = (float(value) for value in rng.uniform(2, dtype="float64", backend="numpy"))
    q, cos = u ** (1.0 / alpha), math.cos(2.0 * math.pi * v)
    part = (1.0 - q) * cos * cos
    return 0.5 + 0.5 * math.copysign(math.sqrt(part / (q + part)), cos)


def _places(transform: Callable[[Array, Batch], Array], x: Array, batch: Batch, n: int | None) -> RowsAndColumns | None:
    """What `places` says, where it may be asked in place of a call: not where a subclass has a call of its own."""
    if not isinstance(transform, Transform):
        return None
    newest = next(c for c in type(transform).__mro__ if {"places", "__call__"} & vars(c).keys())
    return transform.places(x, batch, n) if "places" in vars(newest) else None


def _chain(places: Places | None) -> Chain:
    return () if places is None else (places,)


def _blend(x: Array, others: Array, weight: float) -> Array:
    return weight * x + (1.0 - weight) * namespace(x).take(x, others, axis=0)


def _one_hot(batch: Batch) -> Array:
    """Labels (N, num_classes) of floats."""
    y = batch.y
    if is_floating(y):
        return y
    if batch.num_classes is None:
        raise SettingError("Mixup: expected a batch that knows the number of classes; received None")
    xp, dtype = namespace(y), backends.of(y).dtype(batch.dtype)
    classes = xp.arange(batch.num_classes, dtype=y.dtype, device=y.device)
    return xp.astype(y[:, None] == classes[None, :], dtype)


def _per_channel(values: float | tuple[float, ...], x: Array, dtype: str) -> Array:
    """One number, or one for each channel, as an array (1 or C, 1, 1) of the images' kind.

    Made once and kept: each copy from the host would be waited for, and a recorded step knows the array.
    """
    xp, backend = namespace(x), backends.of(x)
    key = values, xp, backend, dtype
    if key not in _channels:
        _channels[key] = xp.reshape(backend.asarray(_tuple(values), dtype=dtype), (-1, 1, 1))
    return _channels[key]


def _floats(x: Array, dtype: str) -> Array:
    return x if is_floating(x) else namespace(x).astype(x, backends.of(x).dtype(dtype))


def _set(transform: Transform, **settings: Any) -> None:
    """Put Python's numbers in the place of those that a frozen transform was given."""
    for name, value in settings.items():
        object.__setattr__(transform, name, value)


def _whole(where: str, name: str, value: Any) -> int:
    try:
        if operator.index(value) >= 1:
            return operator.index(value)
    except TypeError:
        pass
    raise SettingError(f"{where}: expected {name} to be a whole number of at least 1; received {value!r}")


def _number(where: str, name: str, value: Any) -> float:
    try:
        if math.isfinite(value):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise SettingError(f"{where}: expected {name} to be a number; received {value!r}")


def _numbers(where: str, name: str, value: Any) -> float | tuple[float, ...]:
    if isinstance(value, Iterable) and not isinstance(value, str):
        return tuple(_number(where, f"each {name}", v) for v in value)
    return _number(where, name, value)


def _tuple(values: float | tuple[float, ...], count: int = 1) -> tuple[float, ...]:
    return values if isinstance(values, tuple) else (values,) * count


def _check_channels(where: str, name: str, values: float | tuple[float, ...], x: Array) -> None:
    if isinstance(values, tuple) and len(values) != x.shape[1]:
        raise ValueError(
            f"{where}: expected {x.shape[1]} numbers as {name}, one for each channel of images {tuple(x.shape)}; "
            f"received {len(values)}"
        )


def _describe(transform: Any) -> str:
    if isinstance(transform, Transform):
        return repr(transform)
    return getattr(transform, "__qualname__", type(transform).__qualname__)
