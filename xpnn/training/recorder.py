"""The steps of a Solver, recorded by a device and replayed."""

from collections.abc import Iterator
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any

from xpnn.backend import Array, is_array
from xpnn.errors import SettingError
from xpnn.kernels import fast_path
from xpnn.layers import Layer
from xpnn.models import Model

if TYPE_CHECKING:
    from xpnn.training.solver import Solver

FIRST = 2  # steps that are launched one by one before: kernels are compiled, plans are made


class Recorder:
    """Has a device record a Solver's step, and replays it, where that gives the same results.

    Parameters
    ----------
    graph : bool or ``"auto"``
        As the Solver's.

    Attributes
    ----------
    reason : str or None
        Why steps are not recorded.

    Raises
    ------
    SettingError
        For another `graph`; by all methods where steps are to be recorded and cannot.
    """

    def __init__(self, graph: bool | str) -> None:
        if not isinstance(graph, bool) and graph != "auto":
            raise SettingError(f"Solver: expected graph to be True, False or 'auto'; received {graph!r}")
        self.graph = graph
        self.forget()

    def forget(self) -> None:
        """Give up what was recorded, and its memory."""
        self._recorded: RecordedStep | None = None
        self._launched = 0

    def start(self, solver: "Solver") -> None:
        """Look at a solver anew: it may have changed."""
        self.forget()
        self._decide(_obstacle(solver) if self.graph else "graph=False was asked for")

    def _decide(self, reason: str | None) -> None:
        self.reason = reason
        if reason is not None and self.graph is True:
            raise SettingError(f"Solver: expected steps that can be recorded, for graph=True; {reason}")

    def replay(self, solver: "Solver", indices: Array) -> Array | None:
        """Take the step of a batch and return its loss; None where it is to be launched anew, and nothing is done."""
        if self.reason is not None or indices.shape[0] != solver.batch_size:
            return None
        if self._recorded is not None and not self._recorded.is_current(indices):
            self.forget()
        if self._recorded is None and self._launched < FIRST:
            self._launched += 1
            return None
        try:
            self._recorded = self._recorded or RecordedStep(solver, indices)
        except Exception as error:
            self._decide(f"recording failed: {error}")
            return None
        return self._recorded(indices)


class RecordedStep:
    """A step of a Solver with a full batch, on the arrays that there were when it was recorded."""

    def __init__(self, solver: "Solver", indices: Array) -> None:
        self._solver, self._arrays = solver, _arrays(solver)
        self._indices = solver.backend.asarray(indices, copy=True)
        # What layers and rules may replace by new arrays, in the dicts that they keep it in.
        dicts = [*(layer.state for layer, _ in solver.model.state_places), *solver.optimizer.groups.values()]
        self._state = [(each, key, value) for each in dicts for key, value in each.items() if is_array(value)]
        record = fast_path("recording.record", solver.backend.name)
        assert record is not None
        try:
            self._replay = record(self._work)
        finally:
            for state, key, array in self._state:
                state[key] = array

    def _work(self) -> Array:
        loss = self._solver._whole_step(self._indices)
        for state, key, array in self._state:
            if state[key] is not array:
                array[...] = state[key]
        return loss

    def is_current(self, indices: Array) -> bool:
        """Whether the arrays are the Solver's still, and the batch is as large."""
        now = _arrays(self._solver)
        same = len(now) == len(self._arrays) and all(a is b for a, b in zip(now, self._arrays, strict=True))
        return same and indices.shape == self._indices.shape

    def __call__(self, indices: Array) -> Array:
        self._indices[...] = indices
        for state, key, array in self._state:
            if state[key] is not array:  # after a step that was launched anew
                array[...], state[key] = state[key], array
        return self._solver.backend.asarray(self._replay(), copy=True)  # the next replay overwrites it


def _arrays(solver: "Solver") -> list[Array]:
    """All that a step reads or writes, besides what layers and rules replace."""
    return [
        *(solver.X_train, solver.y_train, solver._finite),
        *(parameters.flat for parameters in (*solver.model.buffers, solver._gradients["grads"])),
        *([] if solver._loss_scale is None else solver._loss_scale.arrays.values()),
    ]


def _obstacle(solver: "Solver") -> str | None:
    """Say what keeps a Solver's steps from being recorded."""
    if fast_path("recording.record", solver.backend.name) is None:
        return f"{solver.backend} records no steps"
    if solver.accumulate > 1:
        return "a step takes several batches"
    if (rule := solver.optimizer.unrecordable) is not None:
        return f"{_name(rule)} takes numbers from the host at each step"
    watching = [each for each in solver.callbacks if _has_own(each, "on_iteration")]
    for part in (solver.model, *_parts(solver.model), *solver.augment.transforms, *watching):
        if not is_ours(part):
            return f"{_name(part)} is not xpnn's own, and may do what no device can record"
        if not getattr(part, "recordable", True):
            return f"{_name(part)} decides on the host what differs from step to step"
    return None


def is_ours(thing: Any) -> bool:
    """Whether a function, or an object's class, is xpnn's own."""
    return _kind(thing).__module__.partition(".")[0] == "xpnn"


def _kind(thing: Any) -> Any:
    while isinstance(thing, partial):
        thing = thing.func
    return thing if isinstance(thing, FunctionType | type) else type(thing)


def _name(thing: Any) -> str:
    path = thing.path if isinstance(thing, Layer) else ""
    return f"{path} ({_kind(thing).__name__})" if path else _kind(thing).__name__


def _has_own(callback: Any, method: str) -> bool:
    """Whether a callback's class has a method that does something."""
    return any(method in vars(kind) for kind in type(callback).__mro__[:-2])


def _parts(model: Any) -> Iterator[Any]:
    """The loss and the layers of a model, those that hold others too."""
    if isinstance(model, Model):
        yield model.loss_function
        yield from _layers(model.net)


def _layers(layer: Layer) -> Iterator[Layer]:
    yield layer
    for value in vars(layer).values():
        for each in value.values() if isinstance(value, dict) else (value,):
            if isinstance(each, Layer):
                yield from _layers(each)
