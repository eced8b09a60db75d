"""Training by the kernels goes where the definitions go."""

import numpy as np
import pytest

from xpnn import Model, kernels
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
