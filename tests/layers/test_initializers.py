"""First values of parameters."""

import math
import pickle

import numpy as np
import pytest

from oracles import EPS, normals
from xpnn import backend as backends
from xpnn.layers import Affine, Sequential, initializers
from xpnn.models import Model
from xpnn.random import Generator

AFFINE, FILTERS = (60, 50), (40, 8, 3, 5)  # fans (60, 50) and (120, 600)


def draw(init, shape, kind=None, dtype="float64", seed=0):
    return init(Generator(seed), shape, dtype, kind.backend if kind else backends.get("numpy"))


DRAWN = {
    "normal": initializers.normal(0.1),
    "uniform": initializers.uniform(0.1),
    "kaiming": initializers.kaiming,
    "kaiming_uniform": initializers.kaiming_uniform(math.sqrt(2.0)),
    "torch_default": initializers.torch_default,
    "xavier": initializers.xavier,
    "xavier_uniform": initializers.xavier_uniform,
    "orthogonal": initializers.orthogonal(1.0),
    "dirac": initializers.dirac(),
}
INITIALIZERS = pytest.mark.parametrize("init", DRAWN.values(), ids=DRAWN)


@INITIALIZERS
def test_weights_have_kind_dtype_and_shape(kind, dtype, init):
    kind.check(draw(init, FILTERS, kind, dtype), dtype, FILTERS)


@INITIALIZERS
def test_a_seed_gives_the_same_weights_on_every_kind(kind, dtype, init):
    # the logarithm and cosine behind a normal number may differ by a rounding between libraries
    kind.assert_close(draw(init, FILTERS, kind, dtype), draw(init, FILTERS, dtype=dtype), atol=4 * EPS[dtype])


@INITIALIZERS
def test_another_seed_gives_other_weights(init):
    assert (draw(init, FILTERS) != draw(init, FILTERS, seed=1)).any()


@INITIALIZERS
def test_an_initializer_can_be_pickled(init):
    np.testing.assert_array_equal(draw(pickle.loads(pickle.dumps(init)), FILTERS), draw(init, FILTERS))


@pytest.mark.parametrize(
    ("shape", "expected"), [((60, 50), (60, 50)), ((40, 8, 3, 5), (120, 600)), ((16, 1, 3, 3), (9, 144))]
)
def test_fans_of_a_matrix_and_of_filters(shape, expected):
    assert initializers.fans(shape) == expected


@pytest.mark.parametrize("shape", [(3,), (), (0, 3), (4, 3, 0, 3)])
def test_what_has_no_fans_is_refused(shape):
    with pytest.raises(ValueError, match="^fans: expected the shape of a matrix or of filters") as error:
        initializers.fans(shape)
    assert f"received {shape}" in str(error.value)


# The variance of 3,000 or 4,800 normal numbers is within 5 sqrt(2 / 3,000) = 13% of the true one, five standard
# deviations; that of uniform ones is closer.
@pytest.mark.parametrize(
    ("init", "affine", "filters"),
    [
        (initializers.normal(0.1), 0.01, 0.01),
        (initializers.uniform(0.3), 0.03, 0.03),
        (initializers.kaiming, 2 / 60, 2 / 120),
        (initializers.kaiming_uniform(1.0), 1 / 60, 1 / 120),
        (initializers.kaiming_uniform(math.sqrt(2.0)), 2 / 60, 2 / 120),
        (initializers.torch_default, 1 / (3 * 60), 1 / (3 * 120)),
        (initializers.xavier, 2 / 110, 2 / 720),
        (initializers.xavier_uniform, 2 / 110, 2 / 720),
    ],
)
def test_the_variance_is_that_of_the_formula(init, affine, filters):
    assert np.var(draw(init, AFFINE)) == pytest.approx(affine, rel=0.13)
    assert np.var(draw(init, FILTERS)) == pytest.approx(filters, rel=0.13)


@pytest.mark.parametrize(
    ("init", "bound"),
    [
        (initializers.uniform(0.3), 0.3),
        (initializers.kaiming_uniform(2.0), 2 * math.sqrt(3 / 120)),
        (initializers.torch_default, 1 / math.sqrt(120)),
        (initializers.xavier_uniform, math.sqrt(6 / 720)),
    ],
)
def test_uniform_weights_fill_the_interval_between_their_bounds(init, bound):
    w = draw(init, FILTERS)
    # of 4,800 draws the largest is below 99% of the bound once in e^24
    assert 0.99 * bound < w.max() <= bound
    assert 0.99 * bound < -w.min() <= bound


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (5, 2, 3, 3), (40, 2, 3, 3)])
def test_orthogonal_rows_or_columns_are_orthonormal_times_the_gain(kind, dtype, shape):
    w = kind.to_numpy(draw(initializers.orthogonal(3.0), shape, kind, dtype)).astype("float64").reshape(shape[0], -1)
    square = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
    # sums of up to 40 products below 9, each number rounded to dtype
    np.testing.assert_allclose(square, 9.0 * np.eye(len(square)), rtol=0, atol=40 * 9 * EPS[dtype])


def test_orthogonal_matrices_favor_no_direction():
    mean = np.mean([draw(initializers.orthogonal(1.0), (2, 2), seed=seed) for seed in range(400)], axis=0)
    # numbers of variance 1/2: five standard deviations of the mean of 400; without fixed signs Q's corner is negative
    np.testing.assert_allclose(mean, np.zeros((2, 2)), atol=5 * math.sqrt(0.5 / 400))


def test_dirac_filters_pass_their_channel_on(kind, dtype):
    w = kind.to_numpy(draw(initializers.dirac(initializers.zeros), (4, 2, 3, 3), kind, dtype))
    expected = np.zeros((4, 2, 3, 3))
    expected[0, 0, 1, 1] = expected[1, 1, 1, 1] = 1.0
    np.testing.assert_array_equal(w, expected)


def test_dirac_of_an_even_window_takes_the_number_after_the_middle():
    w = draw(initializers.dirac(initializers.zeros), (1, 1, 2, 4))
    np.testing.assert_array_equal(w[0, 0], [[0, 0, 0, 0], [0, 0, 1, 0]])


def test_dirac_leaves_the_filters_beyond_the_channels_to_the_base():
    w = draw(initializers.dirac(initializers.kaiming), (7, 3, 3, 3))
    np.testing.assert_array_equal(w[3:], draw(initializers.kaiming, (7, 3, 3, 3))[3:])


def test_dirac_of_fewer_filters_than_channels_passes_the_first_channels_on():
    w = draw(initializers.dirac(), (2, 5, 1, 1))
    np.testing.assert_array_equal(w[:, :, 0, 0], np.eye(2, 5))


def test_dirac_is_of_filters_only():
    with pytest.raises(ValueError, match=r"^dirac: expected the shape of filters \(F, C, KH, KW\); received \(3, 4\)"):
        draw(initializers.dirac(), (3, 4))


def patches_of(images, height, width):
    return np.array(
        [
            image[:, i : i + height, j : j + width].ravel()
            for image in images
            for i in range(image.shape[1] - height + 1)
            for j in range(image.shape[2] - width + 1)
        ]
    )


def smooth_images(n=230, c=3, size=6):
    noise = normals((n, c, size + 1, size + 1), seed=3)
    return noise[:, :, 1:, 1:] + noise[:, :, :-1, 1:] + 0.5 * noise[:, :, 1:, :-1] + noise[:, :1, :-1, :-1]


def test_whitened_patches_are_uncorrelated_and_of_variance_1(kind, dtype):
    images = smooth_images()
    init = initializers.whitening(kind(images), eps=1e-12)
    w = kind.check(draw(init, (24, 3, 2, 2), kind, dtype), dtype, (24, 3, 2, 2))
    white = patches_of(images, 2, 2) @ kind.to_numpy(w).reshape(24, -1)[:12].T
    # 12 products of numbers below 10 a patch, twice
    np.testing.assert_allclose(white.T @ white / len(white), np.eye(12), atol=2 * 12 * 10 * EPS[dtype])


def test_whitening_filters_follow_the_formula():
    images, eps = smooth_images(), 0.5
    w = draw(initializers.whitening(images, eps), (12, 3, 1, 2)).reshape(12, -1)
    patches = patches_of(images, 1, 2)
    covariance = patches.T @ patches / len(patches)
    for row in w[:6]:
        value = row @ covariance @ row / (row @ row)
        np.testing.assert_allclose(covariance @ row, value * row, atol=1e-12)  # an eigenvector, to rounding
        assert row @ row == pytest.approx(1 / (value + eps), rel=1e-12)
    norms = np.linalg.norm(w[:6], axis=1)
    assert (np.diff(norms) < 0).all()  # the smallest eigenvalue first


def test_the_second_half_of_whitening_filters_is_the_first_negated():
    w = draw(initializers.whitening(smooth_images()), (24, 3, 2, 2))
    np.testing.assert_array_equal(w[12:], -w[:12])
    assert (np.take_along_axis(w[:12].reshape(12, -1), np.abs(w[:12]).reshape(12, -1).argmax(1)[:, None], 1) > 0).all()


def test_whitening_draws_no_random_number():
    init, rng = initializers.whitening(smooth_images(5)), Generator(1, 2, 3)
    init(rng, (24, 3, 2, 2), "float32", backends.get("numpy"))
    assert rng.state == (1, 2, 3)


@pytest.mark.parametrize("shape", [(16, 3, 2, 2), (24, 3, 3, 3), (24, 12), (8, 1, 2, 2), (2 * 147, 3, 7, 7)])
def test_whitening_filters_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"^whitening: expected filters \(2 C KH KW, C, KH, KW\)") as error:
        draw(initializers.whitening(smooth_images()), shape)
    assert f"within images (C, H, W) = (3, 6, 6); received {shape}" in str(error.value)


def test_too_few_whitening_filters_are_told_how_many_are_expected():
    with pytest.raises(ValueError, match=r"\(24, 3, 2, 2\) within .*; received \(16, 3, 2, 2\)"):
        draw(initializers.whitening(smooth_images()), (16, 3, 2, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: initializers.normal(-1.0), "normal: expected a standard deviation of at least 0; received -1.0"),
        (lambda: initializers.uniform(0.0), "uniform: expected bound above 0; received 0.0"),
        (lambda: initializers.kaiming_uniform(math.nan), "kaiming_uniform: expected gain above 0; received nan"),
        (lambda: initializers.orthogonal(math.inf), "orthogonal: expected gain above 0; received inf"),
        (lambda: initializers.whitening(np.ones((1, 1, 2, 2)), 0), "whitening: expected eps above 0; received 0"),
        (
            lambda: initializers.whitening(np.ones((3, 2, 2))),
            r"whitening: expected images \(N, C, H, W\); received \(3, 2, 2\)",
        ),
    ],
)
def test_impossible_options_are_refused(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


def test_what_is_no_initializer_or_no_array_is_refused():
    with pytest.raises(TypeError, match="^dirac: expected an initializer; received 0.1"):
        initializers.dirac(0.1)
    with pytest.raises(TypeError, match="^whitening: expected images to be an array; received list"):
        initializers.whitening([[1.0]])


def test_a_model_starts_from_the_initializer_of_its_layers(kind):
    model = Model(Sequential(Affine(4, init=initializers.orthogonal(1.0))), (4,), backend=kind.backend, rng=5)
    expected = draw(initializers.orthogonal(1.0), (4, 4), dtype="float32", seed=5)
    kind.assert_close(model.params["affine1.W"], expected, atol=EPS["float32"])
