"""Update rules: pure functions ``rule(w, dw, config) -> (next_w, config)``.

A rule treats every number by itself, so it works on one parameter or on a buffer that holds all of them.
`config` holds its settings and its state; what is missing is filled in, state with zeros like w, and the
same dict, updated, is returned. Neither w nor dw is changed.
"""

import functools
from collections.abc import Callable
from typing import Any

from xpnn.backend import Array, namespace, one_kind

Config = dict[str, Any]
Rule = Callable[..., tuple[Array, Config]]

RULES: dict[str, Rule] = {}


def update_rule(*state: str, **defaults: float) -> Callable[[Rule], Rule]:
    """Register a rule under its name, with its state's names and its settings' defaults."""

    def register(step: Rule) -> Rule:
        @functools.wraps(step)
        def rule(w: Array, dw: Array, config: Config | None = None) -> tuple[Array, Config]:
            xp = one_kind(step.__name__, w=w, dw=dw)
            if w.shape != dw.shape:
                raise ValueError(
                    f"{step.__name__}: expected w and dw of one shape; received {tuple(w.shape)} and {tuple(dw.shape)}"
                )
            config = {} if config is None else config
            for name, default in defaults.items():
                # Python's numbers keep float32 arrays as they are; a NumPy float64 would promote them.
                config[name] = type(default)(config.get(name, default))
            for name in state:
                if config.get(name) is None:
                    config[name] = xp.zeros_like(w)
            return step(w, dw, config)

        rule.state, rule.defaults = state, defaults  # type: ignore[attr-defined]
        RULES[step.__name__] = rule
        return rule

    return register


@update_rule(learning_rate=1e-2)
def sgd(w: Array, dw: Array, config: Config) -> tuple[Array, Config]:
    """Stochastic gradient descent: ``w - lr dw``."""
    return w - config["learning_rate"] * dw, config


@update_rule("velocity", learning_rate=1e-2, momentum=0.9)
def sgd_momentum(w: Array, dw: Array, config: Config) -> tuple[Array, Config]:
    """SGD with momentum: ``v = mu v - lr dw``; ``w + v``.

    Source: Polyak, "Some methods of speeding up the convergence of iteration methods", 1964.
    """
    v = config["momentum"] * config["velocity"] - config["learning_rate"] * dw
    config["velocity"] = v
    return w + v, config


@update_rule("velocity", learning_rate=1e-2, momentum=0.9)
def sgd_nesterov_momentum(w: Array, dw: Array, config: Config) -> tuple[Array, Config]:
    """SGD with Nesterov momentum: ``v' = mu v - lr dw``; ``w + v' + mu (v' - v)``.

    Source: Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013.
    """
    mu, v = config["momentum"], config["velocity"]
    v_next = mu * v - config["learning_rate"] * dw
    config["velocity"] = v_next
    return w + v_next + mu * (v_next - v), config


@update_rule("a", learning_rate=1e-2, decay_rate=0.99, epsilon=1e-8)
def rmsprop(w: Array, dw: Array, config: Config) -> tuple[Array, Config]:
    """RMSProp: ``a = d a + (1 - d) dw²``; ``w - lr dw / (sqrt(a) + eps)``.

    Source: Tieleman and Hinton, "Lecture 6.5: RMSProp", Coursera 2012.
    """
    xp, d = namespace(w), config["decay_rate"]
    a = d * config["a"] + (1 - d) * (dw * dw)
    config["a"] = a
    return w - config["learning_rate"] * dw / (xp.sqrt(a) + config["epsilon"]), config


@update_rule("v", "a", learning_rate=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-8, t=0)
def adam(w: Array, dw: Array, config: Config) -> tuple[Array, Config]:
    """Adam: v and a are the first and the second moment, t counts the steps.

    ``t = t + 1``; ``v = b1 v + (1 - b1) dw``; ``a = b2 a + (1 - b2) dw²``;
    ``w - lr v / (1 - b1^t) / (sqrt(a / (1 - b2^t)) + eps)``.

    Source: Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015.
    """
    xp, b1, b2 = namespace(w), config["beta1"], config["beta2"]
    config["t"] = t = config["t"] + 1
    config["v"] = v = b1 * config["v"] + (1 - b1) * dw
    config["a"] = a = b2 * config["a"] + (1 - b2) * (dw * dw)
    step = config["learning_rate"] / (1 - b1**t)
    return w - step * v / (xp.sqrt(a / (1 - b2**t)) + config["epsilon"]), config
