"""Residual nets for images of 32 x 32 pixels."""

import re
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from xpnn.arguments import check_sizes
from xpnn.backend import Shape
from xpnn.errors import SettingError
from xpnn.layers import (
    BatchNorm,
    Conv,
    Flatten,
    GlobalAvgPool,
    Layer,
    Linear,
    MaxPool,
    ReLU,
    Residual,
    Scale,
    Sequential,
)
from xpnn.layers.standardize import Standardization, standardizing
from xpnn.models.model import Model


class ResNet(Model):
    """The CIFAR-10 residual net of 6 n + 2 layers: three stages of n blocks, each of two 3x3 convolutions.

    Where a stage halves the image and doubles the channels, the shortcut is a 1x1 convolution with batch norm (the
    paper's option B).

    Parameters
    ----------
    depth : int
        6 n + 2: 20, 32, 44, 56, 110.
    num_classes : int
    widths : sequence of int
        The channels of each stage.
    input_dim : (int, int, int)
        Channels, height and width of an image.
    standardize : (mean, std), optional
        For a first layer ``(x - mean) / std``, so that the net takes raw images.
    **options
        As for `Model`: loss, reg, dtype, backend, rng.

    Raises
    ------
    SettingError
        For another depth.

    Source: He, Zhang, Ren and Sun, "Deep residual learning for image recognition", CVPR 2016, section 4.2. The names
    of `to_torch_state_dict` are torchvision's.
    """

    def __init__(
        self,
        depth: int = 20,
        num_classes: int = 10,
        *,
        widths: Sequence[int] = (16, 32, 64),
        input_dim: Shape = (3, 32, 32),
        standardize: Standardization | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(depth, Integral) or depth < 8 or (depth - 2) % 6:
            raise SettingError(f"ResNet: expected a depth of 6 n + 2, such as 20 or 56; received {depth!r}")
        widths = check_sizes("ResNet", "widths", widths)
        layers = standardizing(standardize)
        layers += [_conv(widths[0], 3, name="conv1"), _batchnorm("bn1"), ReLU()]
        channels = widths[0]
        for stage, width in enumerate(widths, 1):
            blocks: list[Layer] = []
            for i in range((depth - 2) // 6):
                stride = 2 if i == 0 and stage > 1 else 1
                blocks += [_block(channels, width, stride, name=f"block{i + 1}"), ReLU()]
                channels = width
            layers.append(Sequential(*blocks, name=f"layer{stage}"))
        layers += [GlobalAvgPool(), Linear(num_classes, name="fc")]
        super().__init__(Sequential(*layers), input_dim, **options)

    def torch_key(self, key: str) -> str:
        key = re.sub(r"block(\d+)", lambda match: str(int(match[1]) - 1), key)
        return key.replace("shortcut.conv", "downsample.0").replace("shortcut.bn", "downsample.1")


def _block(channels: int, width: int, stride: int, name: str) -> Residual:
    """Two convolutions; the ReLU after the sum is the caller's."""
    shortcut = None
    if stride > 1 or channels != width:
        shortcut = Sequential(_conv(width, 1, stride, name="conv"), _batchnorm("bn"))
    return Residual(
        _conv(width, 3, stride, name="conv1"),
        _batchnorm("bn1"),
        ReLU(),
        _conv(width, 3, name="conv2"),
        _batchnorm("bn2"),
        shortcut=shortcut,
        name=name,
    )


def _conv(filters: int, kernel: int, stride: int = 1, *, name: str) -> Conv:
    return Conv(filters, kernel, stride=stride, pad=kernel // 2, bias=False, name=name)


def _batchnorm(name: str) -> BatchNorm:
    return BatchNorm(unbiased=True, name=name)


class ResNet9(Model):
    """A wide residual net of nine layers that trains in few epochs.

    prep - layer1 - residual - layer2 - layer3 - residual - 4x4 max pool - linear, scores times 1/8; a layer is a 3x3
    convolution, batch norm, ReLU and, from layer1 on, a 2x2 max pool.

    Parameters
    ----------
    num_classes : int
    width : int
        The channels of the first layer; the next have 2, 4 and 8 times as many.
    input_dim, standardize, **options
        As for `ResNet`.

    Source: Page, "How to train your ResNet", 2018, part 4.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        width: int = 64,
        input_dim: Shape = (3, 32, 32),
        standardize: Standardization | None = None,
        **options: Any,
    ) -> None:
        layers = standardizing(standardize)
        layers += [
            Sequential(*_conv_bn_relu(width), name="prep"),
            Sequential(*_conv_bn_relu(2 * width), MaxPool(2), _residual(2 * width), name="layer1"),
            Sequential(*_conv_bn_relu(4 * width), MaxPool(2), name="layer2"),
            Sequential(*_conv_bn_relu(8 * width), MaxPool(2), _residual(8 * width), name="layer3"),
            MaxPool(4),
            Flatten(),
            Linear(num_classes, bias=False, name="linear"),
            Scale(0.125),
        ]
        super().__init__(Sequential(*layers), input_dim, **options)


def _conv_bn_relu(filters: int, number: str = "") -> list[Layer]:
    return [_conv(filters, 3, name=f"conv{number}"), _batchnorm(f"bn{number}"), ReLU()]


def _residual(filters: int) -> Residual:
    return Residual(*_conv_bn_relu(filters, "1"), *_conv_bn_relu(filters, "2"), name="residual")
