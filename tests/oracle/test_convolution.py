"""Convolution and pooling against PyTorch, over random shapes, strides, paddings and memory layouts."""

import numpy as np
import pytest
from oracle_layers import LAYOUTS, laid_out
from oracle_torch import torch

from oracles import EPS
from xpnn.layers import (
    avg_pool_backward,
    avg_pool_forward,
    conv_backward,
    conv_forward,
    global_avg_pool_backward,
    global_avg_pool_forward,
    max_pool_backward,
    max_pool_forward,
)


def random_convolution(seed, dtype):
    """Arrays and settings; every number is drawn, sizes are such that a window fits."""
    rng = np.random.default_rng(seed)
    groups = int(rng.integers(1, 4))
    n, c, f = rng.integers(1, 5), groups * rng.integers(1, 5), groups * rng.integers(1, 5)
    kernel, stride, pad, dilation = (rng.integers(low, high, 2) for low, high in ((1, 5), (1, 4), (0, 4), (1, 3)))
    image = np.maximum(dilation * (kernel - 1) + 1 - 2 * pad, 1) + rng.integers(0, 7, 2)
    draw = lambda *shape: rng.standard_normal(shape).astype(dtype)  # noqa: E731
    settings = {key: tuple(map(int, v)) for key, v in (("stride", stride), ("pad", pad), ("dilation", dilation))}
    return draw(n, c, *image), draw(f, c // groups, *kernel), draw(f), settings | {"groups": groups}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(30))
def test_convolution(kind, dtype, seed, layout):
    x, w, b, param = random_convolution(seed, dtype)
    bias = b if seed % 3 else None
    tx, tw, tb = (torch.from_numpy(a).requires_grad_() for a in (x, w, b))
    expected = torch.nn.functional.conv2d(
        tx, tw, tb if seed % 3 else None, param["stride"], param["pad"], param["dilation"], param["groups"]
    )
    out, cache = conv_forward(laid_out(kind, x, layout), kind(w), None if bias is None else kind(bias), param)
    kind.check(out, dtype, tuple(expected.shape))
    # The sums have one product for each number of a filter, those of dw one for each number of an output channel;
    # with numbers below 5, products stay below 25 and mostly near 1.
    kind.assert_close(out, expected.detach().numpy(), atol=w[0].size * 5 * EPS[dtype])
    dout = np.random.default_rng(100 + seed).standard_normal(expected.shape).astype(dtype)
    expected.backward(torch.from_numpy(dout))
    dx, dw, db = conv_backward(laid_out(kind, dout, layout), cache)
    kind.assert_close(dx, tx.grad.numpy(), atol=w.size * 5 * EPS[dtype])
    kind.assert_close(dw, tw.grad.numpy(), atol=(dout[:, 0].size + 4) * 5 * EPS[dtype])
    if bias is None:
        assert db is None
    else:
        kind.assert_close(db, tb.grad.numpy(), atol=(dout[:, 0].size + 4) * 5 * EPS[dtype])


def random_pool(seed, dtype):
    rng = np.random.default_rng(seed)
    size, stride = rng.integers(1, 5, 2), rng.integers(1, 5, 2)
    image = size + rng.integers(0, 8, 2)
    # few different numbers, so that windows have ties
    x = rng.integers(0, 4, (rng.integers(1, 4), rng.integers(1, 5), *image)).astype(dtype)
    size, stride = (tuple(map(int, pair)) for pair in (size, stride))
    return x, size, stride, {"pool_height": size[0], "pool_width": size[1], "stride": stride}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(20))
def test_max_pooling(kind, dtype, seed, layout):
    x, size, stride, param = random_pool(seed, dtype)
    tx = torch.from_numpy(x).requires_grad_()
    expected = torch.nn.functional.max_pool2d(tx, size, stride)
    out, cache = max_pool_forward(laid_out(kind, x, layout), param)
    kind.check(out, dtype)
    kind.assert_close(out, expected.detach().numpy())
    dout = np.random.default_rng(seed).standard_normal(expected.shape).astype(dtype)
    expected.backward(torch.from_numpy(dout))
    # a number is in up to 16 windows
    kind.assert_close(max_pool_backward(laid_out(kind, dout, layout), cache), tx.grad.numpy(), atol=16 * 4 * EPS[dtype])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(10))
def test_average_pooling(kind, dtype, seed, layout):
    x, size, stride, param = random_pool(seed, dtype)
    tx = torch.from_numpy(x).requires_grad_()
    expected = torch.nn.functional.avg_pool2d(tx, size, stride)
    out, cache = avg_pool_forward(laid_out(kind, x, layout), param)
    kind.assert_close(out, expected.detach().numpy(), atol=4 * EPS[dtype])
    dout = np.random.default_rng(seed).standard_normal(expected.shape).astype(dtype)
    expected.backward(torch.from_numpy(dout))
    kind.assert_close(avg_pool_backward(laid_out(kind, dout, layout), cache), tx.grad.numpy(), atol=16 * 4 * EPS[dtype])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(6))
def test_global_average_pooling(kind, dtype, seed, layout):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(rng.integers(1, 7, 4)).astype(dtype)
    tx = torch.from_numpy(x).requires_grad_()
    expected = torch.nn.functional.adaptive_avg_pool2d(tx, 1).flatten(1)
    out, cache = global_avg_pool_forward(laid_out(kind, x, layout))
    # each may round after every addition of up to 36 numbers, whose mean is of the order of 1
    kind.assert_close(out, expected.detach().numpy(), atol=x[0, 0].size * EPS[dtype])
    dout = rng.standard_normal(expected.shape).astype(dtype)
    expected.backward(torch.from_numpy(dout))
    # two roundings of numbers below 4
    kind.assert_close(global_avg_pool_backward(kind(dout), cache), tx.grad.numpy(), atol=2 * 4 * EPS[dtype])
