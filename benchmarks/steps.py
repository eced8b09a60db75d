"""The nets that are timed, by xpnn and by others, and their training step on the CPU.

A step: gather a batch, loss and gradients, Adam; float32. The steps on a GPU are in gpu_steps.py.
"""

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BATCH, IMAGES, CLASSES = 100, 5000, 10
FULLY_CONNECTED = {"4 x 500": [500] * 4, "5 x 100": [100] * 5, "5 x 100, batch norm, dropout 0.25": [100] * 5}
NETS = [*FULLY_CONNECTED, "convnet", "airbench"]
Step = Callable[[], object]


def images(net: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (3072,) if net in FULLY_CONNECTED else (3, 32, 32)
    return rng.standard_normal((IMAGES, *shape), dtype=np.float32), rng.integers(0, CLASSES, IMAGES)


def products(net: str) -> Step | None:
    """The matrix products of forward and backward alone, written into place."""
    if net not in FULLY_CONNECTED:
        return None
    rng = np.random.default_rng(0)
    array = lambda *shape: rng.standard_normal(shape, dtype=np.float32)  # noqa: E731
    sizes = [3072, *FULLY_CONNECTED[net], CLASSES]
    layers = [(array(BATCH, d), array(d, m), array(BATCH, m)) for d, m in itertools.pairwise(sizes)]
    outs = [(np.empty_like(o), np.empty_like(w), np.empty_like(x)) for x, w, o in layers]

    def step() -> None:
        for i, ((x, w, o), (out, dw, dx)) in enumerate(zip(layers, outs, strict=True)):
            np.matmul(x, w, out=out)
            np.matmul(x.T, o, out=dw)
            if i > 0:
                np.matmul(o, w.T, out=dx)

    return step


def numpy(net: str) -> Step | None:
    """Plain NumPy, as students of the course write it."""
    if net not in ("4 x 500", "5 x 100"):
        return None
    X, y = images(net)
    rng = np.random.default_rng(0)
    sizes = [3072, *FULLY_CONNECTED[net], CLASSES]
    params = {}
    for i, (d, m) in enumerate(itertools.pairwise(sizes), 1):
        params[f"W{i}"], params[f"b{i}"] = rng.standard_normal((d, m), dtype=np.float32) * 0.01, np.zeros(m, np.float32)
    state = {name: {"v": np.zeros_like(w), "a": np.zeros_like(w), "t": 0} for name, w in params.items()}
    depth = len(sizes) - 1

    def step() -> None:
        batch = rng.integers(0, IMAGES, BATCH)
        x, labels, inputs = X[batch], y[batch], []
        for i in range(1, depth + 1):
            inputs.append(x)
            x = x @ params[f"W{i}"] + params[f"b{i}"]
            if i < depth:
                x = np.maximum(0, x)
        p = np.exp(x - x.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        dout, grads = p.copy(), {}
        dout[np.arange(BATCH), labels] -= 1
        dout /= BATCH
        for i in range(depth, 0, -1):
            grads[f"W{i}"], grads[f"b{i}"] = inputs[i - 1].T @ dout, dout.sum(axis=0)
            if i > 1:
                dout = (dout @ params[f"W{i}"].T) * (inputs[i - 1] > 0)
        for name, w in params.items():
            s = state[name]
            s["t"] += 1
            s["v"] = 0.9 * s["v"] + 0.1 * grads[name]
            s["a"] = 0.999 * s["a"] + 0.001 * grads[name] ** 2
            v, a = s["v"] / (1 - 0.9 ** s["t"]), s["a"] / (1 - 0.999 ** s["t"])
            params[name] = w - 1e-3 * v / (np.sqrt(a) + 1e-8)

    return step


def xpnn_model(net: str, **options: Any) -> Any:
    from xpnn import Airbench, FullyConnectedNet, ResNet9, ThreeLayerConvNet

    if net in FULLY_CONNECTED:
        options |= {"use_batchnorm": True, "dropout": 0.25} if "dropout" in net else {}
        return FullyConnectedNet(FULLY_CONNECTED[net], rng=0, **options)
    return {"convnet": ThreeLayerConvNet, "resnet9": ResNet9, "airbench": Airbench}[net](rng=0, **options)


def xpnn(net: str) -> Step:
    from xpnn.optim import Optimizer

    X, y = images(net)
    rng, model = np.random.default_rng(0), xpnn_model(net)
    optimizer, buffer = Optimizer(model.params, "adam"), model.params.like()

    def step() -> None:
        batch = rng.integers(0, IMAGES, BATCH)
        _, grads = model.loss(np.take(X, batch, axis=0), np.take(y, batch), buffer)
        optimizer.step(grads)

    return step


def torch_net(net: str) -> Any:
    from torch import nn

    if net not in FULLY_CONNECTED:
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "oracle"))
        import torch_nets

        if net != "convnet":
            return torch_nets.Airbench() if net == "airbench" else torch_nets.ResNet9()
        return torch_nets.ThreeLayerConvNet((3, 32, 32), 32, 7, 100, CLASSES, False)
    layers: list[Any] = []
    for d, h in itertools.pairwise([3072, *FULLY_CONNECTED[net]]):
        more = "dropout" in net
        layers += [nn.Linear(d, h), *[nn.BatchNorm1d(h)] * more, nn.ReLU(), *[nn.Dropout(0.25)] * more]
    return nn.Sequential(*layers, nn.Linear(FULLY_CONNECTED[net][-1], CLASSES))


def torch(net: str, compiled: bool = False) -> Step:
    import torch as t

    model = torch_net(net)
    optimizer = t.optim.Adam(model.parameters(), fused=True)
    X, y = map(t.from_numpy, images(net))
    if net not in FULLY_CONNECTED:  # the faster of its layouts on the CPU
        model, X = model.to(memory_format=t.channels_last), X.to(memory_format=t.channels_last)
    forward = t.compile(model) if compiled else model

    def step() -> None:
        batch = t.randint(IMAGES, (BATCH,))
        optimizer.zero_grad()
        t.nn.functional.cross_entropy(forward(X[batch]), y[batch]).backward()
        optimizer.step()

    return step


def torch_compiled(net: str) -> Step:
    return torch(net, compiled=True)


def jax(net: str) -> Step | None:
    """JAX, the whole step compiled, its buffers given away."""
    if net not in ("4 x 500", "5 x 100", "convnet"):
        return None
    import jax as j
    from jax import lax
    from jax import numpy as jnp

    rng = np.random.default_rng(0)
    sizes = [3072, *FULLY_CONNECTED[net], CLASSES] if net in FULLY_CONNECTED else [32 * 16 * 16, 100, CLASSES]
    params = [
        (jnp.asarray(rng.standard_normal((d, m)) * 0.01, jnp.float32), jnp.zeros(m))
        for d, m in itertools.pairwise(sizes)
    ]
    filters = jnp.asarray(rng.standard_normal((7, 7, 3, 32)) * 0.01, jnp.float32)
    params = {"affine": params} | ({"conv": (filters, jnp.zeros(32))} if net == "convnet" else {})
    X, y = images(net)
    if net == "convnet":
        X = np.ascontiguousarray(X.transpose(0, 2, 3, 1))
    X, y = jnp.asarray(X), jnp.asarray(y)

    def loss(params: Any, x: Any, labels: Any) -> Any:
        if "conv" in params:
            w, b = params["conv"]
            x = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + b
            x = lax.reduce_window(j.nn.relu(x), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
            x = x.reshape(len(x), -1)
        for i, (w, b) in enumerate(params["affine"]):
            x = (x if i == 0 else j.nn.relu(x)) @ w + b
        return -jnp.mean(jnp.take_along_axis(j.nn.log_softmax(x), labels[:, None], axis=1))

    def adam(w: Any, g: Any, v: Any, a: Any, t: Any) -> tuple[Any, Any, Any]:
        v, a = 0.9 * v + 0.1 * g, 0.999 * a + 0.001 * g * g
        return w - 1e-3 * v / (1 - 0.9**t) / (jnp.sqrt(a / (1 - 0.999**t)) + 1e-8), v, a

    def update(state: Any, batch: Any) -> Any:
        params, v, a, t = state
        grads = j.grad(loss)(params, X[batch], y[batch])
        leaves, tree = j.tree.flatten(params)
        new = [adam(*leaf, t) for leaf in zip(leaves, *(j.tree.leaves(s) for s in (grads, v, a)), strict=True)]
        return *(j.tree.unflatten(tree, part) for part in zip(*new, strict=True)), t + 1.0

    compiled = j.jit(update, donate_argnums=0)
    zeros = lambda: j.tree.map(jnp.zeros_like, params)  # noqa: E731
    state = [(params, zeros(), zeros(), 1.0)]

    def step() -> None:
        state[0] = compiled(state[0], rng.integers(0, IMAGES, BATCH))
        j.block_until_ready(state[0])

    return step


def xpnn_scores(net: str, count: int) -> Step:
    model, (X, _) = xpnn_model(net), images(net)
    return lambda: model.loss(X[:count])


def torch_scores(net: str, count: int) -> Step:
    import torch as t

    model, X = torch_net(net).eval(), t.from_numpy(images(net)[0])
    if net not in FULLY_CONNECTED:
        model, X = model.to(memory_format=t.channels_last), X.to(memory_format=t.channels_last)

    def scores() -> object:
        with t.inference_mode():
            return model(X[:count])

    return scores
