"""Batch normalization, of vectors and of images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oracles
from oracles import EPS, few_examples, normals
from xpnn import backend as backends
from xpnn.gradient_check import eval_numerical_gradient_array, rel_error
from xpnn.layers import (
    BatchNorm,
    Sequential,
    batchnorm_backward,
    batchnorm_forward,
    spatial_batchnorm_backward,
    spatial_batchnorm_forward,
)
from xpnn.models import Model

# Sums over at most six examples, divided by a standard deviation that rarely is below a tenth; eps of the variance
# (1e-5) bounds the amplification of the rounding of x - mean by 1 / sqrt(1e-5) = 316.
AMPLIFIED_ROUNDINGS = 6 * 316


def ones_and_zeros(kind, dtype, d=2):
    return kind(np.ones(d), dtype), kind(np.zeros(d), dtype)


def test_train_mode_normalizes_by_the_biased_variance_of_the_batch(kind, dtype):
    x = kind([[1.0, 0.0], [3.0, 0.0]], dtype)  # mean 2 and 0; variance 1 and 0 with 1/N
    out, _ = batchnorm_forward(x, *ones_and_zeros(kind, dtype), {"mode": "train", "eps": 0.5625})  # 1.5625 = 1.25²
    kind.check(out, dtype, (2, 2))
    kind.assert_close(out, [[-0.8, 0.0], [0.8, 0.0]], rtol=2 * EPS[dtype])


def test_gamma_scales_and_beta_shifts_each_feature(kind, dtype):
    x = kind([[1.0, 1.0], [3.0, 3.0]], dtype)
    bn_param = {"mode": "train", "eps": 0.5625}
    out, _ = batchnorm_forward(x, kind([5.0, 10.0], dtype), kind([1.0, 2.0], dtype), bn_param)
    kind.assert_close(out, [[-3.0, -6.0], [5.0, 10.0]], rtol=4 * EPS[dtype])


def test_eps_is_1e_5_by_default(kind):
    x = kind([[0.0, 0.0], [0.002, 2.0]], "float64")  # variances 1e-6 and 1
    out, _ = batchnorm_forward(x, *ones_and_zeros(kind, "float64"), {"mode": "train"})
    kind.assert_close(out[1, :], [0.001 / 1.1e-5**0.5, 1.0 / 1.00001**0.5], rtol=8 * EPS["float64"])


def test_momentum_is_the_weight_of_the_old_running_value(kind, dtype):
    bn_param = {
        "mode": "train",
        "momentum": 0.75,
        "running_mean": kind([8.0, 4.0], dtype),
        "running_var": kind([4.0, 16.0], dtype),
    }
    batchnorm_forward(kind([[1.0, 0.0], [3.0, 8.0]], dtype), *ones_and_zeros(kind, dtype), bn_param)
    kind.assert_close(bn_param["running_mean"], [0.75 * 8 + 0.25 * 2, 0.75 * 4 + 0.25 * 4])
    kind.assert_close(bn_param["running_var"], [0.75 * 4 + 0.25 * 1, 0.75 * 16 + 0.25 * 16])


def test_momentum_is_0_9_and_running_statistics_start_at_zeros(kind, dtype):
    bn_param = {"mode": "train"}
    batchnorm_forward(kind([[1.0, 0.0], [3.0, 8.0]], dtype), *ones_and_zeros(kind, dtype), bn_param)
    for key, expected in (("running_mean", [0.2, 0.4]), ("running_var", [0.1, 1.6])):
        kind.check(bn_param[key], dtype, (2,))
        kind.assert_close(bn_param[key], expected, rtol=2 * EPS[dtype])


def test_running_statistics_are_averaged_over_the_batches(kind, dtype):
    bn_param, batches = {"mode": "train"}, [normals((5, 2), seed, dtype) for seed in range(3)]
    for x in batches:
        batchnorm_forward(kind(x, dtype), *ones_and_zeros(kind, dtype), bn_param)
    weights = [0.1 * 0.9**2, 0.1 * 0.9, 0.1]
    for key, statistic in (("running_mean", np.mean), ("running_var", np.var)):
        expected = sum(w * statistic(x, axis=0) for w, x in zip(weights, batches, strict=True))
        kind.assert_close(bn_param[key], expected, atol=8 * EPS[dtype])


def test_test_mode_uses_the_running_statistics_and_leaves_them(kind, dtype):
    mean, var = kind([1.0, 2.0], dtype), kind([0.4375, 3.4375], dtype)
    bn_param = {"mode": "test", "eps": 0.5625, "running_mean": mean, "running_var": var}  # deviations 1 and 2
    out, _ = batchnorm_forward(kind([[2.0, 6.0]], dtype), *ones_and_zeros(kind, dtype), bn_param)
    kind.check(out, dtype)
    kind.assert_close(out, [[1.0, 2.0]])
    assert bn_param["running_mean"] is mean
    assert bn_param["running_var"] is var


def test_test_mode_treats_each_example_by_itself(kind, dtype):
    bn_param = {"mode": "test", "running_mean": kind([1.0, 2.0], dtype), "running_var": kind([3.0, 4.0], dtype)}
    x, (gamma, beta) = kind(normals((4, 2)), dtype), ones_and_zeros(kind, dtype)
    together, _ = batchnorm_forward(x, gamma, beta, bn_param)
    alone, _ = batchnorm_forward(x[1:2, :], gamma, beta, bn_param)
    kind.assert_close(alone, kind.to_numpy(together)[1:2])


@pytest.mark.parametrize("mode", ["evaluate", None, "Train"])
def test_another_mode_is_refused(kind, mode):
    with pytest.raises(ValueError, match=f"batchnorm: expected mode 'train' or 'test'; received {mode!r}"):
        batchnorm_forward(kind([[1.0, 2.0]]), *ones_and_zeros(kind, "float64"), {"mode": mode})


def test_the_mode_is_required(kind):
    with pytest.raises(ValueError, match="batchnorm: expected mode"):
        batchnorm_forward(kind([[1.0, 2.0]]), *ones_and_zeros(kind, "float64"), {})


def test_a_batch_of_one_gives_beta_and_no_gradient_by_x(kind, dtype):
    gamma, beta = kind([2.0, 3.0], dtype), kind([5.0, 7.0], dtype)
    out, cache = batchnorm_forward(kind([[1.5, -4.0]], dtype), gamma, beta, {"mode": "train"})
    kind.assert_close(out, [[5.0, 7.0]])
    kind.assert_close(batchnorm_backward(kind([[1.0, 2.0]], dtype), cache)[0], [[0.0, 0.0]])


def test_a_batch_of_none_has_no_statistics(kind):
    with pytest.raises(ValueError, match="batchnorm: expected at least one example"):
        batchnorm_forward(kind(np.zeros((0, 2))), *ones_and_zeros(kind, "float64"), {"mode": "train"})


def test_a_feature_that_never_varies_gives_beta(kind, dtype):
    out, _ = batchnorm_forward(
        kind(np.full((3, 1), 7.0), dtype), kind([2.0], dtype), kind([0.5], dtype), {"mode": "train"}
    )
    kind.assert_close(out, np.full((3, 1), 0.5))


def test_a_large_mean_does_not_cancel_the_variance(kind):
    x = kind([[4096.0], [4097.0]], "float32")  # the variance, 1/4, is lost in float32 as E[x²] - E[x]²
    bn_param = {"mode": "train"}
    batchnorm_forward(x, kind([1.0], "float32"), kind([0.0], "float32"), bn_param)
    kind.assert_close(bn_param["running_var"], [0.025], rtol=2 * EPS["float32"])


def test_numpy_scalars_among_the_settings_do_not_promote_float32(kind):
    bn_param = {"mode": "train", "eps": np.float64(1e-5), "momentum": np.float64(0.9)}
    out, cache = batchnorm_forward(kind(normals((3, 2)), "float32"), *ones_and_zeros(kind, "float32"), bn_param)
    for array in (out, *batchnorm_backward(out, cache), bn_param["running_mean"], bn_param["running_var"]):
        kind.check(array, "float32")


def test_settings_in_the_dict_stay_as_the_caller_wrote_them(kind):
    bn_param = {"mode": "train", "eps": 1e-3, "momentum": 0.5}
    batchnorm_forward(kind([[1.0, 2.0]]), *ones_and_zeros(kind, "float64"), bn_param)
    assert {key: bn_param[key] for key in ("mode", "eps", "momentum")} == {
        "mode": "train",
        "eps": 1e-3,
        "momentum": 0.5,
    }


def test_the_cache_keeps_its_meaning_when_the_mode_changes_later(kind, dtype):
    bn_param, dout = {"mode": "train"}, kind(normals((4, 2), 1), dtype)
    _, cache = batchnorm_forward(kind(normals((4, 2)), dtype), *ones_and_zeros(kind, dtype), bn_param)
    before = [kind.to_numpy(grad).copy() for grad in batchnorm_backward(dout, cache)]
    bn_param["mode"] = "test"
    for grad, expected in zip(batchnorm_backward(dout, cache), before, strict=True):
        kind.assert_close(grad, expected)


@few_examples
@given(n=st.integers(1, 6), d=st.integers(1, 5), seed=st.integers(0, 99))
def test_train_mode_agrees_with_the_chain_rule_of_the_paper(kind, dtype, n, d, seed):
    x, dout = normals((n, d), seed, dtype), normals((n, d), seed + 1, dtype)
    gamma, beta = normals(d, seed + 2, dtype), normals(d, seed + 3, dtype)
    out, cache = batchnorm_forward(kind(x, dtype), kind(gamma, dtype), kind(beta, dtype), {"mode": "train"})
    atol = AMPLIFIED_ROUNDINGS * EPS[dtype]
    kind.assert_close(out, oracles.batchnorm(x, gamma, beta, x.mean(0), x.var(0)), atol=atol)
    scale = 1 + np.max(1 / np.sqrt(x.var(0) + 1e-5))  # dx carries 1 / deviation once more
    grads = batchnorm_backward(kind(dout, dtype), cache)
    for grad, expected in zip(grads, oracles.batchnorm_grads(dout, x, gamma), strict=True):
        kind.check(grad, dtype, expected.shape)
        kind.assert_close(grad, expected, atol=scale * atol)


def test_test_mode_gradients_are_those_of_an_affine_map(kind):
    statistics = {"running_mean": kind(normals(3, 4)), "running_var": kind(1.0 + normals(3, 5) ** 2)}

    def forward(x, gamma, beta):
        return batchnorm_forward(x, gamma, beta, {"mode": "test", **statistics})

    arrays = [normals((4, 3)), normals(3, 1), normals(3, 2)]
    dout = kind(normals((4, 3), 3))
    grads = batchnorm_backward(dout, forward(*map(kind, arrays))[1])
    varied = [kind.writable(a) for a in arrays]
    for grad, x in zip(grads, varied, strict=True):
        numerical = eval_numerical_gradient_array(lambda _: forward(*varied)[0], x, dout)
        assert rel_error(grad, numerical) < 1e-7


@pytest.mark.parametrize(("x", "gamma", "beta"), [((2, 3), (2,), (3,)), ((2, 3), (3,), (2,)), ((2, 3, 4), (3,), (3,))])
def test_shapes_that_do_not_fit_are_reported(kind, x, gamma, beta):
    with pytest.raises(ValueError, match=r"batchnorm: expected x \(N, D\), gamma \(D,\) and beta \(D,\)") as error:
        batchnorm_forward(kind(np.zeros(x)), kind(np.zeros(gamma)), kind(np.zeros(beta)), {"mode": "train"})
    assert f"received x {x}, gamma {gamma} and beta {beta}" in str(error.value)


def test_integers_are_refused(kind):
    with pytest.raises(TypeError, match="batchnorm: expected x of a floating-point dtype; received int64"):
        batchnorm_forward(kind([[1, 2]], "int64"), *ones_and_zeros(kind, "float64"), {"mode": "train"})


@pytest.mark.parametrize("other", ["torch", "array-api-strict"])
def test_kinds_that_mix_are_refused_and_each_is_named(other):
    backend = backends.get(other)
    if not backend.is_available():
        pytest.skip(backend.reason)
    message = (
        rf"^batchnorm: expected x, gamma and beta of one kind; received x: numpy\.ndarray, gamma: {backend.package}"
    )
    with pytest.raises(TypeError, match=message):
        batchnorm_forward(np.ones((2, 1)), backend.zeros((1,), "float64"), np.ones(1), {"mode": "train"})


def test_the_layer_keeps_running_statistics_as_state_from_the_start(kind, dtype):
    model = Model(Sequential(BatchNorm()), (3,), dtype=dtype, backend=kind.backend, rng=0)
    assert sorted(model.state) == ["batchnorm1.running_mean", "batchnorm1.running_var"]
    for array in model.state.values():
        kind.check(array, dtype, (3,))
        kind.assert_close(array, np.zeros(3))


def test_running_var_follows_the_unbiased_variance_where_asked(kind, dtype):
    bn_param = {"mode": "train", "momentum": 0.75, "unbiased": True, "eps": 0.5625}
    x = kind([[1.0, 0.0], [3.0, 0.0]], dtype)  # the variance of the first is 1 with 1/N, 2 with 1/(N - 1)
    out, _ = batchnorm_forward(x, *ones_and_zeros(kind, dtype), bn_param)
    kind.assert_close(bn_param["running_var"], [0.5, 0.0])
    kind.assert_close(out, [[-0.8, 0.0], [0.8, 0.0]], rtol=2 * EPS[dtype])  # normalized by the biased one still


def test_an_unbiased_variance_needs_two_values(kind):
    with pytest.raises(ValueError, match="batchnorm: expected at least two values to take an unbiased variance of"):
        batchnorm_forward(kind([[1.0, 2.0]]), *ones_and_zeros(kind, "float64"), {"mode": "train", "unbiased": True})


def test_the_mean_of_many_examples_is_exact(kind):
    x = kind(np.full((2**18, 2), 0.1), "float32")  # added one by one in float32, they would average to 0.0998
    bn_param = {"mode": "train", "momentum": 0.0}
    _, cache = batchnorm_forward(x, *ones_and_zeros(kind, "float32"), bn_param)
    _, _, dbeta = batchnorm_backward(x, cache)
    rtol = (256 + 1024) * EPS["float32"]  # 256 are added, then 1024 such sums
    kind.assert_close(bn_param["running_mean"], [0.1, 0.1], rtol=rtol)
    kind.assert_close(dbeta, [0.1 * 2**18] * 2, rtol=rtol)


@pytest.mark.parametrize("mode", ["train", "test"])
def test_images_are_normalized_as_vectors_of_channels(kind, dtype, mode):
    x, dout = normals((3, 2, 4, 5), 0, dtype), normals((3, 2, 4, 5), 1, dtype)
    gamma, beta = kind(normals(2, 2), dtype), kind(normals(2, 3), dtype)
    rows = [np.moveaxis(a, 1, -1).reshape(-1, 2) for a in (x, dout)]
    bn_params = [{"mode": mode, "running_mean": kind([1.0, 2.0], dtype), "running_var": kind([3.0, 4.0], dtype)}] * 2
    expected, row_cache = batchnorm_forward(kind(rows[0], dtype), gamma, beta, bn_params[0].copy())
    out, cache = spatial_batchnorm_forward(kind(x, dtype), gamma, beta, bn_params[1].copy())
    kind.check(out, dtype, x.shape)
    kind.assert_close(out, images(kind.to_numpy(expected), x.shape))
    dx, *grads = batchnorm_backward(kind(rows[1], dtype), row_cache)
    spatial_dx, *spatial_grads = spatial_batchnorm_backward(kind(dout, dtype), cache)
    kind.assert_close(spatial_dx, images(kind.to_numpy(dx), x.shape))
    for grad, truth in zip(spatial_grads, grads, strict=True):
        kind.assert_close(grad, kind.to_numpy(truth))


def images(rows, shape):
    n, c, h, w = shape
    return np.moveaxis(rows.reshape(n, h, w, c), -1, 1)


def test_each_channel_of_images_has_mean_beta_and_deviation_gamma(kind, dtype):
    x = 4.0 * normals((2, 3, 4, 5), 0, dtype) + 10.0
    gamma, beta = np.array([3.0, 4.0, 5.0]), np.array([6.0, 7.0, 8.0])
    out, _ = spatial_batchnorm_forward(
        kind(x, dtype), kind(gamma, dtype), kind(beta, dtype), {"mode": "train", "eps": 0.0}
    )
    # sums of 40 numbers up to 8 + 3 * 5
    kind.assert_close(kind.xp.mean(out, axis=(0, 2, 3)), beta, atol=40 * 23 * EPS[dtype])
    kind.assert_close(kind.xp.std(out, axis=(0, 2, 3)), gamma, atol=40 * 23 * EPS[dtype])


@pytest.mark.parametrize(
    ("x", "gamma", "beta"), [((2, 3), (3,), (3,)), ((2, 3, 4, 5), (2,), (3,)), ((2, 3, 4, 5), (3,), (1, 3, 1, 1))]
)
def test_images_that_do_not_fit_are_reported(kind, x, gamma, beta):
    with pytest.raises(ValueError, match=r"^spatial_batchnorm: expected x \(N, C, H, W\), gamma \(C,\)") as error:
        spatial_batchnorm_forward(kind(np.zeros(x)), kind(np.zeros(gamma)), kind(np.zeros(beta)), {"mode": "train"})
    assert f"received x {x}, gamma {gamma} and beta {beta}" in str(error.value)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2, 2)])
def test_the_layer_takes_vectors_and_images_by_its_input_shape(kind, dtype, shape):
    net = BatchNorm()
    model = Model(net, shape[1:], dtype=dtype, backend=kind.backend, rng=0)
    assert {name: tuple(array.shape) for name, array in model.state_dict().items()} == {
        "gamma": (3,),
        "beta": (3,),
        "running_mean": (3,),
        "running_var": (3,),
    }
    out, cache = net.forward(kind(normals(shape), dtype), train=True)
    dx, grads = net.backward(kind(np.ones(shape), dtype), cache)
    kind.check(out, dtype, shape)
    kind.check(dx, dtype, shape)
    kind.assert_close(grads["beta"], np.full(3, np.prod(shape) / 3))


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2, 2)])
@pytest.mark.parametrize("input_grad", [False, True])
def test_gradients_are_written_into_what_is_lent_for_them_but_once(kind, dtype, shape, input_grad):
    net = BatchNorm()
    Model(net, shape[1:], dtype=dtype, backend=kind.backend, rng=0)
    _, cache = net.forward(kind(normals(shape), dtype), train=True)
    dout = kind(normals(shape, 1), dtype)
    _, expected = net.backward(dout, cache, input_grad)
    lent = {key: kind.writable(np.zeros(3), dtype) for key in ("gamma", "beta")}
    net.grads = dict(lent)
    _, first = net.backward(dout, cache, input_grad)
    _, second = net.backward(dout, cache, input_grad)
    assert net.grads == {}
    for key, truth in expected.items():
        assert first[key] is lent[key]
        assert second[key] is not lent[key]
        for grad in (first[key], second[key]):
            kind.assert_close(grad, kind.to_numpy(truth))


@pytest.mark.parametrize(
    ("settings", "params"), [({"scale": False}, ["beta"]), ({"center": False}, ["gamma"]), (None, [])]
)
def test_what_is_not_learned_is_state(kind, dtype, settings, params):
    net = BatchNorm(**({"scale": False, "center": False} if settings is None else settings))
    model = Model(net, (3,), dtype=dtype, backend=kind.backend, rng=0)
    assert list(model.params) == params
    assert model.state_dict().keys() == {"gamma", "beta", "running_mean", "running_var"}
    kind.assert_close(model.state_dict()["gamma"], np.ones(3))
    kind.assert_close(model.state_dict()["beta"], np.zeros(3))
    x, dout = kind(normals((5, 3)), dtype), kind(normals((5, 3), 1), dtype)
    out, cache = net.forward(x, train=True)
    expected, full_cache = batchnorm_forward(x, *ones_and_zeros(kind, dtype, 3), {"mode": "train"})
    kind.assert_close(out, kind.to_numpy(expected))
    dx, grads = net.backward(dout, cache)
    assert list(grads) == params
    kind.assert_close(dx, kind.to_numpy(batchnorm_backward(dout, full_cache)[0]))


def test_what_is_not_learned_may_come_from_a_checkpoint(kind, dtype):
    net = BatchNorm(scale=False)
    model = Model(net, (2,), dtype=dtype, backend=kind.backend, rng=0)
    model.load_state_dict(model.state_dict() | {"gamma": kind([2.0, 3.0], dtype), "running_var": kind([1.0, 1.0])})
    out, _ = net.forward(kind([[1.0, 1.0]], dtype))
    kind.assert_close(out, [[2.0, 3.0]], rtol=1e-5)  # eps is 1e-5, half of which is seen


def test_an_input_that_is_no_vector_and_no_image_is_reported():
    with pytest.raises(ValueError, match=r"^norm: expected input of shape \(D,\) or \(C, H, W\); received \(3, 4\)"):
        BatchNorm(name="norm").output_shape((3, 4))


@pytest.mark.parametrize("settings", [{"eps": -1.0}, {"eps": float("nan")}, {"momentum": 1.5}, {"momentum": -0.1}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match=r"^norm: expected (a finite eps >= 0|momentum in \[0, 1\]); received"):
        BatchNorm(name="norm", **settings)


@pytest.mark.parametrize(("setting", "value"), [("eps", -1.0), ("eps", float("nan")), ("momentum", 5.0)])
def test_impossible_settings_are_refused_by_the_function_too(setting, value):
    x, vector = np.ones((2, 3)), np.ones(3)
    with pytest.raises(ValueError, match=r"^batchnorm: expected (a finite eps >= 0|momentum in \[0, 1\]); received"):
        batchnorm_forward(x, vector, vector, {"mode": "train", setting: value})
