"""Update rules that write what they return into the arrays they were given.

A step over a buffer then needs no new arrays. Each has the name of its rule in `rules` and the same config, whose
state it changes; it returns w and the state's arrays.
"""

from collections.abc import Callable

from xpnn.backend import Array, library_of
from xpnn.kernels import fast_path
from xpnn.optim import rules
from xpnn.optim.rules import Config, Rule

BLOCK = 65_536  # numbers: a rule's temporaries then fit a CPU core's cache
InPlace = Callable[[Array, Array, Config], tuple[Array, ...]]


def in_place(rule: Rule, w: Array) -> InPlace:
    """Return the form that writes into place of an elementwise rule, for arrays of w's library."""
    own = rules.RULES.get(rule.__name__) is rule
    fast = fast_path(f"optim.in_place.{rule.__name__}", library_of(w)) if own else None
    return fast or (lambda w, dw, config: _by_blocks(rule, w, dw, config))


def _by_blocks(rule: Rule, w: Array, dw: Array, config: Config) -> tuple[Array, ...]:
    state, after = getattr(rule, "state", ()), config
    for start in range(0, w.shape[0], BLOCK):
        block = slice(start, min(start + BLOCK, w.shape[0]))
        w[block], after = rule(w[block], dw[block], {**config, **{key: config[key][block] for key in state}})
        for key in state:
            config[key][block] = after[key]
    config.update({key: value for key, value in after.items() if key not in state})
    return w, *(config[key] for key in state)


def sgd(w: Array, dw: Array, config: Config) -> tuple[Array, ...]:
    """`rules.sgd` into place."""
    return _by_blocks(rules.sgd, w, dw, config)


def sgd_momentum(w: Array, dw: Array, config: Config) -> tuple[Array, ...]:
    """`rules.sgd_momentum` into place."""
    return _by_blocks(rules.sgd_momentum, w, dw, config)


def sgd_nesterov_momentum(w: Array, dw: Array, config: Config) -> tuple[Array, ...]:
    """`rules.sgd_nesterov_momentum` into place."""
    return _by_blocks(rules.sgd_nesterov_momentum, w, dw, config)


def nesterov(w: Array, dw: Array, config: Config) -> tuple[Array, ...]:
    """`rules.nesterov` into place."""
    return _by_blocks(rules.nesterov, w, dw, config)


def rmsprop(w: Array, dw: Array, config: Config) -> tuple[Array, ...]:
    """`rules.rmsprop` into place."""
    return _by_blocks(rules.rmsprop, w, dw, config)


def adam(w: Array, dw: Array, config: Config) -> tuple[Array, ...]:
    """`rules.adam` into place."""
    return _by_blocks(rules.adam, w, dw, config)


def adamw(w: Array, dw: Array, config: Config) -> tuple[Array, ...]:
    """`rules.adamw` into place."""
    return _by_blocks(rules.adamw, w, dw, config)


def lion(w: Array, dw: Array, config: Config) -> tuple[Array, ...]:
    """`rules.lion` into place."""
    return _by_blocks(rules.lion, w, dw, config)
