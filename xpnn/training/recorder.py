"""The steps of a Solver, recorded by a device and replayed."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from xpnn.backend import Array, is_array
from xpnn.errors import SettingError
from xpnn.kernels import fast_path
from xpnn.recording import Rehearsal, overwrite, record, recorded_by
from xpnn.training.recordable import obstacles

if TYPE_CHECKING:
    from xpnn.training.solver import Solver

FIRST = 2  # steps before, launched one by one: plans are made, and in the last the kernels of a recording compiled


class Recorder:
    """Has a device record a Solver's step, and replays it, where that gives the same results.

    Parameters
    ----------
    graph : bool or ``"auto"``
        As the Solver's.

    Attributes
    ----------
    reason : str or None
        What keeps steps from being recorded.
    replays : int
        How many there have been.

    Raises
    ------
    SettingError
        For another `graph`; by all methods where steps are to be recorded and cannot.
    """

    def __init__(self, graph: bool | str) -> None:
        if not isinstance(graph, bool) and graph != "auto":
            raise SettingError(f"Solver: expected graph to be True, False or 'auto'; received {graph!r}")
        self.graph = graph
        self.reason: str | None = None
        self._failure: str | None = None  # of a recording in this training
        self._recorded: RecordedStep | None = None
        self._launched, self._rehearses = 0, False
        self.replays = 0

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_recorded": None, "_launched": 0}  # what is recorded stays where it is

    def start(self, solver: "Solver") -> None:
        """Before a training."""
        self._failure = None
        self.renew(solver)

    def renew(self, solver: "Solver") -> None:
        """Where anything may have changed."""
        self.forget()
        why_not = next(obstacles(solver), None) if self.graph else "graph=False was asked for"
        self._decide(self._failure or why_not)

    def forget(self) -> None:
        """Give up what was recorded, and its memory."""
        if self._recorded is not None:
            self._recorded.release()
        self._recorded, self._launched = None, 0

    def give_up(self, solver: "Solver") -> bool:
        """Do without from now on, as memory is short; return whether there was anything to give up."""
        if self._recorded is None:
            return False
        self.forget()
        self._fail("memory is short beside a recorded step")
        return True

    def _fail(self, reason: str) -> None:
        self._failure = reason
        self._decide(reason)
        warnings.warn(f"Solver: {reason}; steps are launched one by one", RuntimeWarning, stacklevel=2)

    def _decide(self, reason: str | None) -> None:
        self.reason = reason
        if reason is not None and self.graph is True:
            raise SettingError(f"Solver: expected steps that can be recorded, for graph=True; {reason}")

    def rehearsal(self, solver: "Solver") -> AbstractContextManager[Any]:
        """For a step that is launched: in the last before a recording what that takes is compiled."""
        rehearses, self._rehearses = self._rehearses, False
        return recorded_by(Rehearsal(solver.backend)) if rehearses else nullcontext()

    def replay(self, solver: "Solver", indices: Array) -> Array | None:
        """Take the step of a batch and return its loss; None where it is to be launched anew, and nothing is done."""
        if self.reason is not None or indices.shape[0] != solver.batch_size:
            return None
        if self._recorded is not None and not self._recorded.is_current(indices):
            self.forget()
        if self._recorded is None and self._launched < FIRST:
            self._launched += 1
            self._rehearses = self._launched == FIRST
            return None
        try:
            self._recorded = self._recorded or RecordedStep(solver, indices)
        except Exception as error:
            self._fail(f"recording failed: {error}")
            return None
        loss = self._recorded(indices)
        self.replays += 1
        return loss


class RecordedStep:
    """A step of a Solver with a full batch, on the arrays that there were when it was recorded."""

    def __init__(self, solver: "Solver", indices: Array) -> None:
        self._solver, self._arrays = solver, _arrays(solver)
        self._indices = solver.backend.asarray(indices, copy=True)
        self._dtype: Any = None  # of the loss, once the work has been done
        # What layers and rules may replace by new arrays, in the dicts that they keep it in.
        dicts = {id(layer.state): layer.state for layer, _ in solver.model.state_places}
        dicts |= {id(config): config for config in solver.optimizer.groups.values()}
        self._state = [(each, key, value) for each in dicts.values() for key, value in each.items() if is_array(value)]
        try:
            self._replay = (fast_path("recording.record", solver.backend.name) or record)(self._work)
        finally:
            for state, key, array in self._state:
                state[key] = array

    def _work(self) -> Array:
        loss = self._solver._whole_step(self._indices)
        self._dtype = loss.dtype
        replaced = [(array, state[key]) for state, key, array in self._state if state[key] is not array]
        if replaced:
            (fast_path("recording.overwrite", self._solver.backend.name) or overwrite)(*zip(*replaced, strict=True))
        return loss

    def release(self) -> None:
        self._solver.backend.peak_memory()  # which has this memory in it
        self._replay.release()

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
        # A copy, as the next replay overwrites it; made room for before the step, which is not to be taken twice.
        loss = self._solver.backend.namespace.empty((), dtype=self._dtype, device=indices.device)
        loss[...] = self._replay()
        return loss


def _arrays(solver: "Solver") -> list[Array]:
    """All that a step reads or writes, besides what layers and rules replace."""
    return [
        *(solver.X_train, solver.y_train, solver._finite),
        *(parameters.flat for parameters in (*solver.model.buffers, solver._gradients["grads"])),
        *([] if solver._loss_scale is None else solver._loss_scale.arrays.values()),
    ]
