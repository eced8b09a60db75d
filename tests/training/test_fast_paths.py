"""Training by the kernels goes where the definitions go."""

from functools import partial

import numpy as np
import pytest

from xpnn import FullyConnectedNet, Model, ThreeLayerConvNet, kernels
from xpnn.layers import GELU, Affine, AvgPool, BatchNorm, Conv, Dropout, Flatten, Sequential
from xpnn.optim import Optimizer

STEPS = 100


@pytest.fixture
def switch(monkeypatch):
    """Choose between the kernels (1) and the definitions (0)."""

    def choose(fast):
        monkeypatch.setenv("XPNN_FAST", fast)
        kernels.fast_path.cache_clear()
        assert (kernels.fast_path("layers.convolution.correlate", "numpy") is None) == (fast == "0")

    yield choose
    monkeypatch.undo()
    kernels.fast_path.cache_clear()


def losses(dtype, rule, rate):
    # No ReLU and no maximum: where a number is within a rounding of their corners, the two would part for good.
    net = Sequential(
        *(Conv(24, 3, pad=1), BatchNorm(), GELU(), Conv(32, 3, pad=1, bias=False), AvgPool(2), GELU()),
        *(Conv(8, 3, stride=2), Flatten(), Affine(30), BatchNorm(), GELU(), Dropout(0.25), Affine(10)),
    )
    model = Model(net, (24, 10, 10), rng=0, dtype=dtype, backend="numpy")
    optimizer = Optimizer(model.params, rule, learning_rate=rate)
    rng = np.random.default_rng(0)
    images, labels, out = rng.standard_normal((200, 24, 10, 10)).astype(dtype), rng.integers(0, 10, 200), []
    for _ in range(STEPS):
        batch = rng.integers(0, 200, 20)
        loss, grads = model.loss(images[batch], labels[batch])
        optimizer.step(grads)
        out.append(float(loss))
    return np.array(out)


@pytest.mark.parametrize(("rule", "rate"), [("sgd_momentum", 0.03), ("rmsprop", 3e-3), ("adam", 3e-3)])
def test_a_hundred_losses_are_those_of_the_definitions(switch, dtype, rule, rate):
    switch("0")
    expected = losses(dtype, rule, rate)
    switch("1")
    received = losses(dtype, rule, rate)
    # A unit in the last place for each step; measured: a fifth of that.
    np.testing.assert_allclose(received, expected, rtol=STEPS * np.finfo(dtype).eps)
    assert received[-1] < 0.5 * received[0]


# The nets of the README's figures, at their own rate: what makes them, an example's shape, and how many steps of how
# many examples are taken in float64 and in float32.
NETS = {
    "4 x 500": (partial(FullyConnectedNet, [500] * 4), (3072,), 20, {"float64": 20, "float32": 10}),
    "5 x 100": (partial(FullyConnectedNet, [100] * 5), (3072,), 20, {"float64": 100, "float32": 40}),
    "5 x 100, batch norm, dropout 0.25": (
        partial(FullyConnectedNet, [100] * 5, use_batchnorm=True, dropout=0.25),
        (3072,),
        20,
        {"float64": 100, "float32": 100},
    ),
    "ThreeLayerConvNet": (ThreeLayerConvNet, (3, 32, 32), 10, {"float64": 20, "float32": 15}),
}


def losses_of(net, dtype, perturbed=None):
    """The losses of a net; given a seed, from weights each of which is one rounding off, up or down."""
    make, shape, size, steps = NETS[net]
    model, rng = make(rng=0, dtype=dtype, backend="numpy"), np.random.default_rng(0)
    if perturbed is not None:
        signs = np.sign(np.random.default_rng(perturbed).standard_normal(model.params.size))
        model.params.flat[...] *= (1 + np.finfo(dtype).eps * signs).astype(dtype)
    optimizer, buffer = Optimizer(model.params, "adam"), model.params.like()
    images, labels, out = rng.standard_normal((500, *shape), "float32").astype(dtype), rng.integers(0, 10, 500), []
    for _ in range(steps[dtype]):
        batch = rng.integers(0, 500, size)
        loss, grads = model.loss(images[batch], labels[batch], buffer)
        optimizer.step(grads)
        out.append(float(loss))
    return np.array(out)


@pytest.mark.parametrize("net", NETS)
def test_losses_of_the_nets_of_the_figures_are_those_of_the_definitions(switch, net):
    switch("0")
    expected = losses_of(net, "float64")
    switch("1")
    np.testing.assert_allclose(losses_of(net, "float64"), expected, rtol=1e-12)


@pytest.mark.parametrize("net", NETS)
def test_in_float32_they_part_from_the_definitions_as_these_do_from_themselves(switch, net):
    """ReLU and max pooling magnify roundings, so that a net parts from itself where its first weights are rounded."""
    switch("0")
    expected = losses_of(net, "float32")
    controls = [np.abs(losses_of(net, "float32", seed) / expected - 1) for seed in range(3)]
    switch("1")
    received = np.abs(losses_of(net, "float32") / expected - 1)
    roundings = 4 * np.finfo("float32").eps * np.arange(1, len(expected) + 1)
    drift = np.maximum.accumulate(np.max(controls, axis=0))
    assert (received <= roundings + 10 * drift).all()
