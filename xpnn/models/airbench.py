"""The net of the CIFAR-10 speed run airbench94."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from xpnn.arguments import check_sizes
from xpnn.backend import Array, Backend, Shape, describe, get, is_array, namespace, to_numpy
from xpnn.layers import GELU, BatchNorm, Conv, Flatten, Linear, MaxPool, Scale, Sequential, Standardize
from xpnn.layers.initializers import constant, dirac, torch_default, uniform, whitening
from xpnn.layers.layer import Initializer
from xpnn.models.model import Model
from xpnn.random import Generator

# Of CIFAR-10's training images, by channel, as everyone rounds them; for pixels from 0 to 255.
CIFAR_MEAN = tuple(255 * mean for mean in (0.4914, 0.4822, 0.4465))
CIFAR_STD = tuple(255 * std for std in (0.2470, 0.2435, 0.2616))


class Airbench(Model):
    """whitening 2x2 convolution - GELU - three blocks - 3x3 max pool - linear, scores divided by their inputs' number.

    A block is conv - 2x2 max pool - batch norm - GELU - conv - batch norm - GELU, with 3x3 filters without bias, and
    batch norm that shifts but does not scale. The first filters whiten patches of the training images, then their
    negatives; they do not learn, though their bias does.

    Parameters
    ----------
    images : array (N, 3, H, W) of uint8, optional
        Training images for the whitening, the first 5,000 in the original; without them the first filters are random,
        for a model whose weights are then loaded.
    num_classes : int
    widths : sequence of int
        The channels of each block.
    input_dim : (int, int, int)
        Channels, height and width of an image.
    standardize : (mean, std), optional
        Of the pixels, as numbers or by channel; CIFAR-10's by default.
    **options
        As for `Model`: loss, reg, dtype, backend, rng.

    Source: Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, and its repository's airbench94_muon.py,
    whose names `to_torch_state_dict` gives.
    """

    def __init__(
        self,
        images: Array | None = None,
        num_classes: int = 10,
        *,
        widths: Sequence[int] = (64, 256, 256),
        input_dim: Shape = (3, 32, 32),
        standardize: tuple[Any, Any] = (CIFAR_MEAN, CIFAR_STD),
        **options: Any,
    ) -> None:
        channels, fan_in = input_dim[0], 4 * input_dim[0]
        widths = check_sizes("Airbench", "widths", widths)
        height, width = (((size - 1) >> len(widths)) // 3 for size in input_dim[1:])  # of what the head sees
        mean, std = (_by_channel(value, channels) for value in standardize)
        init = torch_default if images is None else _whitening(images, mean, std, (2 * fan_in, channels, 2, 2))
        net = Sequential(
            Standardize(mean, std),
            Conv(2 * fan_in, 2, init=init, bias_init=uniform(fan_in**-0.5), train_weights=False, name="whiten"),
            GELU(),
            *(_block(width, name=f"block{i}") for i, width in enumerate(widths, 1)),
            MaxPool(3),
            Flatten(),
            Linear(num_classes, bias=False, init=_unit_std, name="head"),
            Scale(1.0 / max(widths[-1] * height * width, 1)),
        )
        super().__init__(net, input_dim, **options)

    def torch_key(self, key: str) -> str:
        return key.replace("block", "layers.")


def _whitening(images: Array, mean: Any, std: Any, shape: Shape) -> Initializer:
    """The filters that whiten standardized images, computed now: a model then need not keep the images."""
    if not is_array(images) or images.ndim != 4 or images.shape[1] != shape[1]:
        received = f"{describe(images)} {tuple(getattr(images, 'shape', ()))}"
        raise ValueError(f"Airbench: expected images (N, {shape[1]}, H, W); received {received}")
    init = whitening((to_numpy(images) - mean) / std)
    return constant(init(Generator(0), shape, "float64", get("numpy")))


def _block(width: int, name: str) -> Sequential:
    return Sequential(
        _conv(width, "conv1"),
        MaxPool(2),
        _batchnorm("norm1"),
        GELU(),
        _conv(width, "conv2"),
        _batchnorm("norm2"),
        GELU(),
        name=name,
    )


def _conv(width: int, name: str) -> Conv:
    return Conv(width, 3, pad="same", bias=False, init=dirac(torch_default), name=name)


def _batchnorm(name: str) -> BatchNorm:
    return BatchNorm(momentum=0.6, eps=1e-12, scale=False, unbiased=True, name=name)


def _unit_std(rng: Generator, shape: Shape, dtype: Any, backend: Backend) -> Array:
    """The default first weights, scaled to a standard deviation of 1."""
    w = torch_default(rng, shape, dtype, backend)
    xp = namespace(w)
    return w / xp.std(w, correction=1)


def _by_channel(value: Any, channels: int) -> Any:
    """Numbers by channel in a shape that broadcasts over images."""
    array = np.asarray(value, dtype=np.float64)
    return array.reshape(channels, 1, 1) if array.size > 1 else array
