"""A rule applied to a whole model."""

from collections.abc import Mapping, MutableMapping
from typing import Any

from xpnn.backend import Array, namespace
from xpnn.errors import SettingError
from xpnn.optim.rules import RULES, Config, Rule
from xpnn.parameters import Parameters


class Optimizer:
    """Applies an update rule to a model's parameters.

    Where the parameters share a flat buffer, xpnn's own rules, which treat every number by itself, run once
    over all of it. A plain dict of arrays, or a rule of the user's own, is taken one parameter at a time.

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
        if isinstance(rule, str) and rule not in RULES:
            raise SettingError(f"update rule: expected one of {', '.join(RULES)}, or a callable; received {rule!r}")
        self.params = params
        self.rule: Rule = RULES[rule] if isinstance(rule, str) else rule
        self.state_names: tuple[str, ...] = getattr(self.rule, "state", ())
        defaults: dict[str, float] | None = getattr(self.rule, "defaults", None)
        if defaults is not None:
            for name in config:
                if name not in defaults and name not in self.state_names:
                    expected = ", ".join((*defaults, *self.state_names))
                    raise SettingError(f"{self.rule.__name__}: expected settings among {expected}; received {name!r}")
        self.is_flat = isinstance(params, Parameters) and defaults is not None
        self.groups: dict[str, Config] = {name: self._initial(w, config) for name, w in self._arrays(params).items()}

    def _initial(self, w: Array, config: Config) -> Config:
        zeros = {name: namespace(w).zeros_like(w) for name in self.state_names}
        return {**getattr(self.rule, "defaults", {}), **zeros, **config}

    def _arrays(self, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        if not self.is_flat:
            return arrays
        if not isinstance(arrays, Parameters):  # gradients that a model made one by one
            flat = self.params.like()  # type: ignore[attr-defined]
            flat.update(arrays)
            arrays = flat
        return {self.FLAT: arrays.flat}

    def step(self, grads: Mapping[str, Array]) -> None:
        """Update the parameters in place, given their gradients."""
        weights, grads = self._arrays(self.params), self._arrays(grads)
        for name, config in self.groups.items():
            w = weights[name]
            next_w, self.groups[name] = self.rule(w, grads[name], config)
            if self.is_flat:
                w[...] = next_w
            else:
                self.params[name] = next_w

    @property
    def learning_rate(self) -> float | None:
        """The rate of all groups; None for a rule that has none. May be set."""
        return next((config["learning_rate"] for config in self.groups.values() if "learning_rate" in config), None)

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        for config in self.groups.values():
            config["learning_rate"] = rate

    def configs(self) -> dict[str, Config]:
        """Return the rule's config for each parameter; its arrays are views into the state."""
        if not self.is_flat:
            return {name: dict(config) for name, config in self.groups.items()}
        config, params = self.groups[self.FLAT], self.params
        assert isinstance(params, Parameters)
        views = {name: params.views(config[name]) for name in self.state_names}
        return {p: {key: views[key][p] if key in views else value for key, value in config.items()} for p in params}
