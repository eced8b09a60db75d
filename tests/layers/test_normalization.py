"""Normalization of each example by itself: layer, group and root-mean-square normalization."""

import numpy as np
import pytest

from oracles import EPS, normals
from xpnn.layers import (
    GroupNorm,
    LayerNorm,
    RMSNorm,
    Sequential,
    layernorm_backward,
    layernorm_forward,
    rmsnorm_forward,
    spatial_groupnorm_backward,
    spatial_groupnorm_forward,
)
from xpnn.models import Model


def test_layernorm_normalizes_the_features_of_each_example(kind, dtype):
    x = kind([[1.0, 3.0], [0.0, 0.0]], dtype)  # mean 2 and 0, variance 1 and 0
    gamma, beta = kind([5.0, 10.0], dtype), kind([1.0, 2.0], dtype)
    out, _ = layernorm_forward(x, gamma, beta, {"eps": 0.5625})  # 1.5625 = 1.25²
    kind.check(out, dtype, (2, 2))
    kind.assert_close(out, [[-3.0, 10.0], [1.0, 2.0]], rtol=4 * EPS[dtype])


def test_layernorm_has_an_eps_of_1e_5_by_default(kind):
    x = kind([[0.0, 0.002]], "float64")  # variance 1e-6
    out, _ = layernorm_forward(x, kind([1.0, 1.0]), kind([0.0, 0.0]), {})
    kind.assert_close(out, [[-0.001 / 1.1e-5**0.5, 0.001 / 1.1e-5**0.5]], rtol=8 * EPS["float64"])


def test_layernorm_takes_the_last_axis_of_any_number_of_them(kind, dtype):
    x, gamma, beta = kind(normals((2, 3, 4)), dtype), kind(normals(4, 1), dtype), kind(normals(4, 2), dtype)
    out, cache = layernorm_forward(x, gamma, beta, {})
    rows, row_cache = layernorm_forward(kind.xp.reshape(x, (6, 4)), gamma, beta, {})
    kind.assert_close(out, kind.to_numpy(rows).reshape(2, 3, 4))
    dout = normals((2, 3, 4), 3)
    grads = layernorm_backward(kind(dout, dtype), cache)
    expected = layernorm_backward(kind(dout.reshape(6, 4), dtype), row_cache)
    for grad, truth, shape in zip(grads, expected, [(2, 3, 4), (4,), (4,)], strict=True):
        kind.check(grad, dtype)
        kind.assert_close(grad, kind.to_numpy(truth).reshape(shape))


def test_layernorm_treats_each_example_by_itself(kind, dtype):
    x, gamma, beta = kind(normals((4, 3)), dtype), kind(normals(3, 1), dtype), kind(normals(3, 2), dtype)
    together, _ = layernorm_forward(x, gamma, beta, {})
    alone, _ = layernorm_forward(x[1:2, :], gamma, beta, {})
    kind.assert_close(alone, kind.to_numpy(together)[1:2])


def test_a_batch_of_no_examples_gives_none(kind, dtype):
    gamma, beta = kind(np.ones(2), dtype), kind(np.zeros(2), dtype)
    for out, shape in [
        (layernorm_forward(kind(np.zeros((0, 2)), dtype), gamma, beta, {})[0], (0, 2)),
        (rmsnorm_forward(kind(np.zeros((0, 2)), dtype), gamma, {})[0], (0, 2)),
        (spatial_groupnorm_forward(kind(np.zeros((0, 2, 1, 3)), dtype), gamma, beta, 2, {})[0], (0, 2, 1, 3)),
    ]:
        kind.check(out, dtype, shape)


def test_groupnorm_normalizes_pixels_and_channels_of_a_group(kind, dtype):
    x = kind([[[[1.0]], [[3.0]], [[0.0]], [[8.0]]]], dtype)  # groups of mean 2 and 4, variance 1 and 16
    gamma, beta = kind(np.ones(4), dtype), kind([0.0, 0.0, 0.0, 1.0], dtype)
    out, _ = spatial_groupnorm_forward(x, gamma, beta, 2, {"eps": 9.0})  # deviations sqrt(10) and 5
    expected = np.array([-1 / 10**0.5, 1 / 10**0.5, -0.8, 1.8])
    kind.assert_close(out, expected.reshape(1, 4, 1, 1), rtol=4 * EPS[dtype])


def test_groupnorm_with_one_group_is_a_layernorm_of_the_image(kind, dtype):
    x = normals((2, 3, 4, 5), 0, dtype)
    out, _ = spatial_groupnorm_forward(kind(x, dtype), kind(np.ones(3), dtype), kind(np.zeros(3), dtype), 1, {})
    rows = kind(x.reshape(2, 60), dtype)
    expected, _ = layernorm_forward(rows, kind(np.ones(60), dtype), kind(np.zeros(60), dtype), {})
    # the sums of 60 numbers are taken in another order
    kind.assert_close(out, kind.to_numpy(expected).reshape(x.shape), atol=60 * EPS[dtype])


@pytest.mark.parametrize("shape", [(4,), (1, 4, 1, 1)])
def test_gradients_by_scale_and_shift_of_a_groupnorm_have_their_shape(kind, dtype, shape):
    gamma, beta = kind(normals(4, 1).reshape(shape), dtype), kind(normals(4, 2).reshape(shape), dtype)
    _, cache = spatial_groupnorm_forward(kind(normals((2, 4, 3, 3)), dtype), gamma, beta, 2, {})
    _, dgamma, dbeta = spatial_groupnorm_backward(kind(np.ones((2, 4, 3, 3)), dtype), cache)
    kind.check(dgamma, dtype, shape)
    kind.check(dbeta, dtype, shape)
    kind.assert_close(dbeta, np.full(shape, 18.0))


def test_rmsnorm_divides_by_the_root_mean_square(kind, dtype):
    x = kind([[1.0, 7.0], [0.0, 0.0]], dtype)  # mean square 25 and 0
    out, _ = rmsnorm_forward(x, kind([2.0, 3.0], dtype), {"eps": 11.0})  # roots 6 and sqrt(11)
    kind.check(out, dtype, (2, 2))
    kind.assert_close(out, [[2 / 6, 21 / 6], [0.0, 0.0]], rtol=4 * EPS[dtype])


def test_numpy_scalars_among_the_settings_do_not_promote_float32(kind):
    x, gamma = kind(normals((3, 2)), "float32"), kind(np.ones(2), "float32")
    kind.check(layernorm_forward(x, gamma, gamma, {"eps": np.float64(1e-5)})[0], "float32")
    kind.check(rmsnorm_forward(x, gamma, {"eps": np.float64(1e-5)})[0], "float32")


@pytest.mark.parametrize(("x", "gamma", "beta"), [((2, 3), (2,), (3,)), ((2, 3), (3,), (2,)), ((2, 0), (0,), (0,))])
def test_shapes_that_do_not_fit_a_layernorm_are_reported(kind, x, gamma, beta):
    with pytest.raises(ValueError, match=r"^layernorm: expected x \(\.\.\., D\)") as error:
        layernorm_forward(kind(np.zeros(x)), kind(np.zeros(gamma)), kind(np.zeros(beta)), {})
    assert f"received x {x}, gamma {gamma} and beta {beta}" in str(error.value)


@pytest.mark.parametrize(
    ("x", "gamma", "beta"),
    [((2, 4), (4,), (4,)), ((2, 4, 3, 3), (3,), (4,)), ((2, 4, 3, 3), (4,), (4, 1, 1)), ((2, 4, 0, 3), (4,), (4,))],
)
def test_shapes_that_do_not_fit_a_groupnorm_are_reported(kind, x, gamma, beta):
    with pytest.raises(ValueError, match=r"^spatial_groupnorm: expected x \(N, C, H, W\)") as error:
        spatial_groupnorm_forward(kind(np.zeros(x)), kind(np.zeros(gamma)), kind(np.zeros(beta)), 2, {})
    assert f"received x {x}, gamma {gamma} and beta {beta}" in str(error.value)


@pytest.mark.parametrize("groups", [0, 3, 8, -2])
def test_groups_that_do_not_divide_the_channels_are_reported(kind, groups):
    with pytest.raises(ValueError, match=f"^spatial_groupnorm: expected G.*; received {groups}"):
        spatial_groupnorm_forward(kind(np.zeros((2, 4, 3, 3))), kind(np.ones(4)), kind(np.ones(4)), groups, {})


def test_shapes_that_do_not_fit_an_rmsnorm_are_reported(kind):
    with pytest.raises(ValueError, match=r"^rmsnorm: expected x \(\.\.\., D\).*received x \(2, 3\) and gamma \(2,\)"):
        rmsnorm_forward(kind(np.zeros((2, 3))), kind(np.zeros(2)), {})


def test_integers_are_refused(kind):
    ones = kind([1.0, 1.0])
    with pytest.raises(TypeError, match="layernorm: expected x of a floating-point dtype; received int64"):
        layernorm_forward(kind([[1, 2]], "int64"), ones, ones, {})
    with pytest.raises(TypeError, match="rmsnorm: expected x of a floating-point dtype; received int64"):
        rmsnorm_forward(kind([[1, 2]], "int64"), ones, {})


@pytest.mark.parametrize(
    ("net", "shape", "names"),
    [
        (LayerNorm, (3, 4), {"gamma": (4,), "beta": (4,)}),
        (lambda: GroupNorm(2), (4, 3, 2), {"gamma": (4,), "beta": (4,)}),
        (RMSNorm, (3, 4), {"gamma": (4,)}),
    ],
)
def test_the_layers_start_as_the_bare_normalization(kind, dtype, net, shape, names):
    model = Model(net(), shape, dtype=dtype, backend=kind.backend, rng=0)
    assert {name: tuple(array.shape) for name, array in model.params.items()} == names
    assert model.output_shape == shape
    out, cache = model.net.forward(kind(normals((2, *shape)), dtype), train=True)
    # a mean square of 1 but for eps, of which a variance above a tenth makes less than 1e-4
    mean_square = kind.to_numpy(out * out).mean()
    assert abs(mean_square - 1.0) < 1e-4
    dx, grads = model.net.backward(out, cache)
    kind.check(dx, dtype, (2, *shape))
    assert {name: tuple(grad.shape) for name, grad in grads.items()} == names


@pytest.mark.parametrize(
    ("net", "shape", "message"),
    [
        (LayerNorm(), (), r"^layernorm1: expected input of shape \(\.\.\., D\)"),
        (RMSNorm(), (3, 0), r"^rmsnorm1: expected input of shape \(\.\.\., D\)"),
        (GroupNorm(2), (4, 3), r"^groupnorm1: expected input of shape \(C, H, W\)"),
        (GroupNorm(3), (4, 3, 3), r"^groupnorm1: expected .* channels for 3 equal groups; received \(4, 3, 3\)"),
    ],
)
def test_an_input_that_does_not_fit_is_reported_when_the_net_is_built(net, shape, message):
    with pytest.raises(ValueError, match=message):
        Sequential(net).output_shape(shape)


@pytest.mark.parametrize("eps", [-1e-5, np.inf, np.nan])
def test_an_eps_that_is_negative_or_not_finite_is_refused(kind, eps):
    images, ones = kind(normals((2, 2, 1, 3))), kind(np.ones(2))
    for name, call in {
        "layernorm": lambda: layernorm_forward(kind(normals((3, 2))), ones, ones, {"eps": eps}),
        "spatial_groupnorm": lambda: spatial_groupnorm_forward(images, ones, ones, 1, {"eps": eps}),
        "rmsnorm": lambda: rmsnorm_forward(kind(normals((3, 2))), ones, {"eps": eps}),
    }.items():
        with pytest.raises(ValueError, match=f"^{name}: expected a finite eps >= 0; received"):
            call()


def test_impossible_settings_are_refused():
    for layer in (lambda **settings: GroupNorm(2, **settings), LayerNorm, RMSNorm):
        with pytest.raises(ValueError, match=r"^norm: expected a finite eps >= 0; received -1\.0"):
            layer(eps=-1.0, name="norm")
    with pytest.raises(ValueError, match=r"^groupnorm: expected groups, a whole number of at least 1, .*; received 0"):
        GroupNorm(0)
    with pytest.raises(ValueError, match=r"^groupnorm: expected groups, a whole number .*; received 2\.5"):
        GroupNorm(2.5)
