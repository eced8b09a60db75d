"""The part of the Solver that goes into a checkpoint and comes back."""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import product
from typing import Any

from xpnn import backend as backends
from xpnn.backend import Array, Backend
from xpnn.errors import CheckpointError, SettingError
from xpnn.models import Model
from xpnn.optim import Optimizer
from xpnn.random import Generator
from xpnn.training import checkpoint
from xpnn.training.progress import Progress
from xpnn.training.typed import fits


class Resumable(ABC):
    """What `Solver` is besides its loop: its state, written whole and read back."""

    model: Any
    backend: Backend
    optimizer: Optimizer
    X_train: Array
    batch_size: int
    sampling: str
    num_epochs: int
    total_epochs: int
    iterations_per_epoch: int
    iteration: int
    best_params: Any
    _best_state: dict[str, Array]
    _losses: list[float]
    _unread: list[Array]
    _order: Array | None
    _order_state: tuple[int, ...]
    _batches: Generator
    _evaluation: Generator

    @property
    @abstractmethod
    def loss_history(self) -> list[float]:
        """The loss of every iteration."""

    def best_arrays(self) -> dict[str, Array]:
        """Return the parameters and the state that reached the best validation accuracy."""
        return {**self.best_params, **self._best_state}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything that training on needs to a checkpoint.

        Meant for callbacks: at the end of `train` the best weights have taken the place of the last.
        """
        groups = self.optimizer.groups
        arrays = {
            **checkpoint.prefixed("model", self._model_arrays()),
            **checkpoint.prefixed("best", self.best_arrays()),
            **checkpoint.prefixed("optimizer", self._optimizer_arrays()),
        }
        progress = Progress(
            loss_history=self.loss_history,
            order_state=self._order_state if self.iteration % self.iterations_per_epoch else self._batches.state,
            evaluation_state=self._evaluation.state,
            model_rng=self.model.rng_state if isinstance(self.model, Model) else {},
            optimizer={g: {k: v for k, v in c.items() if not backends.is_array(v)} for g, c in groups.items()},
            task=self._task(),
            **{name: getattr(self, name) for name in self._HISTORY},
        )
        checkpoint.save(path, arrays, progress.to_meta())

    _HISTORY = ("epoch", "iteration", "seconds", "train_acc_history", "val_acc_history", "best_val_acc", "best_epoch")

    def _task(self) -> dict[str, Any]:
        """What must be the same when training goes on, so that it goes on as if never interrupted."""
        return {
            "num_train": self.X_train.shape[0],
            "batch_size": self.batch_size,
            "sampling": self.sampling,
            "dtype": backends.dtype_name(next(iter(self.model.params.values())).dtype),
            "update_rule": self.optimizer.rule_name,
            **self.optimizer.settings(),
        }

    def _model_arrays(self) -> dict[str, Array]:
        return self.model.state_dict() if isinstance(self.model, Model) else dict(self.model.params)

    def resume(self, path: str | os.PathLike[str]) -> None:
        """Take up training where a checkpoint of `save` left it; `train` then goes on to `num_epochs`.

        The result is the same as if training had never stopped, on another backend to rounding. The learning rate
        and its schedule are those of this Solver.

        Raises
        ------
        CheckpointError
            When the file is damaged, or comes from another model, rule, batch size or number of examples.
        """
        arrays, meta = checkpoint.load(path)
        try:
            progress = Progress.of(meta, self._task(), self.iterations_per_epoch)
            weights = checkpoint.section("model", arrays)
            if isinstance(self.model, Model):
                weights = self.model.matching_state(weights)
                if progress.model_rng.keys() != self.model.rng_state.keys():
                    expected, received = (", ".join(r) or "none" for r in (self.model.rng_state, progress.model_rng))
                    raise CheckpointError(f"expected random generators of {expected}; received {received}")
            else:
                for name, own in self.model.params.items():
                    if name not in weights or weights[name].shape != tuple(own.shape):
                        raise CheckpointError(f"expected {name} of shape {tuple(own.shape)}")
            for state in (progress.order_state, progress.evaluation_state, *progress.model_rng.values()):
                Generator(*state)
            saved = checkpoint.section("optimizer", arrays)
            for name, array in self._optimizer_arrays().items():
                if name not in saved or tuple(saved[name].shape) != tuple(array.shape):
                    raise CheckpointError(f"expected the optimizer's {name} of shape {tuple(array.shape)}")
            if progress.optimizer.keys() != self.optimizer.groups.keys():
                raise CheckpointError("expected the optimizer's settings for the same arrays; received others")
            for key, config in product(self.optimizer.defaults, progress.optimizer.values()):
                if not fits(config.get(key), float):
                    raise CheckpointError(f"expected a number for the optimizer's {key}; received {config.get(key)!r}")
            missing = self._model_arrays().keys() - checkpoint.section("best", arrays).keys()
            if missing and progress.val_acc_history:
                raise CheckpointError(f"expected the best {', '.join(sorted(missing))}, which it does not have")
        except (CheckpointError, SettingError, TypeError) as error:
            raise CheckpointError(f"{path}: {error}") from None
        self._load_model(weights)
        for name in self._HISTORY:
            setattr(self, name, getattr(progress, name))
        self.total_epochs = self.num_epochs
        self._losses, self._unread, self._order = progress.loss_history, [], None
        self._batches.state, self._evaluation.state = progress.order_state, progress.evaluation_state
        if isinstance(self.model, Model):
            self.model.rng_state = progress.model_rng
        for group, config in self.optimizer.groups.items():
            config.update(progress.optimizer[group])
            config.update((k, self.backend.asarray(a)) for k, a in checkpoint.section(group, saved).items())
        best = {name: self.backend.asarray(a) for name, a in checkpoint.section("best", arrays).items()}
        self.best_params = {name: a for name, a in best.items() if name in self.model.params}
        self._best_state = {name: a for name, a in best.items() if name not in self.model.params}

    def _optimizer_arrays(self) -> dict[str, Array]:
        groups = self.optimizer.groups.items()
        return {f"{group}/{key}": v for group, config in groups for key, v in config.items() if backends.is_array(v)}

    def _load_model(self, arrays: Mapping[str, Array]) -> None:
        if isinstance(self.model, Model):
            self.model.load_state_dict(arrays)
        else:
            self.model.params.update((name, self.backend.asarray(array)) for name, array in arrays.items())
