"""Which parameters go by which rule."""

import math
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from xpnn.arguments import check_number
from xpnn.backend import Array
from xpnn.errors import SettingError
from xpnn.optim import schedules
from xpnn.optim.rules import RULES, Config, Rule, check_half
from xpnn.optim.schedules import Schedule

BELOW_ONE = ("beta1", "beta2", "momentum", "decay_rate")  # shares of what has gathered that are kept


class ParamGroup:
    """Parameters with a rule, a rate and a schedule of their own.

    Parameters
    ----------
    pattern : str or sequence of str
        Of their names, with ``*``, ``?`` and ``[...]`` as in file names: ``"*.b"``, ``"block?.conv*.W"``.
    rule : str or callable, optional
        As for `Optimizer`, or ``"frozen"``, which leaves them as they are; the optimizer's own by default.
    schedule : str or callable, optional
        In place of the schedule that `Optimizer.set_progress` is given.
    **config
        Settings of the rule. Under the optimizer's own rule its settings hold for what is not given here;
        under another rule that rule's defaults do.
    """

    def __init__(
        self,
        pattern: str | Sequence[str],
        rule: str | Rule | None = None,
        schedule: str | Schedule | None = None,
        **config: Any,
    ) -> None:
        if isinstance(pattern, str):
            self.patterns: tuple[str, ...] = (pattern,)
        else:
            self.patterns = tuple(pattern) if isinstance(pattern, Iterable) else ()
        if not self.patterns or not all(isinstance(p, str) for p in self.patterns):
            raise SettingError(f"ParamGroup: expected a pattern of parameters' names; received {pattern!r}")
        self.pattern = ", ".join(self.patterns)
        self.rule, self.config = rule, dict(config)
        if rule == frozen.__name__ and schedule is not None:
            raise SettingError(f"group {self.pattern!r}: frozen: expected no schedule; received {schedule!r}")
        try:
            self.schedule = None if schedule is None else schedules.get(schedule)
        except SettingError as error:
            raise SettingError(f"group {pattern!r}: {error}") from None

    def __repr__(self) -> str:
        settings = "".join(f", {key}={value!r}" for key, value in self.config.items())
        pattern = self.pattern if len(self.patterns) == 1 else list(self.patterns)
        return f"ParamGroup({pattern!r}, rule={self.rule!r}{settings})"

    def matches(self, name: str) -> bool:
        """Return whether a parameter's name fits one of the patterns."""
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)

    def completed(self, rule: str | Rule, config: Config) -> "ParamGroup":
        """Return the group with a rule and settings where it has none."""
        where = f"group {self.pattern!r}: "
        if self.rule is not None and find_rule(self.rule, where) is not find_rule(rule):
            return self
        out = ParamGroup(self.patterns, rule, self.schedule)
        out.config = {**config, **self.config}
        return out


def divide(names: Iterable[str], groups: Sequence[ParamGroup]) -> tuple[list[list[str]], list[str]]:
    """Return the names that go to each group, the first with a pattern that matches, and those that are left.

    Raises
    ------
    SettingError
        For a group that gets none.
    """
    left, names = list(names), list(names)
    members = []
    for group in groups:
        taken = [name for name in left if group.matches(name)]
        if not taken:
            received = f"received one that matches none of {', '.join(left)}" if left else "there are none"
            left_over = " that no group before has taken" if any(map(group.matches, names)) else ""
            expected = f"expected a pattern that matches parameters{left_over}"
            raise SettingError(f"group {group.pattern!r}: {expected}; {received}")
        for pattern in group.patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise SettingError(
                    f"group {group.pattern!r}: expected patterns that match parameters; received {pattern!r}, which "
                    f"matches none of {', '.join(names)}"
                )
        members.append(taken)
        left = [name for name in left if name not in set(taken)]
    return members, left


def frozen(w: Array, dw: Array, config: Config) -> tuple[Array, Config]:
    """Leave w as it is: the rule that stands for no rule."""
    return w, config


def find_rule(rule: str | Rule | None, where: str = "") -> Rule:
    """Return a rule by name; a callable is returned as it is. An error begins with `where`."""
    if rule == frozen.__name__:
        return frozen
    if isinstance(rule, str) and rule in RULES:
        return RULES[rule]
    if rule is None or not callable(rule):
        known = ", ".join((*RULES, frozen.__name__))
        raise SettingError(f"{where}update rule: expected one of {known}, or a callable; received {rule!r}")
    return rule


def rule_name(rule: Rule) -> str:
    """Return what a rule is called; a callable object goes by its class."""
    return getattr(rule, "__name__", type(rule).__name__)


def settings_of(rule: Rule, config: Config, where: str) -> dict[str, float | str]:
    """Return the settings that xpnn's rule takes, at their defaults where `config` does not give them; none for others.

    Raises
    ------
    SettingError
        For a setting that the rule does not have, or a value that it cannot have; the message begins with `where`.
    """
    if rule is frozen and config:
        raise SettingError(f"{where}frozen: expected no settings; received {', '.join(map(repr, config))}")
    if not hasattr(rule, "defaults"):
        return {}
    defaults, state = rule.defaults, getattr(rule, "state", ())
    for name in config:
        if name not in defaults and name not in state:
            expected = ", ".join((*defaults, *state))
            raise SettingError(f"{where}{rule_name(rule)}: expected settings among {expected}; received {name!r}")
    where = f"{where}{rule_name(rule)}"
    return {name: _setting(where, name, config.get(name, default), default) for name, default in defaults.items()}


def _setting(where: str, name: str, value: Any, default: float | str) -> float | str:
    """Return a setting as a number of its default's type, or as the name of a dtype."""
    if isinstance(default, str):
        return check_half(where, name, value)
    is_whole, limit = isinstance(default, int), 1 if name in BELOW_ONE else math.inf
    expected = f"{name} to be a {'whole ' * is_whole}number of at least 0{' and below 1' * (limit == 1)}"
    return type(default)(check_number(where, expected, value, lambda v: 0 <= v < limit and not (is_whole and v % 1)))
