"""The part of the Solver that goes into a checkpoint and comes back."""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from xpnn import backend as backends
from xpnn.backend import Array, Backend
from xpnn.data.augmentation import Compose
from xpnn.errors import CheckpointError, SettingError
from xpnn.models import Model
from xpnn.optim import EMA, Lookahead, Optimizer
from xpnn.optim.rules import check_half
from xpnn.random import Generator
from xpnn.training import checkpoint
from xpnn.training.accumulation import GradientSum
from xpnn.training.loss_scale import LossScale
from xpnn.training.progress import Progress
from xpnn.training.typed import fits


class Resumable(ABC):
    """What `Solver` is besides its loop: its state, written whole and read back."""

    model: Any
    backend: Backend
    dtype: str
    optimizer: Optimizer
    average: EMA | Lookahead | None
    X_train: Array
    batch_size: int
    sampling: str
    tta: str
    num_val_samples: int | None
    drop_last: bool
    augment: Compose
    accumulate: int
    reduction: str
    num_epochs: int
    total_epochs: int
    iterations_per_epoch: int
    iteration: int
    best_params: Any
    _best_state: dict[str, Array]
    _last: dict[str, Array]
    _losses: list[float]
    _unread: list[Array]
    _order: Array | None
    _order_state: tuple[int, ...]
    _has_stepped: bool
    _accumulated: GradientSum | None
    _loss_scale: LossScale | None
    _batches: Generator
    _augmentation: Generator
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

        After `train` too these are the last weights, though the best have taken their place in the model.

        Raises
        ------
        CheckpointError
            When a rule of the user's own keeps what JSON cannot hold.
        OSError
            When the file cannot be written.
        """
        groups = self.optimizer.groups
        progress = Progress(
            loss_history=self.loss_history,
            order_state=self._order_state if self.iteration % self.iterations_per_epoch else self._batches.state,
            augmentation_state=self._augmentation.state,
            evaluation_state=self._evaluation.state,
            model_rng=self.model.rng_state if isinstance(self.model, Model) else {},
            optimizer={g: {k: v for k, v in c.items() if not backends.is_array(v)} for g, c in groups.items()},
            task=self._task(),
            **{name: getattr(self, name) for name in self._HISTORY},
        )
        checkpoint.save(path, self.arrays(), progress.to_meta())

    def arrays(self) -> dict[str, Array]:
        """Return the arrays of a checkpoint, as ``"section/NAME"``."""
        return {
            **(self._last or self._weight_arrays()),
            **checkpoint.prefixed("best", self.best_arrays()),
            **checkpoint.prefixed("optimizer", self._optimizer_arrays()),
        }

    def _weight_arrays(self) -> dict[str, Array]:
        """The arrays that change when the best weights are put back."""
        return {
            **checkpoint.prefixed("accumulated", {} if self._accumulated is None else self._accumulated.sum),
            **checkpoint.prefixed("averaging", {} if self.average is None else self.average.state_dict()),
            **checkpoint.prefixed("loss_scale", {} if self._loss_scale is None else self._loss_scale.arrays),
            **checkpoint.prefixed("model", self._model_arrays()),
        }

    _HISTORY = (
        *("epoch", "iteration", "seconds", "train_acc_history", "val_acc_history", "best_val_acc", "best_epoch"),
        "rate_factor",
    )

    def _task(self) -> dict[str, Any]:
        """What must be the same when training goes on, so that it goes on as if never interrupted."""
        return {
            "num_train": self.X_train.shape[0],
            "batch_size": self.batch_size,
            "sampling": self.sampling,
            "drop_last": self.drop_last,
            "augment": repr(self.augment),
            "accumulate": self.accumulate,
            "reduction": self.reduction,
            "tta": self.tta,
            "num_val_samples": self.num_val_samples,
            "average": _describe(self.average),
            "dtype": self.model.compute_dtype if isinstance(self.model, Model) else self.dtype,
            "update_rule": self.optimizer.rule_name,
            **self.optimizer.settings(),
        }

    def _model_arrays(self) -> dict[str, Array]:
        return self.model.state_dict() if isinstance(self.model, Model) else dict(self.model.params)

    def resume(self, path: str | os.PathLike[str]) -> None:
        """Take up training where a checkpoint of `save` left it; `train` then goes on to `num_epochs`.

        The result is the same as if training had never stopped, on another backend to rounding. The learning rate
        and its schedule are those of this Solver; where a callback had changed the rate, it is changed as much.

        Raises
        ------
        CheckpointError
            When the file is damaged, or comes from another model, rule, batch size or number of examples.
        """
        arrays, meta = checkpoint.load(path)
        try:
            progress = Progress.of(meta, self._task(), self.iterations_per_epoch)
            own_rng = self.model.rng_state if isinstance(self.model, Model) else {}
            if progress.model_rng.keys() != own_rng.keys():
                expected, received = (", ".join(names) or "none" for names in (own_rng, progress.model_rng))
                raise CheckpointError(f"expected random generators of {expected}; received {received}")
            states = progress.order_state, progress.augmentation_state, progress.evaluation_state
            for state in (*states, *progress.model_rng.values()):
                Generator(*state)
            self._check_arrays(arrays, has_best=bool(progress.val_acc_history))
            if progress.optimizer.keys() != self.optimizer.groups.keys():
                raise CheckpointError("expected the optimizer's settings for the same arrays; received others")
            for group, config in progress.optimizer.items():
                for key, default in self.optimizer.defaults_of(group).items():
                    if isinstance(default, str):
                        check_half("optimizer", key, config.get(key))
                    elif not fits(config.get(key), float):
                        received = repr(config.get(key))
                        raise CheckpointError(f"expected a number for the optimizer's {key}; received {received}")
        except (CheckpointError, SettingError, TypeError) as error:
            raise CheckpointError(f"{path}: {error}") from None
        self._load_model(checkpoint.section("model", arrays))
        if self.average is not None:
            self.average.load_state_dict(checkpoint.section("averaging", arrays))
        self._last = {}
        for name in self._HISTORY:
            setattr(self, name, getattr(progress, name))
        self.total_epochs = self.num_epochs
        self._losses, self._unread, self._order = progress.loss_history, [], None
        self._has_stepped = False
        self._batches.state, self._augmentation.state, self._evaluation.state = states
        self._order_state = self._batches.state
        if self._accumulated is not None:
            accumulated = checkpoint.section("accumulated", arrays).items()
            self._accumulated.load({name: self.backend.asarray(a) for name, a in accumulated})
        if self._loss_scale is not None:
            self._loss_scale.load(checkpoint.section("loss_scale", arrays), self.backend)
        if isinstance(self.model, Model):
            self.model.rng_state = progress.model_rng
        saved = checkpoint.section("optimizer", arrays)
        for group, config in self.optimizer.groups.items():
            config.update(progress.optimizer[group])
            config.update((k, self.backend.asarray(a)) for k, a in checkpoint.section(group, saved).items())
        best = {name: self.backend.asarray(a) for name, a in checkpoint.section("best", arrays).items()}
        self.best_params = {name: a for name, a in best.items() if name in self.model.params}
        self._best_state = {name: a for name, a in best.items() if name not in self.model.params}

    def _optimizer_arrays(self) -> dict[str, Array]:
        groups = self.optimizer.groups.items()
        return {f"{group}/{key}": v for group, config in groups for key, v in config.items() if backends.is_array(v)}

    def _check_arrays(self, saved: Mapping[str, Array], has_best: bool) -> None:
        """Refuse a checkpoint's arrays unless names, shapes and dtypes are those of this training."""
        best = self._model_arrays() if has_best else {}
        own = self._weight_arrays() | checkpoint.prefixed("optimizer", self._optimizer_arrays())
        own |= checkpoint.prefixed("best", best)
        # A rule of the user's own makes its state as it goes.
        free = tuple(f"optimizer/{group}/" for group in self.optimizer.groups if not self.optimizer.defaults_of(group))
        if missing := own.keys() - saved.keys():
            raise CheckpointError(f"expected {min(missing)}, which it does not have")
        if unknown := [name for name in saved if name not in own and not name.startswith(free)]:
            raise CheckpointError(f"received {min(unknown)}, which this training does not have")
        for name, array in own.items():
            if _form(array) != _form(saved[name]):
                raise CheckpointError(f"{name}: expected {_form(array)}; received {_form(saved[name])}")

    def _load_model(self, arrays: Mapping[str, Array]) -> None:
        """Give the model copies of weights and state that fit, one by one: memory for another set of them is scarce."""
        if isinstance(self.model, Model):
            self.model.load_matching(arrays)
        else:  # the optimizer holds this dict
            self.model.params.update((name, self.backend.asarray(a, copy=True)) for name, a in arrays.items())


def _form(array: Array) -> str:
    """Say an array's dtype and shape; backends differ in the size of integers."""
    dtype = "integers" if backends.is_integer(array) else backends.dtype_name(array.dtype)
    return f"{dtype} {tuple(array.shape)}"


def _describe(average: EMA | Lookahead | None) -> str:
    """Say what decides how an average moves."""
    if average is None:
        return "none"
    decay = getattr(average.decay, "__qualname__", average.decay)
    every = f", every={average.every}" if isinstance(average, Lookahead) else ""
    return f"{type(average).__name__}(decay={decay}{every})"
