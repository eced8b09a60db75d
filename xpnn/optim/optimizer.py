"""A rule applied to a whole model."""

from collections.abc import Mapping, MutableMapping
from typing import Any

from xpnn import backend as backends
from xpnn.backend import Array, Backend, is_array, namespace
from xpnn.errors import SettingError
from xpnn.optim.rules import RULES, Config, Rule
from xpnn.parameters import Parameters

BLOCK = 65_536  # numbers: a rule's temporaries then fit a CPU core's cache


class Optimizer:
    """Applies an update rule to a model's parameters.

    Where the parameters share a flat buffer, xpnn's own rules, which treat every number by itself, run over all
    of it in one pass. A plain dict of arrays, or a rule of the user's own, is taken one parameter at a time.

    Parameters
    ----------
    params : mapping of str to array
        Updated by `step`.
    rule : str or callable
        A name from `RULES`, or a function ``rule(w, dw, config) -> (next_w, config)``.
    **config
        Settings of the rule, such as ``learning_rate=1e-3``.

    Attributes
    ----------
    groups : dict of str to dict
        The rule's config for each array it runs on: ``"flat"`` for a buffer, else by parameter name.

    Raises
    ------
    SettingError
        For an unknown rule, or a setting that xpnn's rule does not have.
    """

    FLAT = "flat"

    def __init__(self, params: MutableMapping[str, Array], rule: str | Rule = "sgd", **config: Any) -> None:
        if not callable(rule) and rule not in RULES:
            raise SettingError(f"update rule: expected one of {', '.join(RULES)}, or a callable; received {rule!r}")
        self.params = params
        self.rule: Rule = RULES[rule] if isinstance(rule, str) else rule
        self.rule_name: str = getattr(self.rule, "__name__", type(self.rule).__name__)
        self.state_names: tuple[str, ...] = getattr(self.rule, "state", ())
        is_ours = hasattr(self.rule, "defaults")
        self.defaults: dict[str, float] = getattr(self.rule, "defaults", {})
        if is_ours:
            for name in config:
                if name not in self.defaults and name not in self.state_names:
                    expected = ", ".join((*self.defaults, *self.state_names))
                    raise SettingError(f"{self.rule_name}: expected settings among {expected}; received {name!r}")
        self._shared = params if isinstance(params, Parameters) and is_ours else None
        self.groups: dict[str, Config] = {name: self._first_config(w, config) for name, w in self._by_group(params)}
        self._backend: Backend | None = None

    def _first_config(self, w: Array, config: Config) -> Config:
        """The config for an array before the first step: state is there from the start, and the optimizer's own."""
        backend = backends.of(w)
        given = {key: backend.asarray(config[key], copy=True) for key in self.state_names if key in config}
        zeros = {key: namespace(w).zeros_like(w) for key in self.state_names}
        settings = {key: self._number(key, value, config.get(key, value)) for key, value in self.defaults.items()}
        return {**config, **settings, **zeros, **given}

    def _number(self, key: str, default: float, value: Any) -> float:
        try:
            return type(default)(value)
        except (TypeError, ValueError):
            raise SettingError(f"{self.rule_name}: expected a number for {key}; received {value!r}") from None

    def _by_group(self, arrays: Mapping[str, Array]) -> list[tuple[str, Array]]:
        """The arrays that the rule runs on: the whole buffer, or one parameter after the other."""
        if self._shared is None:
            return list(arrays.items())
        if not isinstance(arrays, Parameters):  # gradients that a model made one by one
            buffer = self._shared.like()
            buffer.update(arrays)
            arrays = buffer
        return [(self.FLAT, arrays.flat)]

    def step(self, grads: Mapping[str, Array], where: Array | None = None) -> None:
        """Update the parameters in place.

        Parameters
        ----------
        grads : mapping of str to array
            The gradients by the names of the parameters.
        where : array () of bool, optional
            Where False parameters and state stay as they are, counters aside: a condition that nobody waits for.
        """
        gradient = dict(self._by_group(grads))
        for name, w in self._by_group(self.params):
            backend = backends.of(w)
            self._follow(backend)
            # A rule of the user's own may write in place or keep state unseen, so for it the condition is waited for.
            waits = not backend.asynchronous or not self.defaults
            if where is not None and waits and not bool(where):
                continue
            if self._shared is not None and not backend.asynchronous:
                self._step_in_blocks(w, gradient[name], self.groups[name])
                continue
            before = dict(self.groups[name])
            next_w, after = self.rule(w, gradient[name], self.groups[name])
            if where is not None:
                xp = namespace(w)
                next_w = xp.where(where, next_w, w)
                after |= {key: xp.where(where, after[key], before[key]) for key in self.state_names}
            self.groups[name] = after
            if self._shared is None:
                self.params[name] = next_w
            else:
                w[...] = next_w

    def _step_in_blocks(self, w: Array, dw: Array, config: Config) -> None:
        """Run the rule over a buffer, block by block: each stays in the CPU's cache until the rule is done with it."""
        after = config
        for start in range(0, w.shape[0], BLOCK):
            block = slice(start, min(start + BLOCK, w.shape[0]))
            before = {**config, **{key: config[key][block] for key in self.state_names}}
            w[block], after = self.rule(w[block], dw[block], before)
            for key in self.state_names:
                config[key][block] = after[key]
        config.update({key: value for key, value in after.items() if key not in self.state_names})

    def _follow(self, backend: Backend) -> None:
        """Move the state to where the parameters have gone."""
        if backend is not self._backend:
            for config in self.groups.values():
                config.update({key: backend.asarray(value) for key, value in config.items() if is_array(value)})
            self._backend = backend

    @property
    def learning_rate(self) -> float | None:
        """The rate of all groups; None for a rule that has none. May be set."""
        return next((c["learning_rate"] for c in self.groups.values() if "learning_rate" in c), None)

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        for config in self.groups.values():
            config["learning_rate"] = rate

    def settings(self) -> dict[str, float]:
        """Return what was set of xpnn's rule besides the learning rate: its momentum, its epsilon, ..."""
        config: Config = next(iter(self.groups.values()), {})
        fixed = self.defaults.keys() - {"learning_rate", "t"}
        return {name: config[name] for name in sorted(fixed)}

    def configs(self) -> dict[str, Config]:
        """Return the rule's config for each parameter; its arrays are views into the state."""
        if self._shared is None:
            return {name: dict(config) for name, config in self.groups.items()}
        self._follow(backends.of(self._shared.flat))
        config = self.groups[self.FLAT]
        views = {key: self._shared.views(config[key]) for key in self.state_names}
        return {name: {**config, **{key: view[name] for key, view in views.items()}} for name in self._shared}
