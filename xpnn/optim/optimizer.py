"""A rule, or several, applied to a whole model."""

import math
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from xpnn import backend as backends
from xpnn.arguments import check_number
from xpnn.backend import Array, Backend, is_array, library_of, namespace
from xpnn.errors import SettingError
from xpnn.kernels import fast_path
from xpnn.kernels.updates import InPlaceKernel, Segment
from xpnn.layers.precision import narrowed
from xpnn.optim import schedules
from xpnn.optim.groups import ParamGroup, divide, find_rule, frozen, rule_name, settings_of
from xpnn.optim.in_place import InPlace, in_place, in_place_kernel
from xpnn.optim.norms import clip_factor, scaled
from xpnn.optim.rules import RULES, Config, Rule
from xpnn.optim.schedules import Schedule
from xpnn.parameters import Parameters


@dataclass
class _Part:
    """What one config is for: segments of the flat buffer, or, without any, one parameter by itself."""

    rule: Rule
    names: list[str]
    segments: list[slice]
    pattern: str  # of its group; empty for the default
    schedule: Schedule | None
    base_rate: float | None

    @property
    def is_ours(self) -> bool:
        return hasattr(self.rule, "defaults")

    @property
    def state(self) -> tuple[str, ...]:
        return getattr(self.rule, "state", ())

    @property
    def defaults(self) -> dict[str, float | str]:
        return getattr(self.rule, "defaults", {})


class Optimizer:
    """Applies update rules to a model's parameters.

    Where the parameters share a flat buffer, rules of xpnn's that treat every number by itself run over it in one
    pass, or over the segments that a group's parameters form there. A plain dict of arrays, a rule that needs a
    parameter's shape, or one of the user's own is taken one parameter at a time. Of a buffer, one of the user's own is
    given copies, which it may keep and write to.

    Parameters
    ----------
    params : mapping of str to array
        Updated by `step`.
    rule : str or callable
        A name from `RULES`, a function ``rule(w, dw, config) -> (next_w, config)``, or ``"frozen"``, which leaves
        parameters as they are.
    groups : sequence of ParamGroup
        Parameters with settings of their own; a parameter belongs to the first group whose pattern matches its
        name, and to none where no pattern does: then `rule` and `config` hold.
    clip_norm : float, optional
        Gradients whose norm, taken over all parameters that are not frozen, is larger are scaled down to it.
    **config
        Settings of the rule, such as ``learning_rate=1e-3``.

    Attributes
    ----------
    groups : dict of str to dict
        The rule's config for each array it runs on: ``"flat"`` for the buffer, or what the groups leave of it, a
        group's pattern for its segments, else by parameter name. Frozen parameters have none.
    rule, rule_name : callable, str
        The rule of parameters that are in no group, and its name.

    Raises
    ------
    SettingError
        For an unknown rule, a setting that xpnn's rule does not have or a number that it cannot have, a pattern that
        matches nothing, or a parameter of too few dimensions for its rule.
    """

    FLAT = "flat"

    def __init__(
        self,
        params: MutableMapping[str, Array],
        rule: str | Rule = "sgd",
        *,
        groups: Sequence[ParamGroup] = (),
        clip_norm: float | None = None,
        **config: Any,
    ) -> None:
        self.params = params
        self.clip_norm = clip_norm
        if clip_norm is not None:
            self.clip_norm = check_number("Optimizer", "clip_norm to be a number above 0", clip_norm, lambda c: c > 0)
        self.groups: dict[str, Config] = {}
        self._parts: dict[str, _Part] = {}
        self._group_rules: dict[str, str] = {}
        self._backend: Backend | None = None
        if not isinstance(groups, Sequence) or not all(isinstance(group, ParamGroup) for group in groups):
            raise SettingError(f"Optimizer: expected groups to be a sequence of ParamGroup; received {groups!r}")
        if any(group.pattern == self.FLAT for group in groups):
            raise SettingError(f"group {self.FLAT!r}: expected another pattern; that is the name of the buffer's group")
        members, rest = divide(params, groups)
        self._add(ParamGroup("").completed(rule, config), rest, is_default=True)
        self.rule = find_rule(rule)
        self.rule_name = rule_name(self.rule)
        shared = {key: value for key, value in config.items() if key not in getattr(self.rule, "state", ())}
        for group, names in zip(groups, members, strict=True):
            self._add(group.completed(rule, shared), names)

    def _add(self, group: ParamGroup, names: list[str], is_default: bool = False) -> None:
        """Make the configs of a group's parameters."""
        where = "" if is_default else f"group {group.pattern!r}: "
        rule, config = find_rule(group.rule, where), group.config
        settings = settings_of(rule, config, where)
        if not is_default:
            self._group_rules[group.pattern] = rule_name(rule)
        if rule is frozen:
            return
        for name in names:
            shape, least = tuple(self.params[name].shape), getattr(rule, "min_ndim", 0)
            if len(shape) < least:
                raise SettingError(
                    f"{where}{rule_name(rule)}: expected parameters of at least {least} dimensions; received {name} "
                    f"{shape}, which needs a group with another rule"
                )
        for key, own, segments, w in self._runs(self.FLAT if is_default else group.pattern, rule, names):
            # State is there from the start, and the optimizer's own.
            state: tuple[str, ...] = getattr(rule, "state", ())
            given = {k: backends.of(w).asarray(config[k], dtype=w.dtype, copy=True) for k in state if k in config}
            zeros = {k: namespace(w).zeros_like(w) for k in state}
            for setting, value in settings.items():
                if value and isinstance(value, str):
                    backends.of(w).dtype(value, f"{where}{rule_name(rule)}: {setting}")  # or it says that it has none
            self.groups[key] = {**config, **settings, **zeros, **given}
            pattern, rate = "" if is_default else group.pattern, self.groups[key].get("learning_rate")
            self._parts[key] = _Part(rule, own, segments, pattern, group.schedule, rate)

    def _runs(self, key: str, rule: Rule, names: list[str]) -> list[tuple[str, list[str], list[slice], Array]]:
        """What a rule runs on: key, names and segments as in `_Part`, and an array of the shape of its state."""
        if not isinstance(self.params, Parameters) or not getattr(rule, "elementwise", False):
            return [(name, [name], [], self.params[name]) for name in names]
        if self.params and not names:
            return []
        segments = _segments(self.params, names)
        size = sum(segment.stop - segment.start for segment in segments)
        return [(key, names, segments, self.params.flat[:size])]

    @property
    def unrecordable(self) -> Rule | None:
        """A rule, if there is one, that no device can record: the numbers of its steps are not `varying`."""
        flat = self.params.flat if isinstance(self.params, Parameters) else None
        for part in self._parts.values():
            if part.segments and isinstance(in_place(part.rule, flat), InPlaceKernel):
                continue
            if RULES.get(rule_name(part.rule)) is not part.rule or not part.rule.recordable:  # type: ignore[attr-defined]
                return part.rule
        return None

    def step(self, grads: Mapping[str, Array], where: Array | None = None) -> None:
        """Update the parameters in place.

        Parameters
        ----------
        grads : mapping of str to array
            The gradients by the names of the parameters.
        where : array () of bool, optional
            Where False parameters and state stay as they are, counters aside: a condition that nobody waits for.

        Raises
        ------
        ValueError
            For gradients of other names or shapes than those of parameters that share a buffer; nothing is changed.
        """
        if not self.groups:
            return
        self.follow()
        if isinstance(self.params, Parameters) and not (isinstance(grads, Parameters) and self.params.is_like(grads)):
            grads = self._laid_out(self.params, grads)
        factor = self._clip_factor(grads)
        together: dict[str, list[tuple[InPlaceKernel, str, _Part]]] = {}  # groups whose rules have one loop
        # Rules of the user's own first: they may raise.
        for key, part in sorted(self._parts.items(), key=lambda item: item[1].is_ours):
            if not part.segments:
                self._step_alone(key, part, grads, factor, where)
            elif isinstance(step := in_place(part.rule, self.params.flat), InPlaceKernel):  # type: ignore[attr-defined]
                together.setdefault(step.update.loop, []).append((step, key, part))
            else:
                self._step_over_buffer(step, key, part, grads, factor, where)
        for loop, groups in together.items():
            segments: list[Segment] = []
            for step, key, part in groups:
                numbers = step.advance(self.groups[key], self.params.flat)  # type: ignore[attr-defined]
                segments += [Segment(*arrays, numbers) for arrays in self._over_buffer(key, part, grads)]
            groups[0][0].run(loop, segments, where, factor)  # which they share

    def _laid_out(self, params: Parameters, grads: Mapping[str, Array]) -> Mapping[str, Array]:
        """Gradients that a model made one by one, or in another order, as a buffer like the parameters'."""
        if unknown := [name for name in grads if name not in params]:
            raise ValueError(f"Optimizer: expected gradients of {', '.join(params)}; received {unknown[0]}")
        for name in (name for part in self._parts.values() for name in part.names):
            if name not in grads:
                raise ValueError(f"Optimizer: expected a gradient of {name}; received none")
            expected, received = tuple(params[name].shape), tuple(grads[name].shape)
            if expected != received:
                raise ValueError(f"Optimizer: {name}: expected a gradient of shape {expected}; received {received}")
        if not any(part.segments for part in self._parts.values()):
            return grads
        buffer = params.like()
        buffer.update(grads)
        return buffer

    def _clip_factor(self, grads: Mapping[str, Array]) -> Array | None:
        if self.clip_norm is None:
            return None
        arrays: list[Array] = []
        for part in self._parts.values():
            if isinstance(grads, Parameters) and part.segments:
                arrays += [grads.flat[segment] for segment in part.segments]
            else:
                arrays += [grads[name] for name in part.names]
        return (fast_path("optim.norms.clip_factor", library_of(arrays[0])) or clip_factor)(arrays, self.clip_norm)

    def _step_alone(
        self, key: str, part: _Part, grads: Mapping[str, Array], factor: Array | None, where: Array | None
    ) -> None:
        """Run a rule on one parameter."""
        # A rule of the user's own may write in place or keep state unseen, so for it the condition is waited for.
        if where is not None and not part.is_ours:
            if not bool(where):
                return
            where = None
        name = part.names[0]
        w, dw, before = self.params[name], grads[name], dict(self.groups[key])
        shared = isinstance(self.params, Parameters)
        if part.is_ours and shared and (fast := in_place_kernel(part.rule, w)):
            fast(w, dw, self.groups[key], where, factor)
            return
        dw = narrowed(dw if factor is None else scaled(dw, factor), w.dtype)  # or the state would be of the other
        if not part.is_ours and shared:  # it may keep views of what is written over
            w, dw = (backends.of(array).asarray(array, copy=True) for array in (w, dw))
        next_w, after = part.rule(w, dw, self.groups[key])
        if where is not None:
            xp = namespace(w)
            next_w = xp.where(where, next_w, w)
            after |= {k: xp.where(where, after[k], before[k]) for k in part.state}
        self.groups[key], self.params[name] = after, next_w

    def _step_over_buffer(
        self, step: InPlace, key: str, part: _Part, grads: Any, factor: Array | None, where: Array | None
    ) -> None:
        """Run a rule that is no kernel over segments of the buffer."""
        config = after = self.groups[key]
        for w, dw, state in self._over_buffer(key, part, grads):
            after = {**config, **dict(zip(part.state, state, strict=True))}
            step(w, dw, after, where, factor)
        config.update({k: value for k, value in after.items() if k not in part.state})

    def _over_buffer(self, key: str, part: _Part, grads: Any) -> Iterator[tuple[Array, Array, tuple[Array, ...]]]:
        """Parameters, gradients and state of each segment of a part."""
        start = 0  # where the segment begins in the state
        for segment in part.segments:
            stop = start + segment.stop - segment.start
            state = tuple(self.groups[key][k][start:stop] for k in part.state)
            yield self.params.flat[segment], grads.flat[segment], state  # type: ignore[attr-defined]
            start = stop

    def follow(self) -> Backend:
        """Move the state to where the parameters have gone."""
        params = self.params
        backend = backends.of(params.flat if isinstance(params, Parameters) else next(iter(params.values())))
        if backend is not self._backend:
            for config in self.groups.values():
                config.update({key: backend.asarray(value) for key, value in config.items() if is_array(value)})
            self._backend = backend
        return backend

    def defaults_of(self, name: str) -> dict[str, float | str]:
        """Return the settings, with their defaults, of the rule that `groups` has a config for under that name."""
        return dict(self._parts[name].defaults)

    @property
    def learning_rate(self) -> float | None:
        """The rate of the first group that has one; None where none has.

        May be set: the rates of the others are then set too, in proportion to what they were at first.
        """
        return next((c["learning_rate"] for c in self.groups.values() if "learning_rate" in c), None)

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        rates = {name: part.base_rate for name, part in self._parts.items() if part.base_rate is not None}
        first = next(iter(rates.values()), None)
        if first == 0 and any(rates.values()):
            raise SettingError(
                "Optimizer: expected a first learning_rate other than 0, for others to keep in proportion"
            )
        for name, own in rates.items():
            self.groups[name]["learning_rate"] = rate * (own / first) if first and own != first else rate

    def set_progress(self, progress: float, schedule: str | Schedule = "constant", factor: float = 1.0) -> None:
        """Set every rate for a point of the training: ``its first value * factor * schedule(progress)``.

        Parameters
        ----------
        progress : float
            From 0 to 1.
        schedule : str or callable
            For groups that have none of their own.
        factor : float
            For all groups, such as a decay after each epoch.
        """
        common = schedules.get(schedule)
        for name, part in self._parts.items():
            if part.base_rate is not None:
                rate = part.base_rate * factor * (part.schedule or common)(progress)
                self.groups[name]["learning_rate"] = rate

    def settings(self) -> dict[str, Any]:
        """Return what was set besides learning rates and schedules: momentum, epsilon, ...

        Settings of the default rule stand under their names, those of a group under ``"pattern.name"``, with its
        rule's name under ``"pattern.rule"``. Two optimizers that agree in them and in `rule_name` go on alike.
        """
        out: dict[str, Any] = {} if self.clip_norm is None else {"clip_norm": self.clip_norm}
        out |= {f"{pattern}.rule": rule for pattern, rule in self._group_rules.items()}
        for name, part in self._parts.items():
            prefix = f"{part.pattern}." if part.pattern else ""
            fixed = part.defaults.keys() - {"learning_rate", "t"}
            out |= {f"{prefix}{key}": self.groups[name][key] for key in sorted(fixed)}
        return out

    def configs(self) -> dict[str, Config]:
        """Return the rule's config for each parameter that is not frozen; its arrays are views into the state."""
        if not self.groups:
            return {}
        backend, out = self.follow(), {}
        for key, part in self._parts.items():
            config, start = self.groups[key], 0
            if not part.segments:
                out[key] = dict(config)
                continue
            for name in part.names:
                shape = self.params[name].shape
                stop = start + math.prod(shape)
                views = {k: backend.namespace.reshape(config[k][start:stop], shape) for k in part.state}
                out[name], start = {**config, **views}, stop
        return {name: out[name] for name in self.params if name in out}


def _segments(params: Parameters, names: list[str]) -> list[slice]:
    """The stretches of the buffer that parameters form, adjacent ones as one; names in the buffer's order."""
    wanted, segments, start = set(names), [slice(0, 0)], 0
    for name, shape in params.shapes.items():
        stop = start + math.prod(shape)
        if name in wanted and segments[-1].stop == start:
            segments[-1] = slice(segments[-1].start, stop)
        elif name in wanted:
            segments.append(slice(start, stop))
        start = stop
    return [segment for segment in segments if segment.stop > segment.start] or segments[:1]
