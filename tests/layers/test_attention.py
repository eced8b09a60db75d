"""Attention."""

import math

import numpy as np
import pytest

from oracles import EPS, normals
from xpnn.layers import (
    MultiHeadAttention,
    Sequential,
    attention_backward,
    attention_forward,
    multihead_attention_backward,
    multihead_attention_forward,
)
from xpnn.models import Model


def test_a_query_takes_the_values_of_the_keys_that_it_fits(kind, dtype):
    q, k, v = [[2.0, 0.0]], [[math.log(3.0) / 2**0.5, 5.0], [0.0, -7.0]], [[4.0, 0.0, 8.0], [0.0, 4.0, 8.0]]
    out, _ = attention_forward(kind(q, dtype), kind(k, dtype), kind(v, dtype))  # scores ln 3 and 0: weights 3/4, 1/4
    kind.check(out, dtype, (1, 3))
    kind.assert_close(out, [[3.0, 1.0, 8.0]], rtol=8 * EPS[dtype])


def test_queries_that_fit_all_keys_alike_take_the_mean(kind, dtype):
    out, cache = attention_forward(kind(np.zeros((2, 4)), dtype), kind(normals((3, 4)), dtype), kind(np.eye(3), dtype))
    kind.assert_close(out, np.full((2, 3), 1 / 3), rtol=2 * EPS[dtype])
    _, _, dv = attention_backward(kind(np.ones((2, 3)), dtype), cache)
    kind.assert_close(dv, np.full((3, 3), 2 / 3), rtol=4 * EPS[dtype])


def test_large_scores_do_not_overflow(kind, dtype):
    q = kind([[1e4, 0.0]], dtype)
    out, cache = attention_forward(q, kind([[1e4, 0.0], [-1e4, 0.0]], dtype), kind([[1.0], [2.0]], dtype))
    kind.assert_close(out, [[1.0]])
    for grad in attention_backward(kind([[1.0]], dtype), cache):
        assert np.isfinite(kind.to_numpy(grad)).all()


def test_a_causal_token_sees_none_that_comes_later(kind, dtype):
    q, k, v = (kind(normals((2, 4, 3), seed), dtype) for seed in range(3))
    out, cache = attention_forward(q, k, v, causal=True)
    for t in range(4):
        seen, _ = attention_forward(q[:, t : t + 1, :], k[:, : t + 1, :], v[:, : t + 1, :])
        # sums of up to four numbers below 5, in another order
        kind.assert_close(out[:, t : t + 1, :], kind.to_numpy(seen), atol=4 * 5 * EPS[dtype])
    dout = np.zeros((2, 4, 3))
    dout[:, 1] = 1.0
    for grad in attention_backward(kind(dout, dtype), cache)[1:]:
        kind.assert_close(grad[:, 2:, :], np.zeros((2, 2, 3)))


def test_a_causal_mask_needs_as_many_keys_as_queries(kind):
    q, k = kind(np.zeros((2, 3))), kind(np.zeros((4, 3)))
    with pytest.raises(ValueError, match="attention: expected as many keys as queries .*; received 4 and 2"):
        attention_forward(q, k, k, causal=True)


@pytest.mark.parametrize(
    ("q", "k", "v"),
    [
        ((2, 3), (4, 5), (4, 3)),
        ((2, 3), (4, 3), (5, 3)),
        ((6, 2, 3), (4, 3), (4, 3)),
        ((3,), (4, 3), (4, 3)),
        ((2, 3), (0, 3), (0, 3)),
    ],
)
def test_shapes_that_do_not_fit_are_reported(kind, q, k, v):
    with pytest.raises(ValueError, match=r"^attention: expected q \(\.\.\., T, D\)") as error:
        attention_forward(kind(np.zeros(q)), kind(np.zeros(k)), kind(np.zeros(v)))
    assert f"received q {q}, k {k} and v {v}" in str(error.value)


def parameters(kind, dtype, d=4):
    return [kind(normals(shape, i, dtype), dtype) for i, shape in enumerate([(d, 3 * d), (3 * d,), (d, d), (d,)], 1)]


@pytest.mark.parametrize("causal", [False, True])
def test_heads_attend_each_to_its_own_features(kind, dtype, causal):
    x = kind(normals((2, 3, 4)), dtype)
    w_qkv, b_qkv, w_out, b_out = parameters(kind, dtype)
    out, _ = multihead_attention_forward(x, w_qkv, b_qkv, w_out, b_out, 2, causal)
    kind.check(out, dtype, (2, 3, 4))
    projected = kind.xp.matmul(x, w_qkv) + b_qkv
    expected = kind.to_numpy(b_out) + np.zeros((2, 3, 4))
    for start in (0, 2):
        q, k, v = (projected[:, :, i + start : i + start + 2] for i in (0, 4, 8))
        seen, _ = attention_forward(q, k, v, causal)
        expected = expected + kind.to_numpy(kind.xp.matmul(seen, w_out[start : start + 2, :]))
    # sums of four products of numbers up to 3 * 10, in another order
    kind.assert_close(out, expected, atol=4 * 4 * 30 * EPS[dtype])


def test_the_bias_of_the_keys_has_no_effect(kind, dtype):
    x = kind(normals((2, 3, 4)), dtype)
    _, cache = multihead_attention_forward(x, *parameters(kind, dtype), 2)
    _, _, db_qkv, _, _ = multihead_attention_backward(kind(normals((2, 3, 4), 9), dtype), cache)
    # it adds the same to all scores of a query, which softmax takes away: what is left are roundings of the sum of
    # 18 terms of size up to 30 for each of the 4
    kind.assert_close(db_qkv[4:8], np.zeros(4), atol=18 * 30 * EPS[dtype])


@pytest.mark.parametrize("heads", [0, 3, 8])
def test_heads_that_do_not_divide_the_features_are_reported(kind, heads):
    with pytest.raises(ValueError, match=f"^multihead_attention: expected num_heads.*; received {heads}"):
        multihead_attention_forward(kind(np.zeros((2, 3, 4))), *parameters(kind, "float64"), heads)


@pytest.mark.parametrize("shape", [(2, 3, 5), (3, 4), (2, 0, 4)])
def test_tokens_that_do_not_fit_the_parameters_are_reported(kind, shape):
    with pytest.raises(ValueError, match=r"^multihead_attention: expected x \(N, T, D\).*received x") as error:
        multihead_attention_forward(kind(np.zeros(shape)), *parameters(kind, "float64"), 2)
    assert f"received x {shape}, w_qkv (4, 12), b_qkv (12,), w_out (4, 4), b_out (4,)" in str(error.value)


def test_the_layer_is_its_function_with_named_parameters(kind, dtype):
    net = MultiHeadAttention(2, causal=True)
    model = Model(net, (3, 4), dtype=dtype, backend=kind.backend, rng=0)
    assert list(model.params) == ["W_qkv", "b_qkv", "W_out", "b_out"]
    model.params = dict(zip(model.params, parameters(kind, dtype), strict=True))
    x = kind(normals((2, 3, 4)), dtype)
    expected, expected_cache = multihead_attention_forward(x, *parameters(kind, dtype), 2, causal=True)
    out, cache = net.forward(x, train=True)
    kind.assert_close(out, kind.to_numpy(expected))
    dx, grads = net.backward(out, cache)
    truths = multihead_attention_backward(out, expected_cache)
    for grad, truth in zip([dx, *(grads[name] for name in model.params)], truths, strict=True):
        kind.assert_close(grad, kind.to_numpy(truth))


def test_two_flops_for_each_product_of_an_example():
    t, d, heads = 5, 8, 2
    projections = 2 * t * d * (3 * d + d)
    scores_and_values = heads * 2 * (2 * t * t * (d // heads))
    assert MultiHeadAttention(heads).flops((t, d)) == projections + scores_and_values


@pytest.mark.parametrize("shape", [(4,), (3, 5), (0, 4), (2, 3, 4)])
def test_an_input_that_does_not_fit_is_reported_when_the_net_is_built(shape):
    message = r"^multiheadattention1: expected input of shape \(T, D\) with features for 2 equal heads; received"
    with pytest.raises(ValueError, match=message):
        Sequential(MultiHeadAttention(2)).output_shape(shape)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"^mix: expected heads, a whole number of at least 1, .*; received 0"):
        MultiHeadAttention(0, name="mix")
    with pytest.raises(TypeError, match=r"^mix: expected an initializer; received 0\.02"):
        MultiHeadAttention(2, init=0.02, name="mix")
