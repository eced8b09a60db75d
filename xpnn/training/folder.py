"""The folder that keeps a run's results."""

import dataclasses
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

import xpnn
from xpnn import backend as backends
from xpnn.errors import CheckpointError, SettingError
from xpnn.training import checkpoint
from xpnn.training.settings import Settings
from xpnn.training.solver import Solver


class RunFolder:
    """The folder of a run.

    ``config.json``: settings, versions, hardware. ``metrics.jsonl``: a line an epoch. ``curves.png``.
    ``last.safetensors``: to resume from. ``best.safetensors``: the best weights.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.is_new = False  # whether `create` has made it
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
                folder.is_new = not folder.path.exists()
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

    @contextmanager
    def gone_if_unused(self) -> Iterator[None]:
        """Within, an error before there is more than a config.json undoes `create`: the name is free again."""
        try:
            yield
        except BaseException:
            with suppress(OSError):  # the error is what the user is to see
                if [file.name for file in self.path.iterdir()] == [self.config.name]:
                    self.config.unlink()
                    if self.is_new:
                        self.path.rmdir()
            raise

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
            When the folder holds no run of one net, or its config.json cannot be read or is damaged.
        """
        try:
            return Settings.from_json(json.loads(self.config.read_text())["settings"])
        except (FileNotFoundError, NotADirectoryError):
            raise CheckpointError(f"{self.path}: expected the folder of a run; it has no config.json") from None
        except OSError as error:
            raise CheckpointError(f"{self.config}: cannot be read ({error.strerror})") from None
        except KeyError:
            expected = "the folder of `xpnn train`"
            raise CheckpointError(f"{self.path}: expected {expected}; its config.json has no settings") from None
        except (ValueError, TypeError, RecursionError) as error:
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
