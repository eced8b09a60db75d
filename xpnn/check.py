"""Self-check of an installation: published values, numerical gradients and agreement between backends."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np

from xpnn import layers, optim
from xpnn.backend import Array, Backend, Shape, get, namespace, to_numpy
from xpnn.gradient_check import eval_numerical_gradient, eval_numerical_gradient_array, rel_error
from xpnn.models import FullyConnectedNet, Model, VisionTransformer
from xpnn.optim import Optimizer

Function = Callable[..., Any]

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
        *((f"parity with NumPy, {name}", PARITY, partial(_parity, backend, build)) for name, build in _NETS.items()),
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
    out, _ = getattr(layers, name)(*inputs.values(), *case["params"].values())
    return [(out, expected["out"])]


def _gradient_checks(backend: Backend) -> Iterator[tuple[str, float, Callable[[], float]]]:
    for name, (forward, backward, *shapes) in _pairs(backend).items():
        yield f"gradient of {name}", GRADIENT, partial(_pair_error, backend, forward, backward, shapes)
    for name, (function, y) in _losses(backend).items():
        yield f"gradient of {name}", GRADIENT, partial(_loss_error, backend, function, y)
    for name, build in _NETS.items():
        yield f"gradient of {name}", GRADIENT, partial(_net_error, backend, build)


def _pair_error(backend: Backend, forward: Function, backward: Function, shapes: Sequence[Shape]) -> float:
    """The largest error of a layer's gradients, each input in turn perturbed."""
    rng = np.random.default_rng(0)
    inputs = [backend.asarray(rng.standard_normal(shape)) for shape in shapes]
    out, cache = forward(*inputs)
    dout = backend.asarray(rng.standard_normal(out.shape))
    grads = backward(dout, cache)
    grads = grads if isinstance(grads, tuple) else (grads,)
    return max(
        rel_error(eval_numerical_gradient_array(lambda _: forward(*inputs)[0], x, dout), grad)
        for x, grad in zip(inputs, grads, strict=True)
    )


def _loss_error(backend: Backend, function: Function, y: Array) -> float:
    x = backend.asarray(np.random.default_rng(0).standard_normal((4, 5)))
    return rel_error(eval_numerical_gradient(lambda x: function(x, y)[0], x, verbose=False), function(x, y)[1])


def _net_error(backend: Backend, build: Callable[..., Model]) -> float:
    """The largest error of a net's gradients, relative to the largest number of them all.

    Some have no effect and are zero but for rounding: a bias before batch norm, the keys' bias in attention.
    """
    rng = np.random.default_rng(0)
    model = build(reg=0.3, dtype="float64", backend=backend)
    # Of size one: what normalizes small numbers bends so much that the numerical gradient errs.
    model.params.flat[...] = backend.asarray(rng.standard_normal(model.params.size))
    x = backend.asarray(rng.standard_normal((8, *model.input_shape)))
    y = backend.asarray(np.array([0, 2, 1, 1, 0, 1, 2, 2]))
    _, grads = model.loss(x, y)
    errors = [
        eval_numerical_gradient(lambda _: model.loss(x, y)[0], w, verbose=False) - grads[name]
        for name, w in model.params.items()
    ]
    largest = np.max(np.abs(to_numpy(grads.flat)))
    return float(max(np.max(np.abs(to_numpy(error))) for error in errors) / largest)


def _pairs(backend: Backend) -> dict[str, tuple[Any, ...]]:
    """Forward, backward and the shapes of what forward takes, for every kind of layer."""
    statistics = {"running_mean": backend.asarray([0.5, -1.0, 2.0]), "running_var": backend.asarray([1.0, 2.0, 0.5])}
    indices = backend.asarray([[0, 2, 2], [4, 2, 0]])
    conv = {"stride": (2, 1), "pad": (1, 2), "dilation": (1, 2), "groups": 2}
    pool = {"pool_height": 3, "pool_width": 2, "stride": (1, 2)}
    vector, channel = (3,), (1, 4, 1, 1)
    return {
        "affine": (layers.affine_forward, layers.affine_backward, (3, 2, 2), (4, 3), vector),
        "linear": (layers.linear_forward, layers.linear_backward, (2, 3, 4), (4, 3), vector),
        "conv": (_with(layers.conv_forward, conv), layers.conv_backward, (2, 4, 5, 4), (6, 2, 3, 2), (6,)),
        "max_pool": (_with(layers.max_pool_forward, pool), layers.max_pool_backward, (2, 3, 5, 4)),
        "avg_pool": (_with(layers.avg_pool_forward, pool), layers.avg_pool_backward, (2, 3, 5, 4)),
        "global_avg_pool": (layers.global_avg_pool_forward, layers.global_avg_pool_backward, (2, 3, 3, 2)),
        "relu": (layers.relu_forward, layers.relu_backward, (4, 5)),
        "leaky_relu": (layers.leaky_relu_forward, layers.leaky_relu_backward, (4, 5)),
        "sigmoid": (layers.sigmoid_forward, layers.sigmoid_backward, (4, 5)),
        "tanh": (layers.tanh_forward, layers.tanh_backward, (4, 5)),
        "silu": (layers.silu_forward, layers.silu_backward, (4, 5)),
        "gelu": (layers.gelu_forward, layers.gelu_backward, (4, 5)),
        "gelu by tanh": (_with(layers.gelu_forward, "tanh"), layers.gelu_backward, (4, 5)),
        "batchnorm": (
            _with(layers.batchnorm_forward, {"mode": "train"}),
            layers.batchnorm_backward,
            *((5, 3), vector, vector),
        ),
        "batchnorm in test mode": (
            _with(layers.batchnorm_forward, {"mode": "test", **statistics}),
            layers.batchnorm_backward,
            *((5, 3), vector, vector),
        ),
        "spatial_batchnorm": (
            _with(layers.spatial_batchnorm_forward, {"mode": "train"}),
            layers.spatial_batchnorm_backward,
            *((2, 3, 2, 2), vector, vector),
        ),
        "layernorm": (_with(layers.layernorm_forward, {}), layers.layernorm_backward, (2, 4, 3), vector, vector),
        "spatial_groupnorm": (
            _with(layers.spatial_groupnorm_forward, 2, {}),
            layers.spatial_groupnorm_backward,
            *((2, 4, 2, 3), channel, channel),
        ),
        "rmsnorm": (_with(layers.rmsnorm_forward, {}), layers.rmsnorm_backward, (2, 4, 3), vector),
        "dropout": (
            _with(layers.dropout_forward, {"p": 0.4, "mode": "train", "seed": 7}),
            layers.dropout_backward,
            (4, 5),
        ),
        "attention": (layers.attention_forward, layers.attention_backward, (2, 3, 4), (2, 5, 4), (2, 5, 3)),
        "multihead_attention": (
            _multihead_attention,
            _multihead_attention_backward,
            *((2, 3, 4), (4, 12), (4,), (4,), (4, 4), (4,)),
        ),
        "embedding": (lambda w: layers.embedding_forward(indices, w), layers.embedding_backward, (5, 3)),
        "patch_embedding": (
            layers.patch_embedding_forward,
            layers.patch_embedding_backward,
            *((2, 3, 4, 6), (5, 3, 2, 2), (5,)),
        ),
        "positional_embedding": (
            layers.positional_embedding_forward,
            layers.positional_embedding_backward,
            *((3, 2, 4), (2, 4)),
        ),
        "token_mean": (layers.token_mean_forward, layers.token_mean_backward, (2, 3, 4)),
        "flatten": (layers.flatten_forward, layers.flatten_backward, (2, 3, 2, 4)),
        "scale": (_with(layers.scale_forward, -0.7), layers.scale_backward, (4, 5)),
    }


def _multihead_attention(x: Array, w_qkv: Array, b_q: Array, b_v: Array, w_out: Array, b_out: Array) -> Any:
    """With a bias of zeros for the keys, which has no effect: relative to its gradient every rounding is large."""
    b_qkv = namespace(x).concat([b_q, 0.0 * b_q, b_v])
    return layers.multihead_attention_forward(x, w_qkv, b_qkv, w_out, b_out, num_heads=2)


def _multihead_attention_backward(dout: Array, cache: Any) -> tuple[Array, ...]:
    dx, dw_qkv, db_qkv, *out_grads = layers.multihead_attention_backward(dout, cache)
    d = db_qkv.shape[0] // 3
    return dx, dw_qkv, db_qkv[:d], db_qkv[2 * d :], *out_grads


def _losses(backend: Backend) -> dict[str, tuple[Function, Array]]:
    """Losses and their targets."""
    labels = backend.asarray(np.array([0, 3, 1, 4]))
    shares = backend.asarray(np.linspace(0.1, 0.9, 20).reshape(4, 5))
    smoothed = partial(layers.softmax_loss, label_smoothing=0.2, reduction="sum")
    return {
        "softmax_loss": (layers.softmax_loss, labels),
        "softmax_loss, smoothed": (smoothed, labels),
        "svm_loss": (layers.svm_loss, labels),
        "mse_loss": (layers.mse_loss, shares),
        "binary_cross_entropy_loss": (layers.binary_cross_entropy_loss, shares),
    }


def _with(forward: Function, *settings: Any) -> Function:
    """A forward pass with what follows its arrays."""
    return lambda *arrays: forward(*arrays, *settings)


def _residual_net(**options: Any) -> Model:
    # Smooth from end to end, since a kink between the two points would be an error of the numerical gradient.
    net = layers.Sequential(
        layers.Conv(4, 3, pad=1, bias=False),
        layers.BatchNorm(),
        layers.GELU(),
        layers.Residual(layers.Conv(4, 3, pad=1), layers.GELU(), layers.Conv(4, 1)),
        layers.AvgPool(2),
        layers.Flatten(),
        layers.Linear(3),
    )
    return Model(net, (2, 4, 4), rng=1, **options)


_NETS: dict[str, Callable[..., Model]] = {
    "batch norm, dropout net": lambda **options: FullyConnectedNet(
        [5, 4], 6, 3, dropout=0.25, use_batchnorm=True, weight_scale=None, seed=1, **options
    ),
    "residual conv net": _residual_net,
    "vision transformer": lambda **options: VisionTransformer(
        2, 4, 1, 2, mlp_dim=6, num_classes=3, input_dim=(2, 4, 4), rng=1, **options
    ),
}


def _parity(backend: Backend, build: Callable[..., Model]) -> float:
    """The largest relative difference of a training run's losses from NumPy's."""
    ours, numpys = (_training(b, build) for b in (backend, get("numpy")))
    return float(np.max(np.abs(ours - numpys) / np.abs(numpys)))


def _training(backend: Backend, build: Callable[..., Model], steps: int = 20) -> np.ndarray:
    """The losses of a training run."""
    rng = np.random.default_rng(0)
    model = build(backend=backend)
    X, y = rng.standard_normal((32, *model.input_shape)).astype(np.float32), rng.integers(0, 3, 32)
    optimizer = Optimizer(model.params, "adam")
    losses = []
    for _ in range(steps):
        loss, grads = model.loss(backend.asarray(X), backend.asarray(y))
        optimizer.step(grads)
        losses.append(float(loss))
    return np.array(losses)
