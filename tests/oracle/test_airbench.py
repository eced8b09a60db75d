"""airbench94_muon in lock step: the recipe here and its transcription in PyTorch, on the same weights and batches."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch_airbench
import torch_nets
from oracle_torch import torch

from oracles import EPS
from xpnn import backend as backends
from xpnn.layers import softmax_loss
from xpnn.layers.initializers import whitening
from xpnn.optim import Optimizer
from xpnn.random import Generator
from xpnn.training.recipes import RECIPES
from xpnn.training.settings import Settings

RECIPE = RECIPES["airbench"]
SMALL, FULL = (8, 10, 12), (64, 256, 256)
TOTAL = 16  # steps of the whole training, of which the first bias learns in six


def images(n, seed=0):
    """Bytes whose neighbors are alike, as in photographs, around the gray that is CIFAR-10's mean."""
    noise = np.random.default_rng(seed).standard_normal((2, n, 3, 32, 32))
    smooth = noise[0]
    for axis in (2, 3) * 4:
        smooth = np.roll(smooth, 1, axis) + 2 * smooth + np.roll(smooth, -1, axis)
    return np.clip(120 + 55 * (smooth / smooth.std() + 0.25 * noise[1]), 0, 255).astype("uint8")


def batch(n, step):
    return images(n, step), np.random.default_rng(1000 + step).integers(0, 10, n)


class Lockstep:
    """The recipe in xpnn, and the transcription with the same weights."""

    def __init__(self, backend, dtype, widths, batch_size, **given):
        settings = Settings.of("cifar10", model="airbench", batch_size=batch_size, widths=widths, dtype=dtype, **given)
        self.backend, self.dtype, self.schedule = backend, getattr(torch, dtype), settings.schedule
        loss = partial(softmax_loss, label_smoothing=settings.label_smoothing, reduction=RECIPE.reduction(settings))
        data = SimpleNamespace(X_train=images(200, 99), num_classes=10, input_shape=(3, 32, 32))
        self.model = RECIPE.build(data, widths=widths, dtype=dtype, loss=loss, backend=backend, rng=0)
        config, groups = RECIPE.optimizer(settings, self.model)
        self.optimizer = Optimizer(self.model.params, settings.optimizer, groups=groups, **config)
        self.net = torch_nets.Airbench(widths).to(self.dtype)
        self.net.load_state_dict(self.model.to_torch_state_dict())
        self.training = torch_airbench.Training(self.net, batch_size, TOTAL, settings.lr)

    def step(self, x, y):
        """Train both on a batch; return the losses before, xpnn's and PyTorch's."""
        self.optimizer.set_progress(self.training.steps / TOTAL, self.schedule)
        loss, grads = self.model.loss(self.backend.asarray(x), self.backend.asarray(y))
        self.optimizer.step(grads)
        inputs = torch_airbench.normalize(torch.from_numpy(x), self.dtype)
        return float(loss), float(self.training.step(inputs, torch.from_numpy(y)))

    def assert_equal_weights(self, atol):
        ours, theirs = self.model.to_torch_state_dict(), self.net.state_dict()
        for name in ours.keys() - {name for name in ours if name.endswith("num_batches_tracked")}:
            assert float((ours[name] - theirs[name]).abs().max()) <= atol, name


# Relative. In float64 a few roundings of a loss. In float32 they do not stay that small: a rounding may decide which of
# two pixels is the larger, max pooling then sends a gradient elsewhere, and Newton-Schulz lifts small differences by
# up to 3.4445 a step. At Muon's full rate of 0.24 on small batches PyTorch on one thread and on two differ by 1e-3
# after eight steps; at a rate by image they stay equal to about 1e-6 in ten. So float32 is compared at that rate.
LOSS = {"float64": 1e-13, "float32": 1e-4}


def rate(dtype, n):
    """The original's 0.24 is for batches of 2000."""
    return 0.24 if dtype == "float64" else 0.24 * n / 2000


def test_the_whole_training_in_lock_step(kind, dtype):
    both = Lockstep(kind.backend, dtype, SMALL, 16, lr=rate(dtype, 16))
    for step in range(TOTAL):
        ours, theirs = both.step(*batch(16, step))
        assert ours == pytest.approx(theirs, rel=LOSS[dtype]), step
    if dtype == "float64":
        # of numbers up to ten, after 16 steps whose roundings Newton-Schulz lifts
        both.assert_equal_weights(TOTAL * 10 * 3.4445**3 * EPS[dtype])


def test_ten_steps_of_the_full_net(dtype):
    n = 8 if dtype == "float64" else 16
    both = Lockstep(backends.get("numpy"), dtype, FULL, n, lr=rate(dtype, n))
    for step in range(10):
        ours, theirs = both.step(*batch(n, step))
        assert ours == pytest.approx(theirs, rel=LOSS[dtype]), step


def test_the_first_bias_stops_after_three_eighths_of_the_training(kind):
    both = Lockstep(kind.backend, "float64", SMALL, 16)
    biases = []
    for step in range(8):
        both.step(*batch(16, step))
        biases.append(kind.to_numpy(both.model.params["whiten.b"]).copy())
    assert (biases[5] != biases[4]).all()
    np.testing.assert_array_equal(biases[6], biases[5])
    np.testing.assert_array_equal(biases[7], biases[5])


def test_the_whitening_filters_are_the_originals_but_for_their_sign(kind):
    x = torch_airbench.normalize(torch.from_numpy(images(50)), torch.float64)
    expected = torch_airbench.whitening_filters(x).numpy()
    filters = kind.to_numpy(whitening(kind(x.numpy()))(Generator(0), (24, 3, 2, 2), "float64", kind.backend))
    signs = np.sign(np.sum(filters * expected, axis=(1, 2, 3), keepdims=True))
    # The covariance's sums of 48,050 products round by some 100 eps; over the gap of 1e-3 between two eigenvalues that
    # turns their eigenvectors, and filters are up to five times as long.
    np.testing.assert_allclose(signs * filters, expected, rtol=0, atol=100 / 1e-3 * 5 * EPS["float64"])
