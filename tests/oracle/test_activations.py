"""Activations, the error function and initializers against PyTorch."""

import math

import numpy as np
import pytest
from oracle_torch import torch

from oracles import EPS
from xpnn import backend as backends
from xpnn import layers
from xpnn.layers import initializers
from xpnn.random import Generator
from xpnn.special import erf

F = torch.nn.functional

CASES = {
    "relu": (layers.relu_forward, layers.relu_backward, F.relu),
    "leaky_relu": (layers.leaky_relu_forward, layers.leaky_relu_backward, F.leaky_relu),
    "leaky_relu-0.3": (
        lambda x: layers.leaky_relu_forward(x, 0.3),
        layers.leaky_relu_backward,
        lambda x: F.leaky_relu(x, 0.3),
    ),
    "sigmoid": (layers.sigmoid_forward, layers.sigmoid_backward, torch.sigmoid),
    "tanh": (layers.tanh_forward, layers.tanh_backward, torch.tanh),
    "silu": (layers.silu_forward, layers.silu_backward, F.silu),
    "gelu": (layers.gelu_forward, layers.gelu_backward, F.gelu),
    "gelu-tanh": (
        lambda x: layers.gelu_forward(x, "tanh"),
        layers.gelu_backward,
        lambda x: F.gelu(x, approximate="tanh"),
    ),
}


def assert_agrees(kind, dtype, case, x, dout):
    forward, backward, function = case
    tx = torch.tensor(x, requires_grad=True)
    expected = function(tx)
    out, cache = forward(kind(x))
    kind.check(out, dtype, x.shape)
    # Phi and its like are right to 4 roundings of 1 on either side; x, below 20 in size, multiplies them.
    kind.assert_close(out, expected.detach().numpy(), rtol=8 * EPS[dtype], atol=8 * 20 * EPS[dtype])
    expected.backward(torch.tensor(dout))
    dx = kind.check(backward(kind(dout), cache), dtype, x.shape)
    # the derivatives have x² in them; dout is below 5
    kind.assert_close(dx, tx.grad.numpy(), atol=8 * 20 * 5 * EPS[dtype])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("seed", range(5))
def test_an_activation_is_pytorchs(kind, dtype, case, seed):
    rng = np.random.default_rng(seed)
    shape = tuple(map(int, rng.integers(1, 7, rng.integers(0, 5))))
    x, dout = (np.array(rng.standard_normal(shape) * scale, dtype=dtype) for scale in (3.0, 1.0))
    assert_agrees(kind, dtype, case, x, dout)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_activation_is_pytorchs_over_the_whole_bend(kind, dtype, case):
    x = np.linspace(-20, 20, 20_001).astype(dtype)
    assert_agrees(kind, dtype, case, x, np.ones_like(x))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_activation_is_pytorchs_with_channels_last_in_memory(kind, dtype, case):
    forward, backward, function = case
    x = np.random.default_rng(0).standard_normal((2, 5, 4, 3)).astype(dtype)
    images = kind.xp.permute_dims(kind(x), (0, 3, 1, 2))
    tx = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
    expected = function(tx)
    expected.backward(torch.ones_like(expected))
    out, cache = forward(images)
    kind.assert_close(out, expected.detach().numpy(), atol=8 * 5 * EPS[dtype])
    kind.assert_close(backward(kind.xp.ones_like(out), cache), tx.grad.numpy(), atol=8 * 5 * EPS[dtype])


def test_erf_is_pytorchs(kind, dtype):
    x = np.linspace(-7, 7, 20_001).astype(dtype)
    expected = torch.erf(torch.tensor(x)).numpy()
    kind.assert_close(erf(kind(x)), expected, rtol=2 * 4 * EPS[dtype])  # each may be a few units off the truth


INITIALIZERS = {
    "kaiming": (initializers.kaiming, lambda w: torch.nn.init.kaiming_normal_(w, nonlinearity="relu")),
    "kaiming_uniform": (
        initializers.kaiming_uniform(math.sqrt(2.0)),
        lambda w: torch.nn.init.kaiming_uniform_(w, nonlinearity="relu"),
    ),
    "torch_default": (initializers.torch_default, lambda w: torch.nn.init.kaiming_uniform_(w, a=math.sqrt(5.0))),
    "xavier": (initializers.xavier, torch.nn.init.xavier_normal_),
    "xavier_uniform": (initializers.xavier_uniform, torch.nn.init.xavier_uniform_),
    "orthogonal": (initializers.orthogonal(1.5), lambda w: torch.nn.init.orthogonal_(w, gain=1.5)),
}


def draw(init, shape, kind, dtype):
    return kind.to_numpy(kind.check(init(Generator(0), shape, dtype, kind.backend), dtype, shape))


@pytest.mark.parametrize(("init", "torch_init"), INITIALIZERS.values(), ids=INITIALIZERS)
@pytest.mark.parametrize("shape", [(300, 200), (64, 30, 3, 5)])
def test_an_initializer_has_the_distribution_of_pytorchs(kind, dtype, init, torch_init, shape):
    torch.manual_seed(0)
    # PyTorch holds the matrix of a linear layer transposed
    theirs = torch_init(torch.empty(shape if len(shape) == 4 else shape[::-1])).numpy()
    ours = draw(init, shape, kind, dtype)
    # Two samples of 28,800 or more: variances within 5 sqrt(2 * 2 / 28,800) = 6% of each other, tails alike.
    assert np.var(ours) == pytest.approx(float(np.var(theirs)), rel=0.06)
    for share in (0.05, 0.25, 0.75, 0.95):
        # five standard deviations: a normal sample's 5% quantile is off by sqrt(0.05 * 0.95 / 28,800) / 0.103 std
        near = 5 * 2**0.5 * 0.0125 * float(np.std(theirs))
        assert np.quantile(ours, share) == pytest.approx(float(np.quantile(theirs, share)), abs=near)


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6), (10, 4, 3, 3), (30, 2, 3, 3)])
def test_orthogonal_matrices_are_as_orthogonal_as_pytorchs(kind, dtype, shape):
    ours = draw(initializers.orthogonal(1.0), shape, kind, dtype)
    theirs = torch.nn.init.orthogonal_(torch.empty(shape, dtype=getattr(torch, dtype))).numpy()
    squares = [
        m @ m.T if m.shape[0] <= m.shape[1] else m.T @ m for m in (w.reshape(shape[0], -1) for w in (ours, theirs))
    ]
    # sums of up to 36 products below 1
    np.testing.assert_allclose(squares[0], squares[1], atol=2 * 36 * EPS[dtype])


@pytest.mark.parametrize("shape", [(3, 3, 3, 3), (3, 8, 3, 3), (4, 4, 2, 2), (5, 5, 1, 4)])
def test_dirac_is_pytorchs(kind, dtype, shape):
    ours = draw(initializers.dirac(initializers.zeros), shape, kind, dtype)
    np.testing.assert_array_equal(ours, torch.nn.init.dirac_(torch.empty(shape)).numpy())


def test_partial_dirac_is_airbenchs(kind, dtype):
    ours = draw(initializers.dirac(), (64, 24, 3, 3), kind, dtype)
    base = torch.tensor(draw(initializers.torch_default, (64, 24, 3, 3), kind, dtype))
    torch.nn.init.dirac_(base[: base.size(1)])
    np.testing.assert_array_equal(ours, base.numpy())


def airbench_whitening(images, h, w, eps):
    """Filters as the init_whiten of airbench94_muon.py makes them, in the images' dtype."""
    c = images.shape[1]
    patches = images.unfold(2, h, 1).unfold(3, w, 1).transpose(1, 3).reshape(-1, c, h, w)
    flat = patches.reshape(len(patches), -1)
    values, vectors = torch.linalg.eigh(flat.T @ flat / len(flat), UPLO="U")
    scaled = vectors.T.reshape(-1, c, h, w) / torch.sqrt(values.view(-1, 1, 1, 1) + eps)
    return torch.cat((scaled, -scaled)).numpy()


@pytest.mark.parametrize("window", [(2, 2), (3, 1)])
def test_whitening_is_airbenchs_but_for_signs(kind, dtype, window):
    noise = np.random.default_rng(0).standard_normal((250, 3, 9, 9))
    images = (noise[:, :, 1:, 1:] + 0.7 * noise[:, :, :-1, 1:] + 0.4 * noise[:, :1, 1:, :-1]).astype(dtype)
    n = 3 * math.prod(window)
    ours = draw(initializers.whitening(kind(images)), (2 * n, 3, *window), kind, dtype)
    theirs = airbench_whitening(torch.tensor(images).double(), *window, 5e-4)
    sign = np.sign(np.sum(ours * theirs, axis=(1, 2, 3), keepdims=True))
    # An eigenvector of a covariance that is known to rounding is known to rounding over the gap to the next, here 1e-3;
    # what is left is the rounding of the result.
    np.testing.assert_allclose(ours, sign * theirs, atol=1e-10 + 4 * EPS[dtype])


def test_biases_of_pytorch_are_uniform_with_a_given_bound():
    layer = torch.nn.Linear(120, 50_000)
    bias = initializers.uniform(1 / math.sqrt(120))(Generator(0), (50_000,), "float32", backends.get("numpy"))
    assert np.var(bias) == pytest.approx(float(layer.bias.detach().var()), rel=0.06)
