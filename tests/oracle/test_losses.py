"""Losses against PyTorch."""

import numpy as np
import pytest
from oracle_torch import torch

from oracles import EPS
from xpnn.losses import binary_cross_entropy_loss, mse_loss, softmax_loss, svm_loss

F = torch.nn.functional

REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum"])
SEEDS = pytest.mark.parametrize("seed", range(6))


def random_scores(seed, dtype):
    rng = np.random.default_rng(seed)
    n, c = map(int, rng.integers(1, 9, 2))
    return (4.0 * rng.standard_normal((n, c))).astype(dtype), rng


def assert_agrees(kind, dtype, received, expected, tx):
    loss, dx = received
    expected.backward()
    kind.check(loss, dtype, ())
    kind.check(dx, dtype, tuple(tx.shape))
    # Sums of up to 64 terms, mostly below 10 and positive, each after a few roundings; gradients are below 10.
    kind.assert_close(loss, expected.detach().numpy(), rtol=64 * EPS[dtype], atol=64 * EPS[dtype])
    kind.assert_close(dx, tx.grad.numpy(), rtol=8 * EPS[dtype], atol=8 * 10 * EPS[dtype])


@REDUCTIONS
@SEEDS
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_softmax_is_pytorchs_cross_entropy(kind, dtype, seed, smoothing, reduction):
    x, rng = random_scores(seed, dtype)
    y = rng.integers(0, x.shape[1], x.shape[0])
    tx = torch.tensor(x, requires_grad=True)
    expected = F.cross_entropy(tx, torch.tensor(y), label_smoothing=smoothing, reduction=reduction)
    assert_agrees(kind, dtype, softmax_loss(kind(x), kind(y), smoothing, reduction), expected, tx)


@REDUCTIONS
@SEEDS
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_softmax_of_soft_labels_is_pytorchs(kind, dtype, seed, smoothing, reduction):
    x, rng = random_scores(seed, dtype)
    y = rng.random(x.shape)
    y = (y / y.sum(axis=1, keepdims=True)).astype(dtype)
    tx = torch.tensor(x, requires_grad=True)
    expected = F.cross_entropy(tx, torch.tensor(y), label_smoothing=smoothing, reduction=reduction)
    assert_agrees(kind, dtype, softmax_loss(kind(x), kind(y), smoothing, reduction), expected, tx)


@SEEDS
def test_soft_labels_that_do_not_add_up_to_1_weigh_as_in_pytorch(kind, dtype, seed):
    x, rng = random_scores(seed, dtype)
    y = rng.random(x.shape).astype(dtype)
    tx = torch.tensor(x, requires_grad=True)
    assert_agrees(kind, dtype, softmax_loss(kind(x), kind(y)), F.cross_entropy(tx, torch.tensor(y)), tx)


@SEEDS
def test_the_hinge_loss_is_pytorchs_but_for_the_mean_over_classes(kind, dtype, seed):
    x, rng = random_scores(seed, dtype)
    y = rng.integers(0, x.shape[1], x.shape[0])
    tx = torch.tensor(x, requires_grad=True)
    expected = F.multi_margin_loss(tx, torch.tensor(y)) * x.shape[1]
    assert_agrees(kind, dtype, svm_loss(kind(x), kind(y)), expected, tx)


@REDUCTIONS
@SEEDS
def test_mean_squared_error_is_pytorchs(kind, dtype, seed, reduction):
    x, rng = random_scores(seed, dtype)
    y = rng.standard_normal(x.shape).astype(dtype)
    tx = torch.tensor(x, requires_grad=True)
    expected = F.mse_loss(tx, torch.tensor(y), reduction=reduction)
    assert_agrees(kind, dtype, mse_loss(kind(x), kind(y), reduction), expected, tx)


@REDUCTIONS
@SEEDS
def test_binary_cross_entropy_is_pytorchs(kind, dtype, seed, reduction):
    x, rng = random_scores(seed, dtype)
    y = rng.random(x.shape).astype(dtype)
    tx = torch.tensor(x, requires_grad=True)
    expected = F.binary_cross_entropy_with_logits(tx, torch.tensor(y), reduction=reduction)
    assert_agrees(kind, dtype, binary_cross_entropy_loss(kind(x), kind(y), reduction), expected, tx)
