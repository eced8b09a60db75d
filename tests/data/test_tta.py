"""Test-time augmentation against its formula on NumPy images."""

import numpy as np
import pytest

from oracles import EPS, normals
from xpnn.data.tta import tta_scores
from xpnn.errors import SettingError

WEIGHTS = normals((3 * 6 * 5, 4))


def score_on(kind, dtype):
    weights = kind(WEIGHTS, dtype)
    return lambda x: kind.xp.reshape(kind.xp.astype(x, weights.dtype), (x.shape[0], -1)) @ weights


def numpy_score(x):
    return x.reshape(len(x), -1).astype(float) @ WEIGHTS


def expected_scores(x, level):
    def mirrored(x):
        return (numpy_score(x) + numpy_score(x[:, :, :, ::-1])) / 2

    if level == "none":
        return numpy_score(x)
    if level == "mirror":
        return mirrored(x)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    shifted = mirrored(padded[:, :, :-2, :-2]), mirrored(padded[:, :, 2:, 2:])
    return mirrored(x) / 2 + (shifted[0] + shifted[1]) / 4


@pytest.mark.parametrize("level", ["none", "mirror", "mirror-translate"])
@pytest.mark.parametrize("images", ["bytes", "floats"])
def test_scores_are_the_mean_over_the_views(kind, dtype, level, images):
    x = np.random.default_rng(0).integers(0, 256, (3, 3, 6, 5), dtype=np.uint8)
    x = x if images == "bytes" else x.astype(dtype)
    out = kind.check(tta_scores(score_on(kind, dtype), kind(x), level), dtype, (3, 4))
    # products of numbers up to 256 and up to 3, summed over 90 pixels and rounded after each
    kind.assert_close(out, expected_scores(x, level), atol=90 * 256 * 3 * 90 * EPS[dtype] / 4)


def test_an_unknown_level_is_named():
    with pytest.raises(SettingError, match="expected tta to be one of none, mirror, mirror-translate; received 'flip'"):
        tta_scores(numpy_score, np.zeros((1, 1, 3, 3)), "flip")


def test_what_are_no_images_is_refused():
    with pytest.raises(ValueError, match=r"tta_scores: expected images x \(N, C, H, W\); received shape \(2, 3\)"):
        tta_scores(numpy_score, np.zeros((2, 3)))
