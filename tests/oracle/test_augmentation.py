"""Augmentation and test-time augmentation against PyTorch code transcribed from airbench94."""

import numpy as np
import pytest
from oracle_torch import torch

from oracles import EPS, normals
from xpnn.data.augmentation import AlternatingFlip, Batch, Normalize, RandomCrop
from xpnn.data.tta import LEVELS, tta_scores
from xpnn.random import FLIPS, Generator

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def images(seed, n=5):
    return np.random.default_rng(seed).integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)


def normalized(x):
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (torch.tensor(x).double() / 255 - mean) / std


def infer(net, inputs, tta_level):
    """The body of airbench94's `infer`, for one batch."""

    def infer_mirror(inputs):
        return 0.5 * net(inputs) + 0.5 * net(inputs.flip(-1))

    if tta_level == 0:
        return net(inputs)
    if tta_level == 1:
        return infer_mirror(inputs)
    logits = infer_mirror(inputs)
    padded_inputs = torch.nn.functional.pad(inputs, (1,) * 4, "reflect")
    inputs_translate_list = [padded_inputs[:, :, 0:32, 0:32], padded_inputs[:, :, 2:34, 2:34]]
    logits_translate = torch.stack([infer_mirror(inputs_translate) for inputs_translate in inputs_translate_list])
    return 0.5 * logits + 0.5 * logits_translate.mean(0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("level", LEVELS)
def test_the_scores_of_the_views_are_airbenchs(kind, dtype, level, seed):
    x, weights = images(seed), normals((3 * 32 * 32, 10), seed, dtype) / 50
    normalize = Normalize([255 * m for m in MEAN], [255 * s for s in STD])

    def score(x):
        flat = kind.xp.reshape(normalize.evaluate(x, dtype), (x.shape[0], -1))
        return kind.xp.tanh(flat @ kind(weights, dtype))

    expected = infer(lambda x: torch.tanh(x.flatten(1) @ torch.tensor(weights)), normalized(x), LEVELS.index(level))
    out = kind.check(tta_scores(score, kind(x), level), dtype, (5, 10))
    # 3072 products of numbers up to 2.2 and 0.1, each with four roundings
    kind.assert_close(out, expected.numpy(), atol=4 * 3072 * 0.22 * EPS[dtype])


@pytest.mark.parametrize("padding", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_crops_are_airbenchs(kind, seed, padding):
    x = images(seed, 40)
    batch = Batch(y=None, indices=None, rng=Generator(seed))
    out = RandomCrop(padding)(kind(x), batch)

    r = padding
    shifts = torch.tensor(Generator(seed).integers(-r, r + 1, (2, 40))).T
    padded = torch.nn.functional.pad(torch.tensor(x).float(), (r,) * 4, "reflect")
    expected = torch.empty((40, 3, 32, 32))
    for sy in range(-r, r + 1):
        for sx in range(-r, r + 1):
            mask = (shifts[:, 0] == sy) & (shifts[:, 1] == sx)
            expected[mask] = padded[mask, :, r + sy : r + sy + 32, r + sx : r + sx + 32]
    np.testing.assert_array_equal(kind.to_numpy(out), expected.numpy())


@pytest.mark.parametrize("epoch", range(4))
def test_alternating_flips_are_airbenchs(kind, epoch):
    x = images(epoch, 30)
    order = np.random.default_rng(epoch).permutation(30)
    batch = Batch(y=None, indices=kind(order), rng=Generator(7), epoch=epoch, num_examples=30)
    out = AlternatingFlip()(kind(x[order]), batch)

    stored = torch.tensor(x)
    flip_mask = torch.tensor(Generator(7, FLIPS).integers(0, 2, 30) == 1).view(-1, 1, 1, 1)
    epoch_images = torch.where(flip_mask, stored.flip(-1), stored)
    if epoch % 2 == 1:
        epoch_images = epoch_images.flip(-1)
    np.testing.assert_array_equal(kind.to_numpy(out), epoch_images[torch.tensor(order)].numpy())
