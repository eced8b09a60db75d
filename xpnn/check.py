"""Self-check of an installation: published values, numerical gradients and agreement between backends."""

import json
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np

from xpnn import layers, optim
from xpnn.backend import Array, Backend, get, to_numpy
from xpnn.gradient_check import eval_numerical_gradient, eval_numerical_gradient_array, rel_error
from xpnn.models import FullyConnectedNet
from xpnn.optim import Optimizer

# The published values carry 8 decimals: half a unit of the last is the most a right float64 result may differ, and
# in float32 the result's own rounding comes on top; relative for numbers above 1.
ROUNDING = {"float64": 5.001e-9, "float32": 5.001e-9 + 4 * float(np.finfo(np.float32).eps)}
GRADIENT = 1e-7  # relative error of a numerical against an analytic gradient, in float64
PARITY = 1e-5  # relative difference of losses between backends, in float32


class Result(NamedTuple):
    """One check on one backend: its error must not exceed the limit."""

    check: str
    error: float
    limit: float
    message: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.limit  # False for NaN


def run(backend: Backend) -> Iterator[Result]:
    """Run every check on one backend."""
    checks: list[tuple[str, float, Callable[[], float]]] = [
        *_reference_checks(backend),
        *_gradient_checks(backend),
        ("parity with NumPy", PARITY, lambda: _parity(backend)),
    ]
    for name, limit, measure in checks:
        try:
            yield Result(name, measure(), limit)
        except Exception as error:  # whatever goes wrong on a backend is this check's result
            yield Result(name, float("nan"), limit, f"{type(error).__name__}: {error}")


def reference_values() -> dict[str, Any]:
    """Return the course's published inputs and results."""
    return json.loads(files("xpnn").joinpath("reference.json").read_text())


def _reference_checks(backend: Backend) -> Iterator[tuple[str, float, Callable[[], float]]]:
    for name, case in reference_values().items():
        for dtype, limit in ROUNDING.items():

            def measure(name: str = name, case: Any = case, dtype: str = dtype) -> float:
                results = _reference_results(name, case, backend, dtype)
                return max(float(np.max(np.abs(to_numpy(r) - e) / np.maximum(np.abs(e), 1))) for r, e in results)

            yield f"{name}, {dtype}", limit, measure


def _reference_results(name: str, case: Any, backend: Backend, dtype: str) -> list[tuple[Array, np.ndarray]]:
    """Pairs of what `name` computes from the published inputs, and what was published."""
    inputs = {
        key: backend.asarray(np.linspace(i["start"], i["stop"], i["num"]).reshape(i["shape"]), dtype)
        for key, i in case["inputs"].items()
    }
    expected = {key: np.asarray(value) for key, value in case["expected"].items()}
    if name in optim.RULES:
        config = {k: inputs[v[1:-1]] if isinstance(v, str) else v for k, v in case["params"]["config"].items()}
        next_w, config = optim.RULES[name](inputs["w"], inputs["dw"], config)
        return [(next_w if key == "next_w" else config[key], value) for key, value in expected.items()]
    out, _ = getattr(layers, name)(*inputs.values())
    return [(out, expected["out"])]


def _gradient_checks(backend: Backend) -> Iterator[tuple[str, float, Callable[[], float]]]:
    rng = np.random.default_rng(0)

    def array(*shape: int) -> Array:
        return backend.asarray(rng.standard_normal(shape))

    def pair(forward: Callable[..., Any], backward: Callable[..., Any], inputs: list[Array], *rest: Any) -> float:
        """The largest error of a layer's gradients, each input in turn perturbed."""
        out, cache = forward(*inputs, *rest)
        dout = array(*out.shape)
        grads = backward(dout, cache)
        grads = grads if isinstance(grads, tuple) else (grads,)
        return max(
            rel_error(eval_numerical_gradient_array(lambda _: forward(*inputs, *rest)[0], x, dout), grad)
            for x, grad in zip(inputs, grads, strict=True)
        )

    def loss(function: Callable[..., Any]) -> float:
        x, y = array(4, 5), backend.asarray(np.array([0, 3, 1, 4]))
        return rel_error(eval_numerical_gradient(lambda x: function(x, y)[0], x, verbose=False), function(x, y)[1])

    def net() -> float:
        model = FullyConnectedNet(
            [5, 4],
            6,
            3,
            dropout=0.25,
            use_batchnorm=True,
            reg=0.3,
            weight_scale=0.5,
            dtype="float64",
            seed=1,
            backend=backend,
        )
        x, y = array(4, 6), backend.asarray(np.array([0, 2, 1, 1]))
        _, grads = model.loss(x, y)
        return max(
            # A bias before batch norm has no effect: both gradients are rounding errors around zero.
            float(np.max(np.abs(to_numpy(n) - to_numpy(grads[p])))) if p in ("b1", "b2") else rel_error(n, grads[p])
            for p, w in model.params.items()
            for n in [eval_numerical_gradient(lambda _: model.loss(x, y)[0], w, verbose=False)]
        )

    bn_train, bn_test = (
        {"mode": m, "running_mean": array(3), "running_var": array(3) ** 2 + 1} for m in ("train", "test")
    )
    batchnorm = layers.batchnorm_forward, layers.batchnorm_backward
    checks: dict[str, Callable[[], float]] = {
        "affine": lambda: pair(layers.affine_forward, layers.affine_backward, [array(3, 2, 2), array(4, 3), array(3)]),
        "relu": lambda: pair(layers.relu_forward, layers.relu_backward, [array(4, 5)]),
        "batchnorm": lambda: pair(*batchnorm, [array(5, 3), array(3), array(3)], bn_train),
        "batchnorm in test mode": lambda: pair(*batchnorm, [array(5, 3), array(3), array(3)], bn_test),
        "dropout": lambda: pair(
            layers.dropout_forward,
            layers.dropout_backward,
            [array(4, 5)],
            {"p": 0.4, "mode": "train", "seed": 7},
        ),
        "softmax_loss": lambda: loss(layers.softmax_loss),
        "svm_loss": lambda: loss(layers.svm_loss),
        "batch norm, dropout net": net,
    }
    for name, measure in checks.items():
        yield f"gradient of {name}", GRADIENT, measure


def _parity(backend: Backend) -> float:
    """The largest relative difference of a training run's losses from NumPy's."""
    ours, numpys = (_losses(b) for b in (backend, get("numpy")))
    return float(np.max(np.abs(ours - numpys) / np.abs(numpys)))


def _losses(backend: Backend, steps: int = 20) -> np.ndarray:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((32, 20)).astype(np.float32), rng.integers(0, 5, 32)
    model = FullyConnectedNet(
        [30, 20], 20, 5, dropout=0.25, use_batchnorm=True, weight_scale=None, backend=backend, rng=0
    )
    optimizer = Optimizer(model.params, "adam")
    losses = []
    for _ in range(steps):
        loss, grads = model.loss(backend.asarray(X), backend.asarray(y))
        optimizer.step(grads)
        losses.append(float(loss))
    return np.array(losses)
