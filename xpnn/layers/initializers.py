"""First values of parameters: functions of (generator, shape, dtype, backend).

Those with options are made by a function that takes the options: ``init=normal(0.01)``, but ``init=xavier``.
"""

import math
from functools import partial
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from xpnn.arguments import check_number
from xpnn.backend import Array, Backend, Shape, describe, get, is_array, to_numpy
from xpnn.layers.layer import Initializer
from xpnn.random import Generator


def fans(shape: Shape) -> tuple[int, int]:
    """Return how many inputs each output is computed from, and how many outputs each input reaches.

    Parameters
    ----------
    shape : tuple of int
        That of an affine layer's matrix (fan_in, fan_out), or of a convolution's filters (F, C, KH, KW), which have
        ``fan_in = C KH KW`` and ``fan_out = F KH KW``.

    Raises
    ------
    ValueError
        For a shape of fewer than two axes, or of no numbers.
    """
    if len(shape) < 2 or 0 in shape:
        raise ValueError(f"fans: expected the shape of a matrix or of filters (F, C, KH, KW); received {tuple(shape)}")
    window = math.prod(shape[2:])
    return (shape[0], shape[1]) if len(shape) == 2 else (shape[1] * window, shape[0] * window)


def constant(value: Any) -> Initializer:
    """A number, or an array that broadcasts to the shape."""
    return partial(_constant, value)  # unlike a closure it can be pickled


def _constant(value: Any, rng: Generator, shape: Shape, dtype: Any, backend: Backend) -> Array:
    return backend.zeros(shape, dtype) + backend.asarray(value, dtype)


zeros = constant(0.0)
ones = constant(1.0)


def normal(std: float) -> Initializer:
    """N(0, std²), the course's ``weight_scale``."""
    expected = "a standard deviation of at least 0"
    return partial(_normal, check_number("normal", expected, std, lambda number: number >= 0))


def _normal(std: float, rng: Generator, shape: Shape, dtype: Any, backend: Backend) -> Array:
    return rng.normal(shape, std=std, dtype=dtype, backend=backend)


small_normal = normal(0.02)  # usual for transformers


def uniform(bound: float) -> Initializer:
    """U(-bound, bound)."""
    return partial(_uniform, _positive("uniform", "bound", bound))


def _uniform(bound: float, rng: Generator, shape: Shape, dtype: Any, backend: Backend) -> Array:
    return rng.uniform(shape, -bound, bound, dtype=dtype, backend=backend)


def kaiming(rng: Generator, shape: Shape, dtype: Any, backend: Backend) -> Array:
    """N(0, 2 / fan_in), for weights before a ReLU.

    Source: He, Zhang, Ren and Sun, "Delving deep into rectifiers", ICCV 2015.
    """
    return _normal(math.sqrt(2.0 / fans(shape)[0]), rng, shape, dtype, backend)


def kaiming_uniform(gain: float) -> Initializer:
    """U(-bound, bound) of standard deviation ``gain / sqrt(fan_in)``: sqrt(2) is for weights before a ReLU."""
    return partial(_kaiming_uniform, _positive("kaiming_uniform", "gain", gain))


def _kaiming_uniform(gain: float, rng: Generator, shape: Shape, dtype: Any, backend: Backend) -> Array:
    return _uniform(gain * math.sqrt(3.0 / fans(shape)[0]), rng, shape, dtype, backend)


def torch_default(rng: Generator, shape: Shape, dtype: Any, backend: Backend) -> Array:
    """U(-bound, bound) with ``bound = 1 / sqrt(fan_in)``, as PyTorch's linear layers and convolutions have at first."""
    return _uniform(1.0 / math.sqrt(fans(shape)[0]), rng, shape, dtype, backend)


def xavier(rng: Generator, shape: Shape, dtype: Any, backend: Backend) -> Array:
    """N(0, 2 / (fan_in + fan_out)), for weights before a tanh.

    Source: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks",
    AISTATS 2010.
    """
    return _normal(math.sqrt(2.0 / sum(fans(shape))), rng, shape, dtype, backend)


def xavier_uniform(rng: Generator, shape: Shape, dtype: Any, backend: Backend) -> Array:
    """U(-bound, bound) with ``bound = sqrt(6 / (fan_in + fan_out))``: the variance of `xavier`."""
    return _uniform(math.sqrt(6.0 / sum(fans(shape))), rng, shape, dtype, backend)


def orthogonal(gain: float) -> Initializer:
    """`gain` times a random matrix of orthonormal rows, or columns where they are fewer; filters are rows (F, C KH KW).

    Source: Saxe, McClelland and Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep linear neural
    networks", ICLR 2014.
    """
    return partial(_orthogonal, _positive("orthogonal", "gain", gain))


def _orthogonal(gain: float, rng: Generator, shape: Shape, dtype: Any, backend: Backend) -> Array:
    fans(shape)
    matrix = rng.normal((shape[0], math.prod(shape[1:])), dtype="float64", backend="numpy")
    wide = matrix.shape[0] < matrix.shape[1]
    q, r = np.linalg.qr(matrix.T if wide else matrix)
    q = q * np.copysign(gain, np.diagonal(r))  # with the signs of R's diagonal Q is drawn uniformly
    return backend.asarray((q.T if wide else q).reshape(shape), dtype)


def dirac(base: Initializer = torch_default) -> Initializer:
    """Filters (F, C, KH, KW) of which the first C pass their channel on unchanged; `base` gives the others.

    Source: Zagoruyko and Komodakis, "DiracNets", 2017; for some of the filters Jordan, "94% on CIFAR-10 in 3.29
    seconds on a single GPU", 2024.
    """
    if not callable(base):
        raise TypeError(f"dirac: expected an initializer; received {base!r}")
    return partial(_dirac, base)


def _dirac(base: Initializer, rng: Generator, shape: Shape, dtype: Any, backend: Backend) -> Array:
    if len(shape) != 4:
        raise ValueError(f"dirac: expected the shape of filters (F, C, KH, KW); received {tuple(shape)}")
    filters = np.array(base(rng, shape, dtype, get("numpy")))
    passing = np.arange(min(shape[:2]))
    filters[passing] = 0.0
    filters[passing, passing, shape[2] // 2, shape[3] // 2] = 1.0
    return backend.asarray(filters, dtype)


def whitening(images: Array, eps: float = 5e-4) -> Initializer:
    """Filters that decorrelate the patches of `images` and give them variance 1, and the same filters negated.

    With the eigenvalues and eigenvectors of the patches' ``covariance = mean(p pᵀ)``, each filter is
    ``eigenvector / sqrt(eigenvalue + eps)``, from the smallest eigenvalue on, then its negative. So the weights have
    shape (2 C KH KW, C, KH, KW), and no random number is drawn.

    Parameters
    ----------
    images : array (N, C, H, W)
        As the net will see them: normalized. A few thousand suffice.
    eps : float
        Keeps directions of little variance from being blown up.

    Source: Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024; the covariance is not centered.
    """
    if not is_array(images):
        raise TypeError(f"whitening: expected images to be an array; received {describe(images)}")
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"whitening: expected images (N, C, H, W); received {tuple(images.shape)}")
    return partial(_whitening, images, _positive("whitening", "eps", eps))


def _whitening(images: Array, eps: float, rng: Generator, shape: Shape, dtype: Any, backend: Backend) -> Array:
    size, patch = tuple(images.shape[1:]), tuple(shape[1:])
    expected = (2 * math.prod(patch), *patch)
    if len(shape) != 4 or tuple(shape) != expected or patch[0] != size[0] or patch[1] > size[1] or patch[2] > size[2]:
        raise ValueError(
            f"whitening: expected filters (2 C KH KW, C, KH, KW) = {expected} within images (C, H, W) = {size}; "
            f"received {tuple(shape)}"
        )
    values, vectors = np.linalg.eigh(_patch_covariance(to_numpy(images), patch))
    filters = (vectors / np.sqrt(values + eps)).T
    largest = np.take_along_axis(filters, np.abs(filters).argmax(axis=1)[:, None], axis=1)
    filters = filters * np.sign(largest)  # an eigenvector's sign is arbitrary: the first half's largest are positive
    return backend.asarray(np.concatenate([filters, -filters]).reshape(shape), dtype)


def _patch_covariance(images: np.ndarray, patch: Shape, batch: int = 100) -> np.ndarray:
    """The mean of p pᵀ over all patches p of the images, in float64."""
    total, count = np.zeros((math.prod(patch),) * 2), 0
    for start in range(0, images.shape[0], batch):
        windows = sliding_window_view(images[start : start + batch], patch[1:], axis=(2, 3))
        patches = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, math.prod(patch)).astype("float64")
        total += patches.T @ patches
        count += patches.shape[0]
    return total / count


def _positive(where: str, what: str, value: float) -> float:
    return check_number(where, f"{what} above 0", value, lambda number: number > 0)
