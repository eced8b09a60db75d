"""Batch, layer, group and root-mean-square normalization against PyTorch, over random shapes and memory layouts."""

import numpy as np
import pytest
from oracle_layers import LAYOUTS, assert_equal_layers, draw, give_parameters, laid_out
from oracle_torch import torch

from oracles import EPS
from xpnn.layers import BatchNorm, GroupNorm, LayerNorm, RMSNorm


def tolerance(terms, dtype):
    """Statistics and gradients are sums of so many products, mostly near 1; what divides them is above 1/4."""
    return terms * 4 * EPS[dtype]


def random_images(seed):
    rng = np.random.default_rng(seed)
    return (int(rng.integers(2, 6)), int(rng.integers(1, 7)), *map(int, rng.integers(3, 8, 2)))


def settings_of(seed):
    rng = np.random.default_rng(50 + seed)
    return float(rng.choice([1e-5, 1e-3, 0.1])), float(rng.uniform(0.1, 0.9))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(6))
def test_batch_normalization_of_images(kind, dtype, seed, layout, train):
    shape, (eps, momentum) = random_images(seed), settings_of(seed)
    layer = BatchNorm(eps=eps, momentum=1.0 - momentum, unbiased=True)
    module = torch.nn.BatchNorm2d(shape[1], eps, momentum)
    module = give_parameters(kind, layer, module, shape[1:], dtype, seed)
    x, dout = draw(100 + seed, shape, shape, dtype=dtype)
    atol = tolerance(shape[0] * shape[2] * shape[3], dtype)
    assert_equal_layers(kind, layer, module, x, dout, atol, train=train, layout=layout)
    for name in ("running_mean", "running_var"):
        kind.assert_close(layer.state[name], getattr(module, name).numpy(), atol=atol)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_batch_normalization_of_vectors(kind, dtype, seed, train):
    (d, n), (eps, momentum) = np.random.default_rng(seed).integers([1, 12], [7, 40]), settings_of(seed)
    layer, module = BatchNorm(eps=eps, momentum=1.0 - momentum, unbiased=True), torch.nn.BatchNorm1d(d, eps, momentum)
    module = give_parameters(kind, layer, module, (d,), dtype, seed)
    x, dout = draw(100 + seed, (n, d), (n, d), dtype=dtype)
    assert_equal_layers(kind, layer, module, x, dout, tolerance(n, dtype), train=train)
    for name in ("running_mean", "running_var"):
        kind.assert_close(layer.state[name], getattr(module, name).numpy(), atol=tolerance(n, dtype))


def test_many_batches_leave_the_running_statistics_of_pytorch(kind, dtype):
    layer, module = BatchNorm(unbiased=True), torch.nn.BatchNorm2d(3)
    module = give_parameters(kind, layer, module, (3, 4, 4), dtype, 0)
    for seed in range(20):
        (x,) = draw(seed, (5, 3, 4, 4), dtype=dtype)
        layer.forward(kind(x), train=True)
        module(torch.from_numpy(x))
    for name in ("running_mean", "running_var"):
        kind.assert_close(layer.state[name], getattr(module, name).numpy(), atol=tolerance(80, dtype))


@pytest.mark.parametrize("seed", range(3))
def test_the_biased_running_variance(kind, dtype, seed):
    shape = random_images(seed)
    (x,) = draw(seed, shape, dtype=dtype)
    layer, module = BatchNorm(momentum=0.0), torch.nn.BatchNorm2d(shape[1])
    give_parameters(kind, layer, module, shape[1:], dtype, seed)
    layer.forward(kind(x), train=True)
    expected = torch.from_numpy(x).var((0, 2, 3), correction=0).numpy()
    kind.assert_close(layer.state["running_var"], expected, atol=tolerance(x[:, 0].size, dtype))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("learned", [{"scale": False}, {"center": False}, {"scale": False, "center": False}])
def test_batch_normalization_that_is_partly_frozen(kind, dtype, learned, train):
    layer, module = BatchNorm(**learned, unbiased=True), torch.nn.BatchNorm2d(3)
    module = give_parameters(kind, layer, module, (3, 5, 4), dtype, 1)
    x, dout = draw(2, (4, 3, 5, 4), (4, 3, 5, 4), dtype=dtype)
    assert_equal_layers(kind, layer, module, x, dout, tolerance(80, dtype), train=train)


def test_many_pixels_in_float32_are_as_near_the_truth_as_pytorch(kind):
    shape = (64, 3, 32, 32)
    x, dout = draw(0, shape, shape, dtype="float32")
    x += 10.0
    layer, module = BatchNorm(momentum=0.0, unbiased=True), torch.nn.BatchNorm2d(3, momentum=1.0)
    module = give_parameters(kind, layer, module, shape[1:], "float32", 0).double()
    module(torch.from_numpy(x).double()).backward(torch.from_numpy(dout).double())
    _, cache = layer.forward(laid_out(kind, x, "channels last"), train=True)
    _, grads = layer.backward(laid_out(kind, dout, "channels last"), cache)
    # 256 numbers are added at a time, and their 256 sums: roundings partly cancel, a sixteenth of 512 of them remain
    kind.assert_close(layer.state["running_mean"], module.running_mean.numpy(), rtol=32 * EPS["float32"])
    kind.assert_close(layer.state["running_var"], module.running_var.numpy(), rtol=32 * EPS["float32"])
    # dout has both signs: its sum is small beside its terms, one rounding of all of which is allowed
    size = np.abs(dout).sum((0, 2, 3)).max()
    kind.assert_close(grads["beta"], module.bias.grad.numpy(), atol=EPS["float32"] * size)


@pytest.mark.parametrize("seed", range(6))
def test_layer_normalization(kind, dtype, seed):
    rng = np.random.default_rng(seed)
    shape = (*map(int, rng.integers(1, 6, rng.integers(1, 4))), int(rng.integers(10, 40)))
    eps, _ = settings_of(seed)
    layer, module = LayerNorm(eps=eps), torch.nn.LayerNorm(shape[-1], eps)
    module = give_parameters(kind, layer, module, shape[1:], dtype, seed)
    x, dout = draw(100 + seed, shape, shape, dtype=dtype)
    terms = max(shape[-1], x.size // shape[-1])
    assert_equal_layers(kind, layer, module, x, dout, tolerance(terms, dtype))


@pytest.mark.parametrize("seed", range(6))
def test_root_mean_square_normalization(kind, dtype, seed):
    rng = np.random.default_rng(seed)
    shape = (*map(int, rng.integers(1, 6, rng.integers(1, 4))), int(rng.integers(5, 40)))
    eps, _ = settings_of(seed)
    layer, module = RMSNorm(eps=eps), torch.nn.RMSNorm(shape[-1], eps)
    module = give_parameters(kind, layer, module, shape[1:], dtype, seed)
    x, dout = draw(100 + seed, shape, shape, dtype=dtype)
    terms = max(shape[-1], x.size // shape[-1])
    assert_equal_layers(kind, layer, module, x, dout, tolerance(terms, dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(6))
def test_group_normalization(kind, dtype, seed, layout):
    rng = np.random.default_rng(seed)
    groups = int(rng.integers(1, 5))
    n, _, h, w = random_images(seed)
    shape = (n, groups * int(rng.integers(1, 4)), h, w)
    eps, _ = settings_of(seed)
    layer, module = GroupNorm(groups, eps=eps), torch.nn.GroupNorm(groups, shape[1], eps)
    module = give_parameters(kind, layer, module, shape[1:], dtype, seed)
    x, dout = draw(100 + seed, shape, shape, dtype=dtype)
    terms = h * w * max(n, shape[1] // groups)
    assert_equal_layers(kind, layer, module, x, dout, tolerance(terms, dtype), layout=layout)
