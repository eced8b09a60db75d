"""What a batch changes before it is counted: where it fails, it may be tried again from there."""

from typing import TYPE_CHECKING

from xpnn.models import Model

if TYPE_CHECKING:
    from xpnn.training.solver import Solver


class Drawn:
    """How far a Solver's random generators have counted before a batch, and which arrays are its layers' state.

    A layer that writes into these arrays, as none of xpnn's does, keeps what it has written.
    """

    def __init__(self, solver: "Solver") -> None:
        self._augmentation = solver._augmentation.state
        self._model = solver.model if isinstance(solver.model, Model) else None
        if self._model is not None:
            self._rng_state = self._model.rng_state
            self._state = [(layer.state, key, layer.state[key]) for layer, key in self._model.state_places]

    def put_back(self, solver: "Solver") -> None:
        solver._augmentation.state = self._augmentation
        if self._model is not None:
            self._model.rng_state = self._rng_state
            for state, key, array in self._state:
                state[key] = array
