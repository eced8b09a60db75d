"""Batch normalization and Standardize."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oracles
from oracles import EPS, few_examples, normals
from xpnn import backend as backends
from xpnn.gradient_check import eval_numerical_gradient_array, rel_error
from xpnn.layers import BatchNorm, Sequential, Standardize, batchnorm_backward, batchnorm_forward
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


def test_standardize_subtracts_the_mean_and_divides_by_the_deviation(kind, dtype):
    net = Standardize(mean=[1.0, 2.0], std=4.0)
    model = Model(net, (2,), dtype=dtype, backend=kind.backend, rng=0)
    kind.check(model.loss(kind([[5.0, 0.0]], dtype)), dtype)
    kind.assert_close(model.loss(kind([[5.0, 0.0]], dtype)), [[1.0, -0.5]])
    kind.assert_close(net.backward(kind([[8.0, 4.0]], dtype), None)[0], [[2.0, 1.0]])


def test_standardize_is_saved_with_the_model(kind):
    model = Model(Standardize(mean=[1.0, 2.0], std=4.0), (2,), backend=kind.backend, rng=0)
    kind.assert_close(model.state_dict()["mean"], [1.0, 2.0])
    kind.assert_close(model.state_dict()["std"], [4.0, 4.0])
