"""Averages of weights over the steps of training."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from xpnn import backend as backends
from xpnn.arguments import check_number
from xpnn.backend import Array, is_floating, to_numpy
from xpnn.errors import CheckpointError
from xpnn.parameters import Parameters, copied

Weights = MutableMapping[str, Array]
ReadState = Callable[[], Mapping[str, Array]]


class _Average:
    """A copy of a model's weights, and of the floating-point part of its state, that follows them slowly."""

    def __init__(self, params: Weights, state: ReadState | None) -> None:
        self.params, self._read_state = params, state
        self.average: Weights = copied(params)
        self.average_state = copied(self._state())
        self.updates = 0

    def include(self, state: ReadState) -> None:
        """Average this too, unless state was given: how a `Solver` adds its model's running statistics."""
        if self._read_state is None:
            self._read_state = state
            self.average_state = copied(self._state())

    def _state(self) -> dict[str, Array]:
        """The state as it is now: a layer may have replaced its arrays since."""
        return {} if self._read_state is None else {k: a for k, a in self._read_state().items() if is_floating(a)}

    def _blend(self, share: float) -> None:
        """Go a share of the way from the average to the weights."""
        self.follow()
        blended: list[tuple[Any, str, Array]] = []
        for slow, fast in ((self.average, self.params), (self.average_state, self._state())):
            own = _arrays(slow)
            blended += [(slow, key, own[key] + share * (new - own[key])) for key, new in _arrays(fast).items()]
        for slow, key, array in blended:  # all of it, as there was room
            _set(slow, key, array)

    def _load(self, weights: Mapping[str, Array], state: Mapping[str, Array], to_keep: bool = False) -> None:
        """Give the model weights and state, copied; or arrays to keep, for which it needs no memory."""
        shared = isinstance(self.params, Parameters)  # assigning copies already
        copies = {k: backends.of(a).asarray(a, copy=not (shared or to_keep)) for k, a in _arrays(weights).items()}
        for key, array in copies.items():
            _set(self.params, key, array)
        for name, own in self._state().items():
            own[...] = backends.of(own).asarray(state[name])

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Let the model have the average as its weights within a ``with`` block, and its own again afterwards."""
        self.follow()
        params, state = copied(self.params), copied(self._state())
        try:
            self._load(self.average, self.average_state)
            yield
        finally:
            self._load(params, state, to_keep=True)

    def follow(self) -> None:
        """Move the average to where the parameters have gone."""
        if not self.params:
            return
        backend = backends.of(next(iter(self.params.values())))
        if backends.of(next(iter(self.average.values()))) is backend:
            return
        self.average_state = {name: backend.asarray(array) for name, array in self.average_state.items()}
        if isinstance(self.average, Parameters):
            self.average.move(backend)
        else:
            self.average = {name: backend.asarray(array) for name, array in self.average.items()}

    def state_dict(self) -> dict[str, Array]:
        """Return the average by name, as ``"average/NAME"``, and the number of updates as ``"updates"``."""
        self.follow()
        arrays = {**self.average, **self.average_state}
        out = {f"average/{name}": array for name, array in arrays.items()}
        if arrays:
            out["updates"] = backends.of(next(iter(arrays.values()))).asarray(self.updates)
        return out

    def load_state_dict(self, arrays: Mapping[str, Array]) -> None:
        """Take up what `state_dict` returned, from arrays of any backend.

        Raises
        ------
        CheckpointError
            When an array is missing or its shape differs; nothing is changed then.
        """
        own = self.state_dict()
        for name, array in own.items():
            if name not in arrays or tuple(arrays[name].shape) != tuple(array.shape):
                raise CheckpointError(f"expected the average's {name} of shape {tuple(array.shape)}")
        shared = isinstance(self.average, Parameters)  # assigning then copies already
        for name in self.average:
            old, new = self.average[name], arrays[f"average/{name}"]
            self.average[name] = backends.of(old).asarray(new, dtype=old.dtype, copy=not shared)
        for name, old in self.average_state.items():
            new = backends.of(old).asarray(arrays[f"average/{name}"], dtype=old.dtype, copy=True)
            self.average_state[name] = new
        self.updates = int(to_numpy(arrays["updates"])) if own else 0


class EMA(_Average):
    """An exponential moving average of weights, to evaluate with: ``average = d average + (1 - d) w``.

    It starts as a copy of the weights, so that it needs no correction of a bias towards zero.

    Parameters
    ----------
    params : mapping of str to array
        A model's parameters.
    decay : float
        d, in [0, 1).
    state : callable, optional
        Returns a mapping of further arrays to average, such as running statistics: ``lambda: model.state``. It is
        called anew each time, because layers replace them. Integers among them are left out. A `Solver` gives its
        model's where there is none.

    Attributes
    ----------
    average, average_state : mapping of str to array
    updates : int
        How many there have been.

    Raises
    ------
    SettingError
        For a decay outside [0, 1).

    Source: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992; in this form
    Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017.
    """

    def __init__(self, params: Weights, decay: float, *, state: ReadState | None = None) -> None:
        self.decay = check_number("EMA", "decay to be at least 0 and below 1", decay, lambda d: 0 <= d < 1)
        super().__init__(params, state)

    def update(self, progress: float = 0.0) -> None:
        """Take the weights of now into the average; to be called after each step. `progress` changes nothing."""
        self._blend(1.0 - self.decay)
        self.updates += 1


class Lookahead(_Average):
    """Slow weights that the weights return to: every k steps ``slow = d slow + (1 - d) w``, then ``w = slow``.

    Parameters
    ----------
    params : mapping of str to array
        A model's parameters.
    every : int
        k.
    decay : float or callable
        d, from 0 to 1, or a function of the training's progress from 0 to 1. The paper's alpha is ``1 - d``.
    state : callable, optional
        As for `EMA`; these arrays are written to as well.

    Attributes
    ----------
    average, average_state : mapping of str to array
        The slow weights.
    updates : int
        How many steps have been counted.

    Raises
    ------
    SettingError
        For `every` below 1, or a decay outside [0, 1].

    Source: Zhang et al., "Lookahead optimizer: k steps forward, 1 step back", NeurIPS 2019; with state and a decay
    that grows, Jordan's airbench94.
    """

    def __init__(
        self,
        params: Weights,
        every: int = 5,
        decay: float | Callable[[float], float] = 0.5,
        *,
        state: ReadState | None = None,
    ) -> None:
        expected = "every to be a whole number of at least 1"
        self.every = int(check_number("Lookahead", expected, every, lambda k: k >= 1 and k % 1 == 0))
        if not callable(decay):
            check_number("Lookahead", "decay to be from 0 to 1, or a callable", decay, lambda d: 0 <= d <= 1)
        self.decay = decay
        super().__init__(params, state)

    def update(self, progress: float = 0.0) -> bool:
        """Count a step; at each k-th one blend. Returns whether it did.

        Parameters
        ----------
        progress : float
            How far the training is after this step, from 0 to 1, for a decay that depends on it.
        """
        is_due = (self.updates + 1) % self.every == 0
        if is_due:
            slow = [(own, dict(own)) for own in (self.average, self.average_state) if isinstance(own, dict)]
            self._blend(1.0 - float(self.decay(progress) if callable(self.decay) else self.decay))
            try:
                self.finish()
            except MemoryError:  # for copies, where the weights are no buffer: it may be done again
                for own, before in slow:
                    own.update(before)
                raise
        self.updates += 1
        return is_due

    def finish(self) -> None:
        """Let the weights be the slow ones, as at the end of training."""
        self.follow()
        self._load(self.average, self.average_state)


def _arrays(weights: Mapping[str, Array]) -> Mapping[str, Array]:
    """The arrays to go through: one buffer, if there is one."""
    return {"": weights.flat} if isinstance(weights, Parameters) else weights


def _set(weights: Any, key: str, array: Array) -> None:
    if isinstance(weights, Parameters):
        weights.flat[...] = weights.backend.asarray(array)
    else:
        weights[key] = array
