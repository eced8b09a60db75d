"""Update rules that write what they return into the arrays they were given.

A step over a buffer then needs no new arrays. Each has the name of its rule in `rules` and the same config, whose
state it changes; it returns w and the state's arrays. One that is elementwise takes any stretch of the buffer, another
a parameter in its shape. Two arrays () may decide more of the step, and nobody waits for them: where `where` is False,
w and the state stay as they are, counters aside; dw is scaled by `factor`.
"""

from typing import Protocol

from xpnn import backend as backends
from xpnn.backend import Array, library_of, namespace
from xpnn.kernels import fast_path
from xpnn.optim import rules
from xpnn.optim.norms import scaled
from xpnn.optim.rules import Config, Rule

BLOCK = 65_536  # numbers: a rule's temporaries then fit a CPU core's cache


class InPlace(Protocol):
    """A rule's form that writes into place."""

    def __call__(
        self, w: Array, dw: Array, config: Config, where: Array | None = None, factor: Array | None = None
    ) -> tuple[Array, ...]: ...


def in_place(rule: Rule, w: Array) -> InPlace:
    """Return the form of a rule that writes into place, for arrays of w's library."""
    return in_place_kernel(rule, w) or by_blocks(rule)


def in_place_kernel(rule: Rule, w: Array) -> InPlace | None:
    """Return the kernel for that form; None where there is none."""
    own = rules.RULES.get(rule.__name__) is rule
    return fast_path(f"optim.in_place.{rule.__name__}", library_of(w)) if own else None


def by_blocks(rule: Rule) -> InPlace:
    """Return the definition of a rule's form that writes into place."""
    whole = not getattr(rule, "elementwise", True)

    def step(
        w: Array, dw: Array, config: Config, where: Array | None = None, factor: Array | None = None
    ) -> tuple[Array, ...]:
        xp, state, after = namespace(w), getattr(rule, "state", ()), config
        # a device takes it in as few launches as it can
        length = w.shape[0] if whole or backends.of(w).asynchronous else BLOCK
        for start in range(0, w.shape[0], max(length, 1)):
            block = slice(start, min(start + length, w.shape[0])), ...
            g = dw[block] if factor is None else scaled(dw[block], factor)
            old = {key: config[key][block] for key in state}
            next_w, after = rule(w[block], g, {**config, **old})
            for array, new in ((w, next_w), *((config[key], after[key]) for key in state)):
                array[block] = new if where is None else xp.where(where, new, array[block])
        config.update({key: value for key, value in after.items() if key not in state})
        return w, *(config[key] for key in state)

    return step


sgd = by_blocks(rules.sgd)
sgd_momentum = by_blocks(rules.sgd_momentum)
sgd_nesterov_momentum = by_blocks(rules.sgd_nesterov_momentum)
nesterov = by_blocks(rules.nesterov)
rmsprop = by_blocks(rules.rmsprop)
adam = by_blocks(rules.adam)
adamw = by_blocks(rules.adamw)
lion = by_blocks(rules.lion)
muon = by_blocks(rules.muon)
