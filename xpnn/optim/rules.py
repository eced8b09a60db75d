"""Update rules: pure functions ``rule(w, dw, config) -> (next_w, config)``.

Most rules treat every number by itself, so they work on one parameter or on a buffer that holds all of them;
one that does not, such as `muon`, has ``elementwise = False``. `config` holds a rule's settings and its state;
what is missing is filled in, state with zeros like w, and the same dict, updated, is returned. Neither w nor dw
is changed.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

from xpnn import backend as backends
from xpnn.backend import Array, dtype_name, namespace, one_kind
from xpnn.errors import SettingError
from xpnn.kernels import updates
from xpnn.layers.precision import HALVES, narrowed
from xpnn.optim.norms import norm, scaled
from xpnn.products import product, product_sum
from xpnn.recording import varying

Config = dict[str, Any]
Rule = Callable[..., tuple[Array, Config]]

RULES: dict[str, Rule] = {}


def update_rule(
    *state: str, elementwise: bool = True, min_ndim: int = 0, recordable: bool = False, **defaults: float | str
) -> Callable[[Rule], Rule]:
    """Register a rule under its name, with its state's names and its settings' defaults.

    Parameters
    ----------
    *state : str
        The arrays of w's shape that it keeps in its config.
    elementwise : bool
        Whether it treats every number by itself.
    min_ndim : int
        How many dimensions w must have at least.
    recordable : bool
        Whether a device can record the rule itself: the numbers that differ from step to step are `varying`.
    **defaults : float or str
        Its settings; one whose default is an int is a whole number, one whose default is empty a half-precision dtype.
    """

    def register(step: Rule) -> Rule:
        @functools.wraps(step)
        def rule(w: Array, dw: Array, config: Config | None = None) -> tuple[Array, Config]:
            xp = one_kind(step.__name__, w=w, dw=dw)
            if w.shape != dw.shape:
                raise ValueError(
                    f"{step.__name__}: expected w and dw of one shape; received {tuple(w.shape)} and {tuple(dw.shape)}"
                )
            if w.ndim < min_ndim:
                raise ValueError(
                    f"{step.__name__}: expected w of at least {min_ndim} dimensions; received {tuple(w.shape)}"
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
        rule.elementwise, rule.min_ndim = elementwise, min_ndim  # type: ignore[attr-defined]
        rule.recordable = recordable  # type: ignore[attr-defined]
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


@update_rule("velocity", learning_rate=1e-2, momentum=0.9, weight_decay=0.0)
def nesterov(w: Array, dw: Array, config: Config) -> tuple[Array, Config]:
    """SGD with Nesterov momentum and weight decay: ``g = dw + wd w``; ``v = mu v + g``; ``w - lr (g + mu v)``.

    At a constant rate, and without decay, these are the steps of `sgd_nesterov_momentum`. There the velocity holds
    gradients times the rate of their own step; here it holds gradients alone, so that a change of the rate
    rescales what has gathered at once. Recipes with a schedule usually mean this form.

    Source: torch.optim.SGD with ``nesterov=True``, after Sutskever et al., "On the importance of initialization
    and momentum in deep learning", ICML 2013.
    """
    mu, wd = config["momentum"], config["weight_decay"]
    g = dw + wd * w if wd else dw
    config["velocity"] = v = mu * config["velocity"] + g
    return w - config["learning_rate"] * (g + mu * v), config


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
    return w - _adam_step(dw, config), config


@update_rule("v", "a", learning_rate=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=1e-2, t=0)
def adamw(w: Array, dw: Array, config: Config) -> tuple[Array, Config]:
    """Adam with decoupled weight decay: ``w = (1 - lr wd) w``, then the step of `adam`.

    Source: Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019; the decay is scaled by the
    rate, as in torch.optim.AdamW.
    """
    return _decayed(w, config) - _adam_step(dw, config), config


def _adam_step(dw: Array, config: Config) -> Array:
    """What Adam subtracts; counts the step and updates the moments."""
    xp, b1, b2 = namespace(dw), config["beta1"], config["beta2"]
    config["t"] = t = config["t"] + 1
    config["v"] = v = b1 * config["v"] + (1 - b1) * dw
    config["a"] = a = b2 * config["a"] + (1 - b2) * (dw * dw)
    step = config["learning_rate"] / (1 - b1**t)
    return step * v / (xp.sqrt(a / (1 - b2**t)) + config["epsilon"])


def _decayed(w: Array, config: Config) -> Array:
    """``(1 - lr wd) w``."""
    wd = config["weight_decay"]
    return (1 - config["learning_rate"] * wd) * w if wd else w


@update_rule("v", learning_rate=1e-4, beta1=0.9, beta2=0.99, weight_decay=0.0)
def lion(w: Array, dw: Array, config: Config) -> tuple[Array, Config]:
    """Lion, a step of one size for every weight: ``w = (1 - lr wd) w``; ``w - lr sign(b1 v + (1 - b1) dw)``.

    Only then ``v = b2 v + (1 - b2) dw``.

    Source: Chen et al., "Symbolic discovery of optimization algorithms", NeurIPS 2023, algorithm 2.
    """
    xp, b1, b2, v = namespace(w), config["beta1"], config["beta2"], config["v"]
    direction = xp.sign(b1 * v + (1 - b1) * dw)
    config["v"] = b2 * v + (1 - b2) * dw
    return _decayed(w, config) - config["learning_rate"] * direction, config


@update_rule(
    "velocity",
    elementwise=False,
    min_ndim=2,
    recordable=True,
    learning_rate=2e-2,
    momentum=0.95,
    weight_decay=0.0,
    newton_schulz_steps=5,
    newton_schulz_dtype="",
    normalize_weights=0,
)
def muon(w: Array, dw: Array, config: Config) -> tuple[Array, Config]:
    """Muon, Nesterov momentum made orthogonal: ``v = mu v + dw``; ``w - lr s O(dw + mu v)``.

    ``O`` is `newton_schulz` of the step as a matrix, w's first axis against all others, with products in
    `newton_schulz_dtype`. ``s = sqrt(max(1, outputs / inputs))``, where a matrix (D, M) has D inputs and M outputs, and
    filters (F, C, KH, KW) have C KH KW and F. w first shrinks to ``(1 - lr wd) w``. With `normalize_weights`, w is
    scaled to ``||w|| = sqrt(outputs)`` before that, and ``s = 1``.

    Raises
    ------
    ValueError
        For w of fewer than two dimensions: biases and scales need another rule.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; with
    `normalize_weights`, Jordan's airbench94_muon.py.
    """
    mu, rate, kept = varying(lambda: updates.muon(config, w.shape), 3, dtype_name(w.dtype))
    config["velocity"] = v = mu * config["velocity"] + dw
    xp = namespace(w)
    step = xp.reshape(dw + mu * v, (w.shape[0], math.prod(w.shape[1:])))
    update = newton_schulz(step, config["newton_schulz_steps"], config["newton_schulz_dtype"])
    if config["normalize_weights"]:
        _, outputs = updates.fans(w.shape)
        w = _of_norm(w, math.sqrt(outputs))
    return (kept * w if config["weight_decay"] else w) - rate * xp.reshape(update, w.shape), config


def newton_schulz(g: Array, steps: int = 5, dtype: str = "") -> Array:
    """Make a matrix nearly orthogonal: ``U S Vᵀ`` becomes ``U S' Vᵀ`` with S' between about 0.7 and 1.2.

    ``x = g / ||g||``; then each step is ``x = a x + (b x xᵀ + c (x xᵀ)²) x`` with a, b and c = 3.4445, -4.7750 and
    2.0315, chosen to lift small singular values fast rather than to converge.

    Parameters
    ----------
    g : array (R, C)
    steps : int
    dtype : str
        That of x and of the products: ``"float16"`` or ``"bfloat16"``, as in the source; g's own where it is empty.

    Returns
    -------
    x : array (R, C)
        In g's dtype. Zeros for zeros.

    Raises
    ------
    TypeError, ValueError
        When g holds no floating-point numbers, or is no matrix.
    SettingError
        For another dtype, or one that g's backend does not have.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
    """
    one_kind("newton_schulz", g=g)
    if g.ndim != 2:
        raise ValueError(f"newton_schulz: expected g (R, C); received {tuple(g.shape)}")
    check_half("newton_schulz", "dtype", dtype)
    x = scaled(g, 1 / (norm(g) + 1e-7), backends.of(g).dtype(dtype) if dtype else g.dtype)
    return narrowed(updates.orthogonalized(x, steps, product, product_sum), g.dtype)


def check_half(where: str, name: str, dtype: Any) -> str:
    """Return the name of a half-precision dtype, or the empty text that stands for none; raise SettingError else."""
    if not isinstance(dtype, str) or dtype not in ("", *HALVES):
        expected = f"{name} to be one of {', '.join(HALVES)}, or '' for none of its own"
        raise SettingError(f"{where}: expected {expected}; received {dtype!r:.60}")
    return dtype


def _of_norm(w: Array, size: float) -> Array:
    """Scale w to a Euclidean norm; zeros stay zeros."""
    xp, length = namespace(w), norm(w)
    return scaled(w, size / xp.where(length > 0, length, xp.ones_like(length)))
