"""A training run: its settings, what they build, and the folder that keeps its results."""

import dataclasses
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import xpnn
from xpnn import backend as backends
from xpnn import data
from xpnn.data import Dataset
from xpnn.data.sampling import SAMPLINGS
from xpnn.errors import CheckpointError, SettingError
from xpnn.models import FullyConnectedNet, Model, TwoLayerNet
from xpnn.optim import RULES, SCHEDULES
from xpnn.training import checkpoint
from xpnn.training.solver import Callback, Solver
from xpnn.training.typed import check_fields

MODELS = ("fc", "two-layer")
DTYPES = ("float32", "float64")
PREPROCESSING = ("center", "standardize")

# The course's learning rate for each rule.
LEARNING_RATES = {
    "sgd": 1e-2,
    "sgd_momentum": 1e-2,
    "sgd_nesterov_momentum": 1e-2,
    "rmsprop": 2e-4,
    "adam": 1e-3,
}

# What differs from the defaults of Settings, by data set.
DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": {"hidden": (128, 128), "epochs": 30, "batch_size": 32, "schedule": "cosine"},
    "cifar10": {
        "hidden": (500, 500, 500, 500),
        "epochs": 10,
        "batch_size": 100,
        "lr_decay": 0.9,
        "preprocess": "center",
        "weight_scale": 1e-2,
    },
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that decides a run; `Settings.of` fills in what suits the data set.

    Raises
    ------
    SettingError
        For a value that is impossible, naming the command line's flag.
    """

    dataset: str = "digits"
    model: str = "fc"
    hidden: tuple[int, ...] = (128,)
    dropout: float = 0.0
    batchnorm: bool = False
    weight_scale: float | None = None
    preprocess: str = "standardize"
    optimizer: str = "adam"
    lr: float = 1e-3
    lr_decay: float = 1.0
    schedule: str = "constant"
    reg: float = 0.0
    epochs: int = 10
    batch_size: int = 100
    sampling: str = "shuffle"
    patience: int | None = None
    num_train: int | None = None
    dtype: str = "float32"
    seed: int = 0
    backend: str = "auto"
    data: str | None = None

    @classmethod
    def of(cls, dataset: str, **given: Any) -> "Settings":
        """Return the settings for a data set; what is None in `given` takes its default."""
        given = {name: value for name, value in given.items() if value is not None}
        if "optimizer" in given and "lr" not in given:
            given["lr"] = LEARNING_RATES.get(given["optimizer"], cls.lr)
        settings = {**DEFAULTS.get(dataset, {}), **given}
        if settings.get("model") == "two-layer" and "hidden" not in given:
            settings["hidden"] = settings.get("hidden", cls.hidden)[:1]
        return cls(dataset=dataset, **settings)

    def __post_init__(self) -> None:
        choices: dict[str, Sequence[str]] = {
            "dataset": tuple(data.DATASETS),
            "model": MODELS,
            "optimizer": tuple(RULES),
            "schedule": tuple(SCHEDULES),
            "sampling": SAMPLINGS,
            "preprocess": PREPROCESSING,
            "dtype": DTYPES,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise SettingError(
                    f"{flag(name)}: expected one of {', '.join(known)}; received {getattr(self, name)!r}"
                )
        counts = {name: getattr(self, name) for name in ("epochs", "batch_size", "patience", "num_train")}
        for name, value in counts.items():
            if value is not None and not 1 <= value < 2**31:
                raise SettingError(f"{flag(name)}: expected a whole number from 1 to 2**31 - 1; received {value}")
        for name, low, high in (("lr", 0, np.inf), ("lr_decay", 0, 1), ("weight_scale", 0, np.inf)):
            value = getattr(self, name)
            if (value is not None and not low < value <= high) or value == np.inf:
                expected = f"a finite number above {low}" if high == np.inf else f"a number above {low}, at most {high}"
                raise SettingError(f"{flag(name)}: expected {expected}; received {value}")
        if not 0 <= self.dropout < 1:
            raise SettingError(f"--dropout: expected a probability in [0, 1); received {self.dropout}")
        if not 0 <= self.reg < np.inf:
            raise SettingError(f"--reg: expected a number of at least 0; received {self.reg}")
        if not self.hidden or not all(1 <= size <= 1_000_000 for size in self.hidden):
            raise SettingError(f"--hidden: expected sizes from 1 to 1,000,000; received {self.hidden}")
        if self.model == "two-layer" and len(self.hidden) != 1:
            raise SettingError(f"--hidden: expected one size for --model two-layer; received {len(self.hidden)}")
        if self.model == "two-layer" and self.batchnorm:
            raise SettingError("--batchnorm: expected --model fc, which has layers for it; received two-layer")
        if not 0 <= self.seed < 2**64:
            raise SettingError(f"--seed: expected a whole number from 0 to 2**64 - 1; received {self.seed}")
        if self.data is not None and self.dataset == "digits":
            raise SettingError(f"--data: expected none for digits, which ship with xpnn; received {self.data!r}")
        backends.get(self.backend)


def flag(name: str) -> str:
    """Return a setting as the command line has it."""
    return name if name == "dataset" else f"--{name.replace('_', '-')}"


def load_data(settings: Settings) -> Dataset:
    """Return the data set of a run."""
    dataset = data.load(settings.dataset, settings.data)
    return dataset if settings.num_train is None else dataset.take(settings.num_train)


def build_model(settings: Settings, dataset: Dataset) -> Model:
    """Return the untrained model of a run; it takes the data set's raw images."""
    mean = dataset.mean_image
    options: dict[str, Any] = {
        "input_dim": mean.size,
        "num_classes": dataset.num_classes,
        "dropout": settings.dropout,
        "reg": settings.reg,
        "weight_scale": settings.weight_scale,
        "dtype": settings.dtype,
        "backend": backends.get(settings.backend),
        "rng": settings.seed,
        "standardize": (mean.reshape(-1), dataset.pixel_std if settings.preprocess == "standardize" else None),
    }
    if settings.model == "two-layer":
        return TwoLayerNet(hidden_dims=settings.hidden[0], **options)
    return FullyConnectedNet(settings.hidden, use_batchnorm=settings.batchnorm, **options)


def build_solver(settings: Settings, model: Model, dataset: Dataset, callbacks: Sequence[Callback] = ()) -> Solver:
    """Return the Solver of a run; it prints nothing by itself."""
    return Solver(
        model,
        dataset.arrays(),
        update_rule=settings.optimizer,
        optim_config={"learning_rate": settings.lr},
        lr_decay=settings.lr_decay,
        schedule=settings.schedule,
        batch_size=settings.batch_size,
        num_epochs=settings.epochs,
        sampling=settings.sampling,
        callbacks=callbacks,
        seed=settings.seed,
        verbose=False,
    )


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
            values = json.loads(self.config.read_text())["settings"]
            check_fields(Settings, values)
            return Settings(**{**values, "hidden": tuple(values["hidden"])})
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
