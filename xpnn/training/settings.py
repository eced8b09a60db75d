"""All that decides a run, and what its flags may say."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from xpnn import backend as backends
from xpnn import data
from xpnn.data import AlternatingFlip, ColorJitter, Cutout, Mixup, RandomCrop, RandomFlip, Transform
from xpnn.data.sampling import SAMPLINGS
from xpnn.data.tta import LEVELS as TTA_LEVELS
from xpnn.errors import SettingError
from xpnn.models.model import DTYPES
from xpnn.optim import RULES, SCHEDULES, schedules
from xpnn.optim.schedules import Schedule
from xpnn.training.recipes import RECIPES, models_with
from xpnn.training.typed import check_fields

PREPROCESSING = ("center", "standardize")
SCHEDULE_NAMES = tuple(name.replace("_", "-") for name in SCHEDULES)  # those that need no arguments

# What `--augment` knows: how to make it, the kinds of its arguments, and how many it must have.
_TRANSFORMS: dict[str, tuple[Callable[..., Transform], tuple[type, ...], int]] = {
    "flip": (RandomFlip, (), 0),
    "alternating-flip": (AlternatingFlip, (), 0),
    "crop": (RandomCrop, (int, str), 1),
    "cutout": (Cutout, (int,), 1),
    "jitter": (ColorJitter, (float, float), 2),
    "mixup": (Mixup, (float,), 1),
}
AUGMENTATIONS = "flip, alternating-flip, crop:4, crop:4:zero, cutout:8, jitter:0.2:0.2, mixup:0.2"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All that decides a run; `Settings.of` fills in what suits the model and the data set.

    A setting of the net is None where its recipe has no use for it. What has a default here may be missing in a
    config.json.

    Raises
    ------
    SettingError
        For a value that is impossible, naming the command line's flag.
    """

    dataset: str
    model: str
    hidden: tuple[int, ...] | None = None
    dropout: float | None = None
    batchnorm: bool | None = None
    weight_scale: float | None = None
    widths: tuple[int, ...] | None = None
    filters: int | None = None
    filter_size: int | None = None
    patch: int | None = None
    dim: int | None = None
    depth: int | None = None
    heads: int | None = None
    preprocess: str
    augment: str = "none"
    label_smoothing: float = 0.0
    optimizer: str
    lr: float
    momentum: float | None = None
    weight_decay: float | None = None
    clip_norm: float | None = None
    accumulate: int = 1
    ema: float | None = None
    lr_decay: float
    schedule: str
    reg: float
    epochs: int
    batch_size: int
    sampling: str
    drop_last: bool = True
    tta: str = "none"
    patience: int | None = None
    num_train: int | None = None
    dtype: str
    seed: int
    backend: str
    data: str | None = None

    @classmethod
    def of(cls, dataset: str, **given: Any) -> "Settings":
        """Return the settings for a data set; what is None in `given` takes the default of the model's recipe."""
        given = {"model": "fc"} | {name: value for name, value in given.items() if value is not None}
        model = given["model"]
        _check_choice("model", model, tuple(RECIPES))
        for name in given:
            if name in NET_SETTINGS and name not in RECIPES[model].takes:
                raise SettingError(f"{flag(name)}: expected --model {models_with(name)}; received {model}")
        return cls(**RECIPES[model].settings(dataset, given))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Settings":
        """Return the settings that a config.json holds.

        Raises
        ------
        TypeError
            When one is missing or of another type.
        """
        values = {**_OPTIONAL, **values}
        check_fields(cls, values)
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**given)

    def __post_init__(self) -> None:
        choices: dict[str, Sequence[str]] = {
            "dataset": tuple(data.DATASETS),
            "model": tuple(RECIPES),
            "optimizer": tuple(RULES),
            "sampling": SAMPLINGS,
            "preprocess": PREPROCESSING,
            "tta": TTA_LEVELS,
            "dtype": DTYPES,
        }
        for name, known in choices.items():
            _check_choice(name, getattr(self, name), known)
        recipe = RECIPES[self.model]
        for name in set(recipe.takes) - {"weight_scale"}:
            if getattr(self, name) is None:
                raise SettingError(f"{flag(name)}: expected a value for --model {self.model}; received none")
        for name in ("epochs", "batch_size", "accumulate", "patience", "num_train"):
            value = getattr(self, name)
            if value is not None and not 1 <= value < 2**31:
                raise SettingError(f"{flag(name)}: expected a whole number from 1 to 2**31 - 1; received {value}")
        for name in ("hidden", "widths"):
            sizes = getattr(self, name)
            if sizes is not None and (not sizes or not all(1 <= size <= 1_000_000 for size in sizes)):
                raise SettingError(f"{flag(name)}: expected sizes from 1 to 1,000,000; received {sizes}")
        for name in ("filters", "filter_size", "patch", "dim", "depth", "heads"):
            value, most = getattr(self, name), 1_000 if name == "depth" else 1_000_000
            if value is not None and not 1 <= value <= most:
                raise SettingError(f"{flag(name)}: expected a whole number from 1 to {most:,}; received {value}")
        for name, low, high in (
            ("lr", 0, np.inf),
            ("lr_decay", 0, 1),
            ("weight_scale", 0, np.inf),
            ("clip_norm", 0, np.inf),
        ):
            value = getattr(self, name)
            if (value is not None and not low < value <= high) or value == np.inf:
                expected = f"a finite number above {low}" if high == np.inf else f"a number above {low}, at most {high}"
                raise SettingError(f"{flag(name)}: expected {expected}; received {value}")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise SettingError(f"--dropout: expected a probability in [0, 1); received {self.dropout}")
        for name in ("label_smoothing", "momentum", "ema"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise SettingError(f"{flag(name)}: expected a number in [0, 1); received {value}")
        for name in ("reg", "weight_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < np.inf:
                raise SettingError(f"{flag(name)}: expected a number of at least 0; received {value}")
        for name in ("momentum", "weight_decay"):
            able = [rule for rule, step in RULES.items() if name in step.defaults]  # type: ignore[attr-defined]
            if getattr(self, name) is not None and self.optimizer not in able:
                raise SettingError(f"{flag(name)}: expected --optimizer {' or '.join(able)}; received {self.optimizer}")
        try:
            find_schedule(self.schedule)
        except SettingError as error:
            raise SettingError(f"--{error}") from None
        transforms(self.augment)
        recipe.check(self)
        if not 0 <= self.seed < 2**64:
            raise SettingError(f"--seed: expected a whole number from 0 to 2**64 - 1; received {self.seed}")
        if self.data is not None and self.dataset == "digits":
            raise SettingError(f"--data: expected none for digits, which ship with xpnn; received {self.data!r}")
        backends.get(self.backend)


_OPTIONAL = {f.name: f.default for f in dataclasses.fields(Settings) if f.default is not dataclasses.MISSING}
NET_SETTINGS = {name for recipe in RECIPES.values() for name in recipe.takes}


def flag(name: str) -> str:
    """Return a setting as the command line has it."""
    return name if name == "dataset" else f"--{name.replace('_', '-')}"


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise SettingError(f"{flag(name)}: expected one of {', '.join(known)}; received {value!r}")


def find_schedule(text: str) -> Schedule:
    """Return the schedule that a text such as ``"one-cycle:peak=0.2"`` names.

    Raises
    ------
    SettingError
        For a name that is unknown, or arguments that do not fit.
    """
    name = text.partition(":")[0].strip().replace("_", "-")
    if name not in (*SCHEDULE_NAMES, "piecewise"):
        expected = ", ".join((*SCHEDULE_NAMES, "piecewise:0=0.2,0.5=1,1=0"))
        raise SettingError(f"schedule: expected one of {expected}; received {text!r}")
    return schedules.get(text)


def transforms(text: str, fill: float | tuple[float, ...] = 0.0) -> list[Transform]:
    """Return the transforms that a text such as ``"crop:4,flip"`` names; a cutout is filled with `fill`.

    Raises
    ------
    SettingError
        For a name that is unknown, or arguments that do not fit.
    """
    out = []
    for item in () if text == "none" else text.split(","):
        name, *arguments = item.strip().split(":")
        make, kinds, least = _TRANSFORMS.get(name, (None, (), 0))
        try:
            if make is None or not least <= len(arguments) <= len(kinds):
                raise ValueError
            values = [kind(argument) for kind, argument in zip(kinds, arguments, strict=False)]
            out.append(make(*values, **({"fill": fill} if make is Cutout else {})))
        except SettingError as error:
            raise SettingError(f"--augment {item}: {error}") from None
        except ValueError:
            expected = f"none, or some of {AUGMENTATIONS}, with commas between"
            raise SettingError(f"--augment: expected {expected}; received {text!r}") from None
    return out
