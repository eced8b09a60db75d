"""A training run: its settings, what they build, and the folder that keeps its results."""

import dataclasses
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import xpnn
from xpnn import backend as backends
from xpnn import data
from xpnn.data import (
    AlternatingFlip,
    Batch,
    ColorJitter,
    Compose,
    Cutout,
    Dataset,
    Mixup,
    RandomCrop,
    RandomFlip,
    Transform,
    tta_scores,
)
from xpnn.data.sampling import SAMPLINGS, slices
from xpnn.data.tta import LEVELS as TTA_LEVELS
from xpnn.errors import CheckpointError, SettingError
from xpnn.losses import softmax_loss
from xpnn.models import Model
from xpnn.optim import EMA, RULES, schedules
from xpnn.random import Generator
from xpnn.training import checkpoint
from xpnn.training.recipes import RECIPES, models_with
from xpnn.training.solver import Callback, Solver
from xpnn.training.typed import check_fields

DTYPES = ("float32", "float64")
PREPROCESSING = ("center", "standardize")

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
            schedules.get(self.schedule)
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


def load_data(settings: Settings) -> Dataset:
    """Return the data set of a run."""
    dataset = data.load(settings.dataset, settings.data)
    return dataset if settings.num_train is None else dataset.take(settings.num_train)


def build_model(settings: Settings, dataset: Dataset) -> Model:
    """Return the untrained model of a run; it takes the data set's raw images.

    Raises
    ------
    SettingError
        When the images are not of a size that the net takes.
    """
    recipe = RECIPES[settings.model]
    size, (_, height, width) = recipe.image_size, dataset.input_shape
    if size and (height, width) != (size, size):
        expected = f"another than {settings.model}, whose images are {size} x {size} pixels"
        raise SettingError(f"--model: expected {expected}; those of {dataset.name} are {height} x {width}")
    options = {
        "reg": settings.reg,
        "dtype": settings.dtype,
        "backend": backends.get(settings.backend),
        "rng": settings.seed,
        "standardize": recipe.statistics(dataset, settings.preprocess),
    }
    net = {name: getattr(settings, name) for name in recipe.takes}
    try:
        model = recipe.build(dataset, **net, **options)
    except SettingError:
        raise
    except ValueError as error:  # of the layer that an image, or what becomes of it, does not fit
        raise SettingError(f"--model {settings.model}: {error}") from None
    model.loss_function = partial(
        softmax_loss, label_smoothing=settings.label_smoothing, reduction=recipe.reduction(settings)
    )
    return model


def build_solver(settings: Settings, model: Model, dataset: Dataset, callbacks: Sequence[Callback] = ()) -> Solver:
    """Return the Solver of a run; it prints nothing by itself.

    Raises
    ------
    SettingError
        When the images are not of a size that the augmentation takes.
    """
    config, groups = RECIPES[settings.model].optimizer(settings, model)
    return Solver(
        model,
        dataset.arrays(),
        update_rule=settings.optimizer,
        optim_config=config,
        param_groups=groups,
        clip_norm=settings.clip_norm,
        average=None if settings.ema is None else EMA(model.params, settings.ema, state=lambda: model.state),
        accumulate=settings.accumulate,
        lr_decay=settings.lr_decay,
        schedule=settings.schedule,
        batch_size=settings.batch_size,
        num_epochs=settings.epochs,
        sampling=settings.sampling,
        drop_last=settings.drop_last,
        augment=_augmentation(settings, dataset),
        tta=settings.tta,
        callbacks=callbacks,
        seed=settings.seed,
        verbose=False,
    )


def _augmentation(settings: Settings, dataset: Dataset) -> Compose:
    """The transforms of a run, tried on an image; what they cut out gets the mean color."""
    fill = tuple(np.rint(dataset.mean_image.mean(axis=(1, 2))).tolist())
    augment = Compose(transforms(settings.augment, fill))
    batch = Batch(dataset.y_train[:1], np.arange(1), Generator(0), num_examples=1, num_classes=dataset.num_classes)
    try:
        augment(dataset.X_train[:1], batch)
    except ValueError as error:
        raise SettingError(f"--augment: {error}") from None
    return augment


class RunFolder:
    """The folder of a run.

    ``config.json``: settings, versions, hardware. ``metrics.jsonl``: a line an epoch. ``curves.png``.
    ``last.safetensors``: to resume from. ``best.safetensors``: the best weights.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.curves = self.path / "curves.png"
        self.last = self.path / "last.safetensors"
        self.best = self.path / "best.safetensors"

    @classmethod
    def create(cls, out: str | None, name: str) -> "RunFolder":
        """Make a new folder: `out`, which must be empty or missing, else the next free ``runs/name-1``, ``-2``, ...

        Raises
        ------
        SettingError
            When `out` holds something, or cannot be written to.
        """
        if out == "":
            raise SettingError("--out: expected the name of a folder; received an empty one")
        number = 1
        while True:
            folder = cls(out or f"runs/{name}-{number}")
            try:
                folder.path.mkdir(parents=True, exist_ok=out is not None)
                if any(folder.path.iterdir()):
                    raise SettingError(f"--out: expected a new or empty folder; {folder.path} has files in it")
                checkpoint.write_whole(folder.config, lambda partial: None)
                folder.config.unlink()
                return folder
            except OSError as error:
                if isinstance(error, FileExistsError) and folder.path.exists():
                    if out is not None:
                        raise SettingError(f"--out: expected a folder; {folder.path} is a file") from error
                    number += 1
                    continue
                raise SettingError(f"--out: cannot write to {folder.path}: {error.strerror}") from error

    def write_config(self, backend: backends.Backend, **settings: Settings) -> None:
        """Write ``config.json``: settings, under the names given, versions and hardware."""
        config = {
            **{name: dataclasses.asdict(values) for name, values in settings.items()},
            "backend": str(backend),
            "device": backend.device_name(),
            "versions": {
                "xpnn": xpnn.__version__,
                "python": platform.python_version(),
                "numpy": np.__version__,
                backend.name: backend.version(),
            },
            "platform": platform.platform(),
            "processor": backends.get("numpy").device_name(),
        }
        _write_text(self.config, json.dumps(config, indent=2) + "\n")

    def write_histories(self, solvers: Mapping[str, Solver]) -> None:
        """Write ``comparison.json``: losses and accuracies of several runs by name."""
        names = ("loss_history", "train_acc_history", "val_acc_history")
        values = {
            label: {name: [v if np.isfinite(v) else None for v in getattr(solver, name)] for name in names}
            for label, solver in solvers.items()
        }
        _write_text(self.path / "comparison.json", json.dumps(values) + "\n")

    def read_settings(self) -> Settings:
        """Return the settings that the run was made with.

        Raises
        ------
        CheckpointError
            When the folder holds no run, or its config.json is damaged.
        """
        try:
            values: dict[str, Any] = {**_OPTIONAL, **json.loads(self.config.read_text())["settings"]}
            check_fields(Settings, values)
            values.update((name, tuple(value)) for name, value in values.items() if isinstance(value, list))
            return Settings(**values)
        except OSError:
            raise CheckpointError(f"{self.path}: expected the folder of a run; it has no config.json") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{self.config}: expected the settings of a run; it is damaged ({error})") from None

    def truncate_metrics(self, epoch: int) -> None:
        """Drop the lines after `epoch`, which a resumed run writes again, and one that was cut short."""
        if self.metrics.exists():
            text = self.metrics.read_text(errors="replace")
            lines = [line for line in text.splitlines() if _epoch(line) <= epoch]
            _write_text(self.metrics, "".join(f"{line}\n" for line in lines))


def _epoch(line: str) -> float:
    """The epoch of a line of metrics; infinity for one that is damaged."""
    try:
        return float(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return np.inf


def _write_text(path: Path, text: str) -> None:
    checkpoint.write_whole(path, lambda partial: Path(partial).write_text(text))


def load_best(folder: RunFolder, changes: Mapping[str, Any]) -> tuple[Model, Dataset, dict[str, Any]]:
    """Return the best model of a run, its data set, and what best.safetensors says of it.

    `changes` replaces settings that may differ from training: ``backend`` and ``data``.
    """
    settings = dataclasses.replace(folder.read_settings(), **changes)
    dataset = load_data(settings)
    arrays, meta = checkpoint.load(folder.best)
    model = build_model(settings, dataset)
    try:
        model.load_state_dict(arrays)
    except CheckpointError as error:
        raise CheckpointError(f"{folder.best}: {error}") from None
    return model, dataset, meta


def predictions(model: Model, X: npt.NDArray[Any], tta: str = "none", batch_size: int = 500) -> npt.NDArray[Any]:
    """Return the label with the highest score for each image, on the host.

    Parameters
    ----------
    X : ndarray (N, C, H, W)
    tta : str
        Test-time augmentation, as for `xpnn.data.tta_scores`.
    """
    backend = model.backend
    scores = (tta_scores(model.loss, backend.asarray(X[batch]), tta) for batch in slices(len(X), batch_size))
    return np.concatenate([backend.to_numpy(backend.namespace.argmax(s, axis=1)) for s in scores])
