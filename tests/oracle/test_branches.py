"""Branches, and layers that only scale or reshape, against PyTorch, over random shapes and memory layouts."""

from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
from oracle_layers import LAYOUTS, assert_equal_layers, draw, give_parameters
from oracle_torch import torch
from torch import nn

from oracles import EPS
from xpnn.layers import GELU, Concat, Conv, Flatten, Identity, Parallel, Residual, Scale, Sequential, Standardize
from xpnn.models import Model

SEEDS = range(6)


def random_shape(seed, layout):
    """Of a batch: images, where the layout matters."""
    rng = np.random.default_rng(seed)
    ndim = 4 if layout == "channels last" else rng.integers(2, 6)
    return tuple(map(int, rng.integers(1, 7, ndim)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_scale(kind, dtype, seed, layout):
    shape, factor = random_shape(seed, layout), float(np.random.default_rng(50 + seed).standard_normal())
    x, dout = draw(100 + seed, shape, shape, dtype=dtype)
    times = lambda tx: factor * tx  # noqa: E731
    # one rounding of numbers below 5 on either side, of the factor in float32 another
    atol = 4 * 5 * max(1.0, abs(factor)) * EPS[dtype]
    assert_equal_layers(kind, Scale(factor), nn.Identity(), x, dout, atol, layout=layout, call=times)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_flatten(kind, dtype, seed, layout):
    shape = random_shape(seed, layout)
    x, dout = draw(100 + seed, shape, (shape[0], int(np.prod(shape[1:]))), dtype=dtype)
    assert_equal_layers(kind, Flatten(), nn.Flatten(), x, dout, 0.0, layout=layout)  # numbers move and do not change


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_standardize(kind, dtype, seed, layout):
    shape = random_shape(seed, "channels last")
    mean, std = draw(seed, (shape[1], 1, 1), shape[1:])
    std = 0.5 + std**2
    layer = Standardize(mean, std)
    Model(layer, shape[1:], dtype=dtype, backend=kind.backend)
    x, dout = draw(100 + seed, shape, shape, dtype=dtype)
    tmean, tstd = (torch.from_numpy(a.astype(dtype)) for a in (mean, std))
    call = lambda tx: (tx - tmean) / tstd  # noqa: E731
    # two roundings of numbers below 10, on either side; what divides them is above 1/2
    assert_equal_layers(kind, layer, nn.Identity(), x, dout, 4 * 20 * EPS[dtype], layout=layout, call=call)


class Branches(nn.Module):
    """Modules of one input, by name, and what makes one output of theirs."""

    def __init__(self, join, modules):
        super().__init__()
        self.join, self.branches = join, list(modules.values())
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.join([branch(x) for branch in self.branches])


def random_branch(rng, channels, filters, name):
    """A convolution that keeps the image's size, with or without GELU after it; and PyTorch's."""
    kernel, bends = int(rng.choice([1, 3])), rng.integers(0, 2)
    ours = Conv(filters, kernel, pad=kernel // 2, name="conv" if bends else name)
    theirs = nn.Conv2d(channels, filters, kernel, padding=kernel // 2)
    if bends:
        return Sequential(ours, GELU(), name=name), nn.Sequential(OrderedDict(conv=theirs, gelu=nn.GELU()))
    return ours, theirs


def random_branches(seed, same_width):
    """The branches, PyTorch's by name, the shape of a batch and the branches' widths."""
    rng = np.random.default_rng(seed)
    shape = tuple(map(int, rng.integers(1, 6, 4)))
    widths = list(map(int, rng.integers(1, 5, rng.integers(1, 5))))
    widths = [widths[0]] * len(widths) if same_width else widths
    pairs = [random_branch(rng, shape[1], width, f"branch{i}") for i, width in enumerate(widths)]
    return [ours for ours, _ in pairs], {ours.name: theirs for ours, theirs in pairs}, shape, widths


def tolerance(shape, widths, dtype):
    """Sums of so many products, mostly near 1: over a window, over all filters that see a pixel, over the pixels."""
    n, channels, height, width = shape
    # a GELU and its slope are right to a few roundings more
    return 5 * max(9 * channels, 9 * sum(widths), n * height * width) * 8 * EPS[dtype]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_parallel_branches_are_added(kind, dtype, seed, layout):
    ours, theirs, shape, widths = random_branches(seed, same_width=True)
    layer = Parallel(*ours)
    module = give_parameters(kind, layer, Branches(sum, theirs), shape[1:], dtype, seed)
    x, dout = draw(100 + seed, shape, (shape[0], widths[0], *shape[2:]), dtype=dtype)
    assert_equal_layers(kind, layer, module, x, dout, tolerance(shape, widths, dtype), layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_what_branches_give_is_put_together(kind, dtype, seed, layout):
    ours, theirs, shape, widths = random_branches(seed, same_width=False)
    layer, module = Concat(*ours, Identity()), Branches(partial(torch.cat, dim=1), theirs | {"identity": nn.Identity()})
    module = give_parameters(kind, layer, module, shape[1:], dtype, seed)
    x, dout = draw(100 + seed, shape, (shape[0], sum(widths) + shape[1], *shape[2:]), dtype=dtype)
    assert_equal_layers(kind, layer, module, x, dout, tolerance(shape, widths, dtype), layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_what_layers_give_is_added_to_the_shortcut(kind, dtype, seed, layout):
    rng = np.random.default_rng(seed)
    n, channels, height, width, filters = map(int, rng.integers(1, 6, 5))
    if seed % 2:
        shortcut, torch_shortcut = random_branch(rng, channels, filters, "")
    else:
        filters, shortcut, torch_shortcut = channels, None, nn.Identity()
    branch, torch_branch = random_branch(rng, channels, filters, "branch")
    layer = Residual(branch, shortcut=shortcut)
    module = Branches(sum, {"branch": torch_branch, "shortcut": torch_shortcut})
    shape = (n, channels, height, width)
    module = give_parameters(kind, layer, module, shape[1:], dtype, seed)
    x, dout = draw(100 + seed, shape, (n, filters, height, width), dtype=dtype)
    assert_equal_layers(kind, layer, module, x, dout, tolerance(shape, [filters, filters], dtype), layout=layout)
