"""What ``--model NAME`` does: the net, the settings that it trains with, the rule that each of its parameters goes by.

A recipe's settings hold where the command line gives none.
"""

import inspect
import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar

from xpnn.data import Dataset
from xpnn.errors import SettingError
from xpnn.layers.precision import HALVES
from xpnn.models import (
    Airbench,
    FullyConnectedNet,
    Model,
    ResNet,
    ResNet9,
    ThreeLayerConvNet,
    TwoLayerNet,
    VisionTransformer,
)
from xpnn.models.airbench import CIFAR_MEAN, CIFAR_STD
from xpnn.optim import RULES, ParamGroup

if TYPE_CHECKING:
    from xpnn.training.settings import Settings

Sizes = tuple[int, ...]
Values = Mapping[str, Any]  # of settings

# A fitting learning rate for each rule, where it is not the recipe's: its default, and for RMSProp the course's.
LEARNING_RATES: dict[str, float] = {
    name: rule.defaults["learning_rate"]  # type: ignore[attr-defined]
    for name, rule in RULES.items()
} | {"rmsprop": 2e-4}

# The settings of every recipe, unless it says otherwise.
COMMON: Values = {
    "preprocess": "standardize",
    "optimizer": "adam",
    "lr": 1e-3,
    "lr_decay": 1.0,
    "schedule": "constant",
    "reg": 0.0,
    "epochs": 10,
    "batch_size": 100,
    "sampling": "shuffle",
    "dtype": "float32",
    "seed": 0,
    "backend": "auto",
}


class Recipe:
    """A net and how it is trained.

    Attributes
    ----------
    defaults : dict
        Settings that differ from `COMMON`.
    on : dict of str to dict
        Settings that differ on a data set.
    image_size : int, optional
        The side of the images that the net is made for; None where others will do.
    undecayed : tuple of str
        Patterns of the parameters that weight decay spares.
    """

    defaults: ClassVar[Values] = {}
    on: ClassVar[Mapping[str, Values]] = {}
    image_size: int | None = None
    undecayed: tuple[str, ...] = ()

    def build(self, images: Dataset, *args: Any, **options: Any) -> Model:
        """Return the net for a data set; its keyword arguments before `options` are the net's own settings."""
        raise NotImplementedError

    @property
    def takes(self) -> tuple[str, ...]:
        """The net's own settings: what `build` asks for by name."""
        parameters = inspect.signature(self.build).parameters.values()
        return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)

    def settings(self, dataset: str, given: Values) -> dict[str, Any]:
        """Return all settings, those given and fitting ones for the rest.

        With another optimizer than the recipe's, its rate, momentum and weight decay are out of place.
        """
        out = {**COMMON, **self.defaults, **self.on.get(dataset, {})}
        rule = given.get("optimizer", out["optimizer"])
        if rule != out["optimizer"]:
            # of an unknown rule: none, which Settings refuses
            out |= {"lr": LEARNING_RATES.get(rule), "momentum": None, "weight_decay": None}
        return {**out, **given, "dataset": dataset}

    def check(self, settings: "Settings") -> None:
        """Raise SettingError where settings do not go together."""

    def statistics(self, images: Dataset, preprocess: str) -> tuple[Any, Any]:
        """Return what the net subtracts from raw images, and what it divides by.

        ``center``: the mean image, and nothing. ``standardize``: mean and standard deviation of each channel.
        """
        if preprocess == "center":
            return images.mean_image, None
        return images.channel_mean[:, None, None], images.channel_std[:, None, None]

    def reduction(self, settings: "Settings") -> str:
        """Return whether the loss is a ``"mean"`` over the images of a batch or their ``"sum"``."""
        return "mean"

    def optimizer(self, settings: "Settings", model: Model) -> tuple[dict[str, Any], list[ParamGroup]]:
        """Return the settings of the rule and the groups of parameters that go by others.

        Muon, where it is chosen by hand, is for the weights of hidden layers; AdamW takes the others.
        """
        config: dict[str, Any] = {"learning_rate": settings.lr}
        config |= {key: v for key in ("momentum", "weight_decay") if (v := getattr(settings, key)) is not None}
        if settings.optimizer == "muon":
            matrices = [name for name, w in model.params.items() if w.ndim >= 2 and not self._spares(name)]
            if not (hidden := matrices[1:-1]):
                raise SettingError(f"--optimizer: expected another than muon, as {settings.model} has one hidden layer")
            rest = [name for name in model.params if name not in hidden]
            rate = LEARNING_RATES["adamw"]
            return config, [ParamGroup(rest, "adamw", learning_rate=rate, weight_decay=0.0)] if rest else []
        if settings.weight_decay is None or not self.undecayed:
            return config, []
        return config, [ParamGroup(self.undecayed, weight_decay=0.0)]

    def _spares(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.undecayed)


class FullyConnected(Recipe):
    """The course's fully connected net under Adam."""

    defaults: ClassVar[Values] = {"dropout": 0.0, "batchnorm": False}
    on: ClassVar[Mapping[str, Values]] = {
        "digits": {"hidden": (128, 128), "epochs": 30, "batch_size": 32, "schedule": "cosine"},
        "cifar10": {"hidden": (500, 500, 500, 500), "lr_decay": 0.9, "preprocess": "center", "weight_scale": 1e-2},
    }

    def build(
        self,
        images: Dataset,
        *args: Any,
        hidden: Sizes,
        dropout: float,
        batchnorm: bool,
        weight_scale: float | None,
        **options: Any,
    ) -> Model:
        return FullyConnectedNet(
            hidden,
            math.prod(images.input_shape),
            images.num_classes,
            dropout,
            batchnorm,
            weight_scale=weight_scale,
            **options,
        )

    def statistics(self, images: Dataset, preprocess: str) -> tuple[Any, Any]:
        """The mean image, and for ``standardize`` one standard deviation of all pixels from it."""
        return images.mean_image.reshape(-1), images.pixel_std if preprocess == "standardize" else None


class TwoLayer(FullyConnected):
    """The course's first net: the same with one hidden layer."""

    defaults: ClassVar[Values] = {"dropout": 0.0}
    on: ClassVar[Mapping[str, Values]] = {
        name: {**settings, "hidden": settings["hidden"][:1]} for name, settings in FullyConnected.on.items()
    }

    def build(
        self, images: Dataset, *args: Any, hidden: Sizes, dropout: float, weight_scale: float | None, **options: Any
    ) -> Model:
        return TwoLayerNet(
            math.prod(images.input_shape),
            hidden[0],
            images.num_classes,
            dropout,
            weight_scale=weight_scale,
            **options,
        )

    def check(self, settings: "Settings") -> None:
        _check_length(settings, "hidden", 1)


class ConvNet(Recipe):
    """The course's convolutional net under Adam."""

    defaults: ClassVar[Values] = {"batchnorm": False, "schedule": "cosine"}
    on: ClassVar[Mapping[str, Values]] = {
        "digits": {"filters": 32, "filter_size": 3, "hidden": (100,), "epochs": 15, "batch_size": 32},
        "cifar10": {
            "filters": 32,
            "filter_size": 7,
            "hidden": (100,),
            "batchnorm": True,
            "weight_scale": 1e-2,
            "augment": "crop:2,flip",
            "reg": 1e-3,
        },
    }

    def build(
        self,
        images: Dataset,
        *args: Any,
        filters: int,
        filter_size: int,
        hidden: Sizes,
        batchnorm: bool,
        weight_scale: float | None,
        **options: Any,
    ) -> Model:
        return ThreeLayerConvNet(
            images.input_shape,
            filters,
            filter_size,
            hidden[0],
            images.num_classes,
            weight_scale,
            use_batchnorm=batchnorm,
            **options,
        )

    def check(self, settings: "Settings") -> None:
        _check_length(settings, "hidden", 1)


class HeResNet(Recipe):
    """He's residual net of some depth, with the augmentation and the rates of the paper, and a cosine for its steps.

    The paper trains for 164 epochs; 30 are an hour or two for ResNet-20 on two cores of a CPU.

    Source: He, Zhang, Ren and Sun, "Deep residual learning for image recognition", CVPR 2016, section 4.2; the weight
    decay of 5e-4 and Nesterov's momentum after Zagoruyko and Komodakis, "Wide residual networks", BMVC 2016.
    """

    defaults: ClassVar[Values] = {
        "widths": (16, 32, 64),
        "optimizer": "nesterov",
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "cosine",
        "epochs": 30,
        "batch_size": 128,
        "augment": "crop:4:zero,flip",
    }
    on: ClassVar[Mapping[str, Values]] = {"digits": {"epochs": 15, "batch_size": 32, "augment": "crop:1:zero"}}

    def __init__(self, layers: int) -> None:
        self.layers = layers

    def build(self, images: Dataset, *args: Any, widths: Sizes, **options: Any) -> Model:
        return ResNet(self.layers, images.num_classes, widths=widths, input_dim=images.input_shape, **options)

    def check(self, settings: "Settings") -> None:
        _check_length(settings, "widths", 3)


class PageResNet9(Recipe):
    """Page's ResNet-9: its rate rises for a fifth of 24 epochs and falls to zero.

    His sum over a batch at a rate of 0.4 / 512 and a weight decay of 5e-4 x 512 is this mean at 0.4 and 5e-4.

    Source: Page, "How to train your ResNet", 2018, parts 2 and 8, and davidcpage/cifar10-fast, bag_of_tricks.ipynb.
    """

    image_size = 32
    defaults: ClassVar[Values] = {
        "widths": (64,),
        "optimizer": "nesterov",
        "lr": 0.4,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "warmup-linear:0.2",
        "epochs": 24,
        "batch_size": 512,
        "augment": "crop:4,flip,cutout:8",
        "label_smoothing": 0.2,
    }

    def build(self, images: Dataset, *args: Any, widths: Sizes, **options: Any) -> Model:
        return ResNet9(images.num_classes, width=widths[0], input_dim=images.input_shape, **options)

    def check(self, settings: "Settings") -> None:
        _check_length(settings, "widths", 1)


class Airbench94(Recipe):
    """The speed run airbench94_muon: filters by Muon, the rest by Nesterov momentum, a sum over the batch as the loss.

    Muon: rate `lr`, 0.24; `momentum` 0.6; 3 Newton-Schulz steps, in `dtype` where it is a half; filters scaled to a
    norm of sqrt(F) before each.
    Nesterov, momentum 0.85: the whitening layer's bias at 0.053, falling to zero over 3/8 of the training; the batch
    norms' shifts at 0.053; the last layer at 0.67. Each decays by `weight_decay`, 2e-6 x 2000, over its rate. All rates
    but the first bias's follow `schedule`, a line to zero. The whitening is of the first 5,000 training images, pixels
    are standardized by CIFAR-10's published statistics.

    Another batch. Rates and decay are per image, as in the original's legacy scripts: the images of an epoch are to
    move the weights as far, however many make a step. For the Nesterov groups the rates do it as they are, because the
    loss is a sum: half the batch gives half the gradient, and twice as many steps. Their decay does not shrink with the
    batch, so it is 2e-6 x batch. Muon's steps do not either, their length is the rate; but the smaller the batch, the
    more of a step is noise, and the part along the gradient goes with the root of the batch: the rate is
    0.24 sqrt(batch / 2000). What does change is how long momentum and the batch norms' averages remember, which count
    steps, and the noise in each batch's statistics. A batch is all images of a step: ``--batch-size 500
    --accumulate 4`` has the rates of 2000, with batch norm over 500.

    ``--lr`` and ``--momentum`` are Muon's, as given, and ``--weight-decay`` that of the others, per step. With another
    optimizer all parameters go by it, and the loss is a mean.

    Source: Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024; KellerJordan/cifar10-airbench,
    airbench94_muon.py, and legacy/airbench94.py for rates per image; for the root Malladi et al., "On the SDEs and
    scaling rules for adaptive gradient algorithms", NeurIPS 2022.
    """

    image_size = 32
    defaults: ClassVar[Values] = {
        "widths": (64, 256, 256),
        "optimizer": "muon",
        "momentum": 0.6,
        "schedule": "linear",
        "epochs": 8,
        "batch_size": 2000,
        "augment": "alternating-flip,crop:2",
        "label_smoothing": 0.2,
        "tta": "mirror-translate",
    }

    def build(self, images: Dataset, *args: Any, widths: Sizes, **options: Any) -> Model:
        first = images.X_train[:5000]
        return Airbench(first, images.num_classes, widths=widths, input_dim=images.input_shape, **options)

    def settings(self, dataset: str, given: Values) -> dict[str, Any]:
        out = super().settings(dataset, given)
        if out["optimizer"] == "muon":
            batch = out["batch_size"] * out.get("accumulate", 1)
            out = {**out, "lr": 0.24 * math.sqrt(max(batch, 0) / 2000), "weight_decay": 2e-6 * batch, **given}
        return out

    def statistics(self, images: Dataset, preprocess: str) -> tuple[Any, Any]:
        return CIFAR_MEAN, CIFAR_STD

    def check(self, settings: "Settings") -> None:
        if settings.preprocess != "standardize":
            raise SettingError(
                f"--preprocess: expected standardize for --model {settings.model}; received {settings.preprocess}"
            )

    def reduction(self, settings: "Settings") -> str:
        return "sum" if settings.optimizer == "muon" else "mean"

    def optimizer(self, settings: "Settings", model: Model) -> tuple[dict[str, Any], list[ParamGroup]]:
        if settings.optimizer != "muon":
            return super().optimizer(settings, model)
        muon = {"learning_rate": settings.lr, "momentum": settings.momentum}
        groups = []
        for pattern, rate, schedule in (
            ("whiten.b", 0.053, "piecewise:0=1,0.375=0"),
            ("*.norm?.beta", 0.053, None),
            ("head.W", 0.67, None),
        ):
            decay = (settings.weight_decay or 0.0) / rate
            group = ParamGroup(pattern, "nesterov", schedule, learning_rate=rate, momentum=0.85, weight_decay=decay)
            groups.append(group)
        half = settings.dtype if settings.dtype in HALVES else ""
        return {**muon, "newton_schulz_steps": 3, "newton_schulz_dtype": half, "normalize_weights": 1}, groups


class Transformer(Recipe):
    """A small vision transformer under AdamW."""

    defaults: ClassVar[Values] = {
        "optimizer": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.05,
        "schedule": "warmup-cosine",
        "epochs": 30,
        "batch_size": 128,
        "label_smoothing": 0.1,
    }
    on: ClassVar[Mapping[str, Values]] = {
        "digits": {"patch": 2, "dim": 48, "depth": 2, "heads": 4, "lr": 2e-3, "batch_size": 32},
        "cifar10": {"patch": 4, "dim": 128, "depth": 6, "heads": 4, "augment": "crop:4,flip"},
    }
    undecayed = ("*.b", "*.b_*", "*.gamma", "*.beta", "positions.W")

    def build(self, images: Dataset, *args: Any, patch: int, dim: int, depth: int, heads: int, **options: Any) -> Model:
        _, height, width = images.input_shape
        if height % patch or width % patch:
            raise SettingError(
                f"--patch: expected a divisor of the images' {height} x {width} pixels; received {patch}"
            )
        return VisionTransformer(
            patch, dim, depth, heads, num_classes=images.num_classes, input_dim=images.input_shape, **options
        )

    def check(self, settings: "Settings") -> None:
        dim, heads = settings.dim or 1, settings.heads or 1
        if dim % heads:
            raise SettingError(f"--heads: expected a divisor of --dim {dim}; received {heads}")


RECIPES: dict[str, Recipe] = {
    "fc": FullyConnected(),
    "two-layer": TwoLayer(),
    "convnet": ConvNet(),
    "resnet20": HeResNet(20),
    "resnet56": HeResNet(56),
    "resnet9": PageResNet9(),
    "airbench": Airbench94(),
    "vit": Transformer(),
}


def models_with(setting: str) -> str:
    """Return the models whose net has a setting, in words: ``fc, two-layer or convnet``."""
    *names, last = (name for name, recipe in RECIPES.items() if setting in recipe.takes)
    return f"{', '.join(names)} or {last}" if names else last


def _check_length(settings: "Settings", name: str, length: int) -> None:
    sizes = getattr(settings, name)
    if len(sizes) != length:
        expected = "one size" if length == 1 else f"{length} sizes"
        raise SettingError(f"--{name}: expected {expected} for --model {settings.model}; received {len(sizes)}")
