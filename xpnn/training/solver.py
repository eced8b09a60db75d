"""The training loop."""

import contextlib
import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from xpnn import backend as backends
from xpnn import memory
from xpnn.arguments import check_flag, check_number
from xpnn.backend import Array, Fetched
from xpnn.data import Dataset
from xpnn.data.augmentation import Batch, Transform
from xpnn.data.sampling import SAMPLINGS, batches_per_epoch, epoch_order
from xpnn.data.splits import moved, take_split
from xpnn.data.tta import check_level, tta_scores
from xpnn.errors import OutOfMemory, SettingError
from xpnn.kernels import fast_path
from xpnn.models import Model
from xpnn.models.model import best_labels
from xpnn.optim import EMA, Lookahead, Optimizer, ParamGroup, schedules
from xpnn.out_of_memory import largest_that_fits, memory_for, shortage_in
from xpnn.parameters import copied
from xpnn.random import AUGMENTATION, BATCHES, EVALUATION, as_generator
from xpnn.recording import varying
from xpnn.threads import steady
from xpnn.training import checkpoint
from xpnn.training.accumulation import GradientSum
from xpnn.training.callbacks import Callback, Metrics
from xpnn.training.drawn import Drawn
from xpnn.training.interrupt import deferred_interrupt
from xpnn.training.loss_scale import LossScale
from xpnn.training.recordable import may_change
from xpnn.training.recorder import Recorder
from xpnn.training.resumable import Resumable
from xpnn.training.solver_arguments import (
    backend_of,
    callbacks_of,
    check_average,
    check_choice,
    check_folder,
    check_views,
    config_of,
    made_transforms,
    whole,
)

REDUCTIONS = ("mean", "sum")
PATIENCE = 0.1  # seconds before a device is asked again whether its losses are finite
BATCH_SIZE = 100  # of accuracy checks: no more than this, unless training takes more
_DATA = ("X_train", "y_train", "X_val", "y_val")
_TOO_LITTLE = "Solver: expected memory for gradients and what the update rule keeps; received too little"


class Solver(Resumable):
    """Trains a model: batches, updates, accuracy checks, the best weights kept.

    Parameters
    ----------
    model : Model, or any object with a dict `params` and ``loss(X, y=None)`` as `Model.loss`
    data : dict or Dataset
        ``X_train, y_train, X_val, y_val``: arrays of any kind; they are moved to the model's backend once.
    update_rule : str or callable
        A name from `xpnn.optim.RULES` or a function ``rule(w, dw, config)``.
    optim_config : dict
        The rule's settings, such as ``{"learning_rate": 1e-3}``.
    param_groups : sequence of ParamGroup
        Parameters with a rule, a rate or a schedule of their own.
    clip_norm : float, optional
        Gradients whose norm is larger are scaled down to it.
    average : EMA or Lookahead, optional
        Of the model's parameters, updated after each step, and of its state. Its weights are those whose accuracy is
        measured and of which the best are kept.
    accumulate : int
        How many batches make a step. It goes along the gradient of one large batch of all their examples. The last
        step of an epoch takes the batches that are left.
    reduction : str
        Whether the model's loss is a ``"mean"`` over the examples of a batch or their ``"sum"``, which decides how
        gradients are accumulated: as their mean, in which each counts by the size of its batch, or as their sum, to
        which a model's `reg` adds its part once a batch.
    lr_decay : float
        The learning rate is multiplied by it after every epoch.
    schedule : str or callable
        A further factor of the learning rate: a function of progress from 0 to 1, or its name.
    batch_size, num_epochs : int
    sampling : str
        ``"replacement"``, the course's; ``"shuffle"``: every example at most once an epoch; or ``"sequential"``, in
        order.
    drop_last : bool
        Whether an epoch leaves out what does not fill a batch; else its last batch may be smaller.
    augment : transform or sequence of them, optional
        What `xpnn.data.augmentation` has, or functions ``transform(x, batch) -> x``: done to each training batch on
        the device, as it is stored. Accuracies are measured on images as they are, but for a `Normalize` among them.
    graph : bool or ``"auto"``
        Whether a device records a step with a full batch, as a CUDA graph, and replays it: ``"auto"``, where it can.
        The results are the same, a replay is a few launches. It takes two full batches first, and as much memory again
        as a step. Layers, transforms, losses and rules that are not xpnn's own keep steps from being recorded, and so
        do callbacks after each batch, `Mixup`, steps of several batches, and products without nvmath-python:
        `graph_reason` says which. After others' `on_epoch` steps are recorded anew; averages are updated beside them.
        A schedule must be a function of the progress alone.
    tta : str
        Test-time augmentation for the validation accuracy: ``"none"``, ``"mirror"`` or ``"mirror-translate"``.
    num_train_samples, num_val_samples : int or None
        How many examples, drawn at random, an accuracy check looks at; None for all.
    checkpoint_name : str, optional
        After each epoch a checkpoint ``{checkpoint_name}_epoch_{epoch}.safetensors`` is written.
    callbacks : sequence of Callback
    seed : int, optional
        For the batches, their augmentation and the samples of accuracy checks.
    print_every : int
        A line with the loss after so many iterations. On CuPy it comes a little later, as nobody waits for it.
    verbose : bool
        Whether there are such lines, and one after each accuracy check.

    Attributes
    ----------
    loss_history : list of float
        The loss of every iteration.
    train_acc_history, val_acc_history : list of float
        The accuracy after the first iteration and after every epoch.
    best_val_acc, best_epoch : float, int
    best_params : dict of str to array
        The parameters that reached it; put back into the model at the end.
    epoch, iteration : int
        How many are complete.
    stop_reason : str
        Why training ended early; empty if it did not.
    diverged : bool
        Whether a loss was NaN or infinite.
    is_whole : bool
        Whether training is not going on, and was not cut off in the middle of an iteration.
    graph_reason : str or None
        What keeps steps from being recorded; None if nothing does.
    graph_replays : int
        How many steps have been replayed.
    seconds, images_per_second : float
        Time spent in `train`; speed of the last epoch, without its accuracy check.

    Raises
    ------
    SettingError (a ValueError)
        For an unknown setting or an impossible value.
    OutOfMemory (a MemoryError)
        Where memory is too short for the data or for what is kept of each parameter; by `train`, for a step, an
        accuracy check or a copy of the weights.

    Source: UCLA ECE C147, homework 4; built on Stanford CS231n, assignment 2.
    """

    def __init__(
        self,
        model: Any,
        data: Mapping[str, Array] | Dataset,
        *,
        update_rule: str | Callable[..., Any] = "sgd",
        optim_config: Mapping[str, Any] | None = None,
        param_groups: Sequence[ParamGroup] = (),
        clip_norm: float | None = None,
        average: EMA | Lookahead | None = None,
        accumulate: int = 1,
        reduction: str = "mean",
        lr_decay: float = 1.0,
        schedule: str | schedules.Schedule = "constant",
        batch_size: int = 100,
        num_epochs: int = 10,
        sampling: str = "replacement",
        drop_last: bool = True,
        augment: Transform | Sequence[Callable[[Array, Batch], Array]] | None = None,
        graph: bool | str = "auto",
        tta: str = "none",
        num_train_samples: int | None = 1000,
        num_val_samples: int | None = None,
        checkpoint_name: str | None = None,
        callbacks: Sequence[Callback] = (),
        seed: int | None = None,
        print_every: int = 10,
        verbose: bool = True,
        **unknown: Any,
    ) -> None:
        if unknown:
            raise SettingError(f"Solver: received unknown settings {', '.join(map(repr, unknown))}")
        check_choice("sampling", sampling, SAMPLINGS)
        check_choice("reduction", reduction, REDUCTIONS)
        check_folder(checkpoint_name)
        self.model = model
        self._take_data(data.arrays() if isinstance(data, Dataset) else data)
        self.batch_size, self.num_epochs = whole("batch_size", batch_size), whole("num_epochs", num_epochs)
        self.num_train_samples = None if num_train_samples is None else whole("num_train_samples", num_train_samples)
        self.num_val_samples = None if num_val_samples is None else whole("num_val_samples", num_val_samples)
        self.lr_decay = check_number("Solver", "lr_decay to be a number above 0", lr_decay, lambda d: d > 0)
        self.schedule, self.sampling = schedules.get(schedule), sampling
        self.drop_last, self.reduction = check_flag("Solver", "drop_last", drop_last), reduction
        self.accumulate = whole("accumulate", accumulate)
        self.augment, self.tta = made_transforms(augment), check_level("Solver", tta)
        check_views(self.tta, self.X_val)
        self.checkpoint_name, self.callbacks = checkpoint_name, callbacks_of(callbacks)
        self.print_every, self.verbose = whole("print_every", print_every), verbose

        config = config_of(optim_config)
        with memory_for(_TOO_LITTLE):
            self.optimizer = Optimizer(model.params, update_rule, groups=param_groups, clip_norm=clip_norm, **config)
            self._accumulated = GradientSum(model.params) if self.accumulate > 1 else None
            self._gradients = {"grads": model.params.like()} if isinstance(model, Model) else {}
        check_average(average, model)
        if average is not None and isinstance(model, Model):
            average.include(partial(getattr, model, "state"))
        self.average = average
        is_half = isinstance(model, Model) and model.compute_dtype == "float16"
        summed = self.batch_size if self.reduction == "sum" else 1
        self._loss_scale = LossScale(self.backend, summed) if is_half else None
        generator = as_generator(seed)
        self._batches, self._augmentation = generator.spawn(BATCHES), generator.spawn(AUGMENTATION)
        self._evaluation = generator.spawn(EVALUATION)
        self._recorder = Recorder(graph)
        self._set_out()

    def _take_data(self, data: Mapping[str, Array]) -> None:
        """Move training and validation examples to where the model is, and check them."""
        model = self.model
        self.backend = model.backend if isinstance(model, Model) else backend_of(model)
        first = model.params.flat if isinstance(model, Model) else next(iter(model.params.values()))
        self.dtype = backends.dtype_name(first.dtype)
        self.num_classes = model.output_shape[0] if isinstance(model, Model) else None
        self.X_train, self.y_train = take_split(data, "train", self.backend, self.num_classes)
        self.X_val, self.y_val = take_split(data, "val", self.backend, self.num_classes)
        if self.X_val.shape[1:] != self.X_train.shape[1:]:
            shapes = f"{tuple(self.X_train.shape[1:])} and {tuple(self.X_val.shape[1:])}"
            raise SettingError(f"Solver: expected training and validation examples of one shape; received {shapes}")

    def _set_out(self) -> None:
        """Everything that training changes, as it is before the first iteration."""
        self.iterations_per_epoch = batches_per_epoch(self.X_train.shape[0], self.batch_size, self.drop_last)
        self.total_epochs = self.num_epochs
        self._first_rate = self.optimizer.learning_rate
        self.rate_factor = 1.0  # what callbacks have made of the first rate
        self.epoch = self.iteration = 0
        self.seconds = self.images_per_second = 0.0
        self._started = 0.0  # when training would have, had it never stopped
        self._images, self._step_seconds = 0, 0.0  # of this epoch, without its accuracy check
        self.stop_reason = ""
        self.diverged = False
        self.is_whole = True
        self.train_acc_history: list[float] = []
        self.val_acc_history: list[float] = []
        self.best_val_acc, self.best_epoch = 0.0, 0
        self.best_params: Any = {}
        self._best_state: dict[str, Array] = {}
        self._last: dict[str, Array] = {}  # what the best took the place of, for a checkpoint
        self._losses: list[float] = []
        self._unread: list[Array] = []  # losses still on the device
        self._lines: deque[tuple[int, Fetched]] = deque()  # iterations whose losses are still to be printed
        self._finite: Array | None = None  # on the device too
        self._answer: Fetched | None = None  # that, on its way
        self._asked = 0.0  # when it was asked for
        self._drawn: Drawn | None = None  # before a batch that is launched
        self._has_stepped = False  # and the average is still to be updated
        self._order: Array | None = None
        self._order_state = self._batches.state
        self._reset_at_a_time()
        self._recorder.start(self)

    @property
    def num_iterations(self) -> int:
        return self.total_epochs * self.iterations_per_epoch

    @property
    def loss_history(self) -> list[float]:
        self._read_losses()
        return self._losses

    @property
    def learning_rate(self) -> float | None:
        """The base rate, before decay and schedule; of the first group, where there are several.

        May be set, by a callback for example; the rates of other groups change in proportion.
        """
        return None if self._first_rate is None else self._first_rate * self.rate_factor

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        if not self._first_rate:
            raise SettingError(f"Solver: expected a learning_rate other than {self._first_rate} to begin with")
        rate = check_number("Solver", "learning_rate to be a number of at least 0", rate, lambda r: r >= 0)
        self.rate_factor = rate / self._first_rate
        self._set_learning_rate()

    @property
    def graph_reason(self) -> str | None:
        return self._recorder.reason

    @property
    def graph_replays(self) -> int:
        return self._recorder.replays

    @property
    def optim_configs(self) -> dict[str, dict[str, Any]]:
        """The update rule's settings and state for each parameter, to read."""
        return self.optimizer.configs()

    def stop(self, reason: str) -> None:
        """End the training after the current iteration."""
        self.stop_reason = self.stop_reason or reason

    def train(self) -> None:
        """Train up to `num_epochs`; once these are done, for `num_epochs` more, on from the best weights.

        Ctrl-C ends the training after the current iteration as the last epoch would: the best weights are put back and
        callbacks save what they save. A NaN or infinite loss ends it too, with a RuntimeWarning; on a device that is
        noticed some iterations later, in which no step is taken. Neither raises an error: `stop_reason` says what
        happened, and a script that trains several solvers must look at it, or Ctrl-C ends one of them and the next
        begins.
        """
        if self.epoch >= self.total_epochs:
            self.total_epochs = self.epoch + self.num_epochs
        self.stop_reason, self.diverged, self.is_whole, self._finite = "", False, False, None
        self._last = {}
        self._lines.clear()  # of a training that an error ended
        self._answer, self._asked = None, time.perf_counter()
        self._started = self._asked - self.seconds
        self._set_learning_rate()
        with deferred_interrupt(self.stop), steady(), memory.kept(), contextlib.ExitStack() as at_the_end:
            for callback in self.callbacks:
                callback.on_train_start(self)
                at_the_end.callback(callback.on_train_end, self)
            at_the_end.callback(self._print_lines)  # those that are there, where an error ends it
            self._recorder.start(self)
            at_the_end.callback(self._recorder.forget)
            self._update_average()  # these are what an error came before
            self._check_if_due(self.optimizer.learning_rate)
            while self.iteration < self.num_iterations and not self.stop_reason:
                self._iterate()
                self.seconds = time.perf_counter() - self._started
            self._read_losses()
            self._print_lines(all_of_them=True)
            self.is_whole = True
        self._restore_best()
        if self.stop_reason and self.verbose:
            print(f"Stopped at iteration {self.iteration} / {self.num_iterations}: {self.stop_reason}")

    def _follow_model(self) -> None:
        """Move the data to where the model has gone since."""
        if not isinstance(self.model, Model) or self.model.backend is self.backend:
            return
        self._read_losses()
        data: dict[str, Any] = {name: moved(name, getattr(self, name), self.model.backend) for name in _DATA}
        with memory_for(_TOO_LITTLE):
            data["_gradients"] = {"grads": self.model.params.like()}
            data["_order"] = None if self._order is None else self.model.backend.asarray(self._order)
            for follower in (self._accumulated, self._loss_scale):
                if follower is not None:
                    follower.move(self.model.backend)
            self.optimizer.follow()
            if self.average is not None:
                self.average.follow()
        vars(self).update(data)  # all of it, as there was room
        self.backend, self._finite = self.model.backend, None
        self._reset_at_a_time()
        self._recorder.renew(self)

    def _iterate(self) -> None:
        """One step, and what is due after it."""
        self._follow_model()
        started, rate = time.perf_counter(), self.optimizer.learning_rate
        iteration, order = self.iteration, self._order
        try:
            self._do(self._step, lambda: self._undo(iteration, order))
        except MemoryError as error:
            raise OutOfMemory(self._smaller_batch(str(error))) from None
        self._update_average()
        epoch_ends = self.iteration % self.iterations_per_epoch == 0
        self._set_learning_rate()
        if self.verbose and (self.iteration - 1) % self.print_every == 0:
            self._lines.append((self.iteration, self.fetch_loss()))
        self._print_lines()
        self._look_whether_finite()
        for callback in self.callbacks:
            callback.on_iteration(self)
        if epoch_ends:
            self._read_losses()
        now = time.perf_counter()
        self.seconds, self._step_seconds = now - self._started, self._step_seconds + now - started
        if epoch_ends:
            self.images_per_second = self._images / self._step_seconds
            self._images, self._step_seconds = 0, 0.0
        self._check_if_due(rate)

    def _do(self, work: Callable[[], Any], undo: Callable[[], bool] = lambda: True) -> None:
        """Do the work; where memory is short for it, and it can be undone, once more without a recorded step."""
        while (shortage := shortage_in(work)) and undo() and self._give_up_recording():
            pass
        if shortage:
            raise MemoryError(shortage)

    def _undo(self, iteration: int, order: Array | None) -> bool:
        """Undo what a batch that is still to be counted has drawn; return whether it is."""
        if self.iteration != iteration:
            return False
        if iteration % self.iterations_per_epoch == 0 or order is None:  # it was drawn for the batch
            self._batches.state, self._order = self._order_state, order
        if self._drawn is not None:
            self._drawn.put_back(self)
        return True

    def _update_average(self) -> None:
        """Take the weights into the average, where they have changed since."""
        if self._has_stepped and self.average is not None:
            with memory_for("Solver: expected memory for the average of the weights; received too little"):
                self._do(partial(self.average.update, self.iteration / self.num_iterations))
        self._has_stepped = False

    def _step(self) -> None:
        """One batch: loss and gradients, and an update where it is the last of a step."""
        row, self._drawn = self.iteration % self.iterations_per_epoch, None
        if row == 0 or self._order is None:
            self._order_state = self._batches.state
            size = self.X_train.shape[0], self.batch_size
            self._order = epoch_order(*size, self.sampling, self._batches, self.backend, self.drop_last)
        indices = self._indices(row)
        loss = self._recorder.replay(self, indices)
        if loss is not None:  # and the update is under way with it
            self._count(loss, indices)
        else:
            self._drawn = Drawn(self)
            with self._recorder.rehearsal(self):
                loss, grads = self._loss_and_gradients(indices)
                self._count(loss, indices)
                grads = self._gradients_of_step(row, grads)
                if grads is None or self.diverged:  # never step along a gradient that is no number
                    return
                self._update(grads)
        self._has_stepped = True

    def _loss_and_gradients(self, indices: Array) -> tuple[Array, Any]:
        """Those of a batch of these examples."""
        batch, scale = self._batch(indices), {}
        if self._loss_scale is not None:
            scale["scale"] = self._loss_scale.scale
        X = self.augment(self.X_train, batch, indices)
        with self.backend.overflow_ignored() if scale else contextlib.nullcontext():  # it is looked for afterwards
            loss, grads = self.model.loss(X, batch.y, **self._gradients, **scale)
        self._watch(loss)
        return loss, grads

    def _watch(self, loss: Array) -> None:
        """Keep on the device whether all losses were numbers; not where each is read anyway."""
        if not self.backend.asynchronous or not backends.is_array(loss):
            return
        if self._finite is None:
            self._finite = self.backend.namespace.isfinite(loss)
        else:
            fast = fast_path("training.solver.note_finite", self.backend.name)
            self._finite = (fast or note_finite)(self._finite, loss)

    def _count(self, loss: Array, indices: Array) -> None:
        """Count a batch, and keep its loss."""
        self._unread.append(loss)
        if not self.backend.asynchronous or not backends.is_array(loss):
            self._read_losses()
        self._images += indices.shape[0]
        self._drawn = None
        self.iteration += 1
        self.epoch = self.iteration // self.iterations_per_epoch

    def _gradients_of_step(self, row: int, grads: Any) -> Any:
        """Return the gradients to step along; None where the step takes more batches than those so far."""
        if self._accumulated is None:
            return grads
        part = row % self.accumulate
        weight, total = self._weights(row)
        self._accumulated.add(grads, is_first=part == 0, weight=weight)
        is_last = part + 1 == self.accumulate or row + 1 == self.iterations_per_epoch
        return self._accumulated.divided(total) if is_last else None

    def _update(self, grads: Any) -> None:
        """Step along gradients, unless a loss was NaN or infinite."""
        finite = self._finite
        if self._loss_scale is not None:
            fits = self._loss_scale.update(grads)
            finite = fits if finite is None else fits & finite
        self.optimizer.step(grads, where=finite)

    def _reset_at_a_time(self) -> None:
        """Let accuracy checks take as many examples at a time as they do where memory is not short."""
        self._at_a_time = max(BATCH_SIZE, self.batch_size)

    def _give_up_recording(self) -> bool:
        """Do without a recorded step, as memory is short; return whether there was one."""
        given_up = self._recorder.give_up(self)
        if given_up:
            self._reset_at_a_time()  # there may be room again
        return given_up

    def _whole_step(self, indices: Array) -> Array:
        """What a device can record of a step: all that it computes itself."""
        loss, grads = self._loss_and_gradients(indices)
        self._update(grads)
        return loss

    def _smaller_batch(self, shortage: str) -> str:
        """Say what batch fits into memory, where this one does not."""
        received = f"received {self.batch_size} ({shortage})"
        if not isinstance(self.model, Model):
            return f"Solver: expected a batch_size for which memory suffices; {received}"

        def gradients(n: int) -> None:
            X = self.augment.evaluate(self.X_train[:n, ...], self.dtype)
            self.model.loss(self.backend.asarray(X), self.y_train[:n, ...], **self._gradients)
            self.backend.synchronize()

        with self.model.unchanged():
            fits = largest_that_fits(gradients, min(self.batch_size, self.X_train.shape[0]), self.backend)
        suggested = f"batch_size {fits}, whose gradients fit into memory" if fits else "a smaller model"
        return f"Solver: expected {suggested}; {received}"

    def _indices(self, row: int) -> Array:
        """Where the examples of a batch of this epoch stand in the data."""
        assert self._order is not None
        start = row * self.batch_size
        return self._order[start : min(start + self.batch_size, self._order.shape[0])]

    def _batch(self, indices: Array) -> Batch:
        """Return what is known of a batch besides its images."""
        return Batch(
            y=self.backend.namespace.take(self.y_train, indices, axis=0),
            indices=indices,
            rng=self._augmentation,
            epoch=varying(lambda: self.iteration // self.iterations_per_epoch, dtype="int64"),
            num_examples=self.X_train.shape[0],
            num_classes=self.num_classes,
            dtype=self.dtype,
        )

    def _weights(self, row: int) -> tuple[float, float]:
        """What a batch's gradient counts in its step's, 1 if the batch is full, and those of its step so far together.

        A sum of sums is the gradient of one large batch as it is: nothing is to divide it.
        """
        if self.reduction == "sum":
            return 1.0, 1.0
        assert self._order is not None
        num_examples, size = self._order.shape[0], self.batch_size
        rows = range(row - row % self.accumulate, row + 1)
        weights = [min(num_examples - each * size, size) / size for each in rows]
        return weights[-1], sum(weights)

    def _set_learning_rate(self) -> None:
        """Set the rates of the step that this iteration belongs to."""
        begun = self.iteration - self.iteration % self.iterations_per_epoch % self.accumulate
        factor = self.rate_factor * self.lr_decay**self.epoch
        self.optimizer.set_progress(begun / self.num_iterations, self.schedule, factor)

    def _read_losses(self) -> None:
        """Fetch the losses that are still on the device; stop at one that is no number."""
        if not self._unread:
            return
        if len(self._unread) == 1:
            values = [float(self._unread[0])]
        else:
            values = self.backend.to_numpy(self.backend.namespace.stack(self._unread)).tolist()
        self._unread = []
        bad = next((i for i, value in enumerate(values) if not math.isfinite(value)), None)
        self._losses.extend(values)
        if bad is not None and not self.diverged:
            self.diverged = True
            iteration, where = len(self._losses) - len(values) + bad + 1, ""
            with contextlib.suppress(MemoryError):
                where = self._first_nonfinite((iteration - 1) % self.iterations_per_epoch)
            reason = f"the loss is {values[bad]} at iteration {iteration}{where}"
            self.stop(reason)
            warnings.warn(f"Solver: {reason}; training stopped", RuntimeWarning, stacklevel=3)

    def fetch_loss(self, count: int = 1) -> Fetched:
        """Ask the device for the mean of the last losses; on CuPy nobody waits for it.

        Parameters
        ----------
        count : int
            Of how many; of fewer at the beginning, and where some have come from the device before.

        Returns
        -------
        loss : Fetched
            `is_there` says whether it has come, and `to_numpy` waits for it.

        Raises
        ------
        SettingError
            For a count below 1, and before the first loss.
        """
        count, xp = whole("count", count), self.backend.namespace
        losses, read = self._unread[-count:], self._losses[-count:]
        if not losses and not read:
            raise SettingError("Solver: expected an iteration before its loss is fetched; there was none")
        if not losses:
            return Fetched(np.asarray(sum(read) / len(read)))
        return self.backend.fetch(losses[0] if len(losses) == 1 else xp.mean(xp.stack(losses)))

    def _print_lines(self, all_of_them: bool = False) -> None:
        """Print the lines whose losses have come from the device, or wait for the others, too."""
        while self._lines and (all_of_them or self._lines[0][1].is_there):
            iteration, loss = self._lines.popleft()
            print(f"(Iteration {iteration} / {self.num_iterations}) loss: {float(loss.to_numpy()):f}")

    def _look_whether_finite(self) -> None:
        """Read the losses once the device says that one is not finite; it is asked now and then, without waiting."""
        if not self.backend.fetches_beside_work:
            return
        now = time.perf_counter()
        if self._answer is None and self._finite is not None and now - self._asked >= PATIENCE:
            self._asked, self._answer = now, self.backend.fetch(self._finite)
        if self._answer is not None and self._answer.is_there:
            if not self._answer.to_numpy():
                self._read_losses()
            self._answer = None

    def _first_nonfinite(self, row: int) -> str:
        """Say where the batch of that row shows NaN or infinity first; no step has been taken since."""
        xp = self.backend.namespace
        X = self.augment.evaluate(xp.take(self.X_train, self._indices(row), axis=0), self.dtype)
        if backends.is_floating(X) and not bool(xp.all(xp.isfinite(X))):
            return ": the data hold NaN or infinity"
        layer = self.model.first_nonfinite(self.model.backend.asarray(X)) if isinstance(self.model, Model) else ""
        return f", first in layer {layer}" if layer else ""

    def _check_if_due(self, rate: float | None) -> None:
        """Check the accuracy once after the first iteration and once after each epoch."""
        due = self.epoch + 1 if self.iteration else 0
        while len(self.val_acc_history) < due:
            self._check(len(self.val_acc_history), rate)

    def _check(self, epoch: int, rate: float | None) -> None:
        """Measure the accuracies, keep the parameters if they are the best so far, tell the callbacks."""
        with memory_for("Solver: expected memory to measure accuracies and keep the best weights; received too little"):
            self._do(partial(self._measure, epoch))
        train_acc, val_acc = self.train_acc_history[-1], self.val_acc_history[-1]
        if self.verbose:
            self._print_lines(all_of_them=True)
            print(f"(Epoch {epoch} / {self.total_epochs}) train acc: {train_acc:f}; val_acc: {val_acc:f}")
        if epoch > 0 and self.checkpoint_name is not None:
            self.save(f"{self.checkpoint_name}_epoch_{epoch}.safetensors")
        losses = self.loss_history[-self.iterations_per_epoch :]
        metrics: Metrics = {
            "epoch": epoch,
            "iteration": self.iteration,
            "loss": sum(losses) / len(losses),
            "train_acc": train_acc,
            "val_acc": val_acc,
            "learning_rate": rate,
            "seconds": round(self.seconds, 3),
            "peak_mb": None if (peak := self.backend.peak_memory()) is None else round(peak / 1e6, 1),
        }
        for callback in self.callbacks:
            callback.on_epoch(self, metrics)
        if any(may_change(each, "on_epoch") for each in self.callbacks):
            self._recorder.renew(self)

    def _measure(self, epoch: int) -> None:
        """Measure the accuracies, and keep the parameters if they are the best so far; all of that or nothing."""
        drawn = self._evaluation.state
        try:
            with contextlib.nullcontext() if self.average is None else self.average.swapped():
                train_acc = self.check_accuracy(self.X_train, self.y_train, self.num_train_samples)
                val_acc = self.check_accuracy(self.X_val, self.y_val, self.num_val_samples, tta=self.tta)
                if not self.diverged and (not self.best_params or val_acc > self.best_val_acc):
                    state = copied(self.model.state) if isinstance(self.model, Model) else {}
                    self.best_params, self._best_state = copied(self.model.params), state
                    self.best_val_acc, self.best_epoch = val_acc, epoch
        except BaseException:
            self._evaluation.state = drawn
            raise
        self.train_acc_history.append(train_acc)
        self.val_acc_history.append(val_acc)

    def check_accuracy(
        self, X: Array, y: Array, num_samples: int | None = None, batch_size: int | None = None, tta: str = "none"
    ) -> float:
        """Return the fraction of examples whose highest score is at their label.

        Parameters
        ----------
        X, y : array (N, ...), array (N,)
        num_samples : int, optional
            Look at so many, drawn at random with replacement, if there are more.
        batch_size : int, optional
            How many go through the model at a time: 100, or as many as in training where these are more. Where memory
            is short, fewer do.
        tta : str
            Test-time augmentation: ``"none"``, ``"mirror"`` or ``"mirror-translate"``.

        Raises
        ------
        OutOfMemory
            Where memory is too short for a single example.
        """
        self._follow_model()
        xp = self.backend.namespace
        at_a_time = self._at_a_time if batch_size is None else batch_size
        X, y = moved("X", X, self.backend), moved("y", y, self.backend)
        if y.shape != X.shape[:1]:
            shapes = f"{tuple(X.shape)} and {tuple(y.shape)}"
            raise SettingError(f"check_accuracy: expected X (N, ...) and y (N,); received {shapes}")
        if X.shape[0] == 0 or at_a_time < 1 or (num_samples is not None and num_samples < 1):
            received = f"{X.shape[0]} examples, num_samples {num_samples} and batch_size {at_a_time}"
            raise SettingError(f"check_accuracy: expected at least one of each; received {received}")
        indices: Array | None = None
        if num_samples is not None and X.shape[0] > num_samples:
            indices = self._evaluation.integers(0, X.shape[0], num_samples, self.backend)
            y = xp.take(y, indices, axis=0)

        def score(batch: Array) -> Array:
            x = batch if indices is None else xp.take(X, batch, axis=0)
            return tta_scores(self.model.loss, self.augment.evaluate(x, self.dtype), tta)

        labels, fits = best_labels(score, X if indices is None else indices, at_a_time, self.backend)
        if batch_size is None:
            self._at_a_time = fits
        return float(xp.count_nonzero(labels == y)) / y.shape[0]

    def _restore_best(self) -> None:
        """Put the best weights in the place of the last; averages and sums go on from there."""
        expected = "memory for a copy of the last weights, which the model keeps"
        with memory_for(f"Solver: expected {expected}; received too little"):
            self._last = {} if self.diverged else copied(self._weight_arrays())
        if self.best_params:
            self._load_model(self.best_arrays())
        if self.average is not None and self.best_params:
            own = self.average.state_dict()
            self.average.load_state_dict(own | checkpoint.prefixed("average", self._model_arrays()))
        if self._accumulated is not None:
            self._accumulated.clear()


def note_finite(finite: Array, loss: Array) -> Array:
    """The definition of whether all losses so far were numbers, this one too; in place: a recorded step knows it."""
    finite &= backends.namespace(loss).isfinite(loss)
    return finite
