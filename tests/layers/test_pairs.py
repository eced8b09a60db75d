"""What holds for every forward and backward pair of the layers: one table, walked."""

from typing import Any, NamedTuple

import numpy as np
import pytest

from oracles import EPS, normals
from xpnn import backend as backends
from xpnn import layers
from xpnn.gradient_check import eval_numerical_gradient_array, rel_error


class Pair(NamedTuple):
    forward: Any
    backward: Any
    shapes: tuple[tuple[int, ...], ...]  # of the arrays that forward takes
    zero: tuple[int, ...] = ()  # which of the gradients are zero in theory


def batchnorm(x, gamma, beta, mode="train"):
    statistics = {"running_mean": 0.25 * gamma, "running_var": 1.0 + gamma * gamma}
    return layers.batchnorm_forward(x, gamma, beta, {"mode": mode, **(statistics if mode == "test" else {})})


def spatial_batchnorm(x, gamma, beta):
    return layers.spatial_batchnorm_forward(x, gamma, beta, {"mode": "train"})


def layernorm(x, gamma, beta):
    return layers.layernorm_forward(x, gamma, beta, {})


def groupnorm(x, gamma, beta):
    return layers.spatial_groupnorm_forward(x, gamma, beta, 2, {})


def causal_attention(q, k, v):
    return layers.attention_forward(q, k, v, causal=True)


def multihead_attention(x, w_qkv, b_q, b_v, w_out, b_out):  # the bias of the keys has no effect
    b_qkv = backends.namespace(x).concat([b_q, 0.0 * b_q, b_v])
    return layers.multihead_attention_forward(x, w_qkv, b_qkv, w_out, b_out, 2)


def multihead_attention_backward(dout, cache):
    dx, dw_qkv, db_qkv, dw_out, db_out = layers.multihead_attention_backward(dout, cache)
    return dx, dw_qkv, db_qkv[:4], db_qkv[8:], dw_out, db_out


def embedding(w):
    return layers.embedding_forward(backends.of(w).asarray(np.asarray([[0, 2, 2], [4, 2, 0]])), w)


def conv(x, w, b):
    return layers.conv_forward(x, w, b, {"stride": (2, 1), "pad": (1, 2), "dilation": (1, 2), "groups": 2})


def max_pool(x):
    return layers.max_pool_forward(x, {"pool_height": 3, "pool_width": 2, "stride": (1, 2)})


def avg_pool(x):
    return layers.avg_pool_forward(x, {"pool_height": 3, "pool_width": 2, "stride": (1, 2)})


def conv_relu(x, w, b):
    return layers.conv_relu_forward(x, w, b, {"pad": 1})


def conv_relu_pool(x, w, b):
    return layers.conv_relu_pool_forward(x, w, b, {"pad": 1}, {"pool_height": 2, "pool_width": 2, "stride": 2})


def affine_batchnorm_relu(x, w, b, gamma, beta):
    return layers.affine_batchnorm_relu_forward(x, w, b, gamma, beta, {"mode": "train"})


def dropout(x, mode="train"):
    return layers.dropout_forward(x, {"p": 0.4, "mode": mode, "seed": 7})


PAIRS = {
    "affine": Pair(layers.affine_forward, layers.affine_backward, ((3, 2, 2), (4, 3), (3,))),
    "relu": Pair(layers.relu_forward, layers.relu_backward, ((3, 4),)),
    "leaky_relu": Pair(layers.leaky_relu_forward, layers.leaky_relu_backward, ((3, 4),)),
    "sigmoid": Pair(layers.sigmoid_forward, layers.sigmoid_backward, ((3, 4),)),
    "tanh": Pair(layers.tanh_forward, layers.tanh_backward, ((3, 4),)),
    "silu": Pair(layers.silu_forward, layers.silu_backward, ((3, 4),)),
    "gelu": Pair(layers.gelu_forward, layers.gelu_backward, ((3, 4),)),
    "gelu-tanh": Pair(lambda x: layers.gelu_forward(x, "tanh"), layers.gelu_backward, ((3, 4),)),
    "batchnorm": Pair(batchnorm, layers.batchnorm_backward, ((4, 3), (3,), (3,))),
    "spatial_batchnorm": Pair(spatial_batchnorm, layers.spatial_batchnorm_backward, ((2, 3, 2, 2), (3,), (3,))),
    "layernorm": Pair(layernorm, layers.layernorm_backward, ((2, 3, 5), (5,), (5,))),
    "spatial_groupnorm": Pair(groupnorm, layers.spatial_groupnorm_backward, ((2, 4, 2, 3), (1, 4, 1, 1), (1, 4, 1, 1))),
    "rmsnorm": Pair(lambda x, gamma: layers.rmsnorm_forward(x, gamma, {}), layers.rmsnorm_backward, ((2, 3, 4), (4,))),
    "linear": Pair(layers.linear_forward, layers.linear_backward, ((2, 3, 4), (4, 5), (5,))),
    "linear-without-bias": Pair(layers.linear_forward, lambda *a: layers.linear_backward(*a)[:2], ((2, 3, 4), (4, 5))),
    "attention": Pair(layers.attention_forward, layers.attention_backward, ((2, 2, 3, 4), (2, 2, 5, 4), (2, 2, 5, 3))),
    "attention-causal": Pair(causal_attention, layers.attention_backward, ((2, 3, 4), (2, 3, 4), (2, 3, 4))),
    "multihead_attention": Pair(
        multihead_attention,
        multihead_attention_backward,
        ((2, 3, 4), (4, 12), (4,), (4,), (4, 4), (4,)),
    ),
    "embedding": Pair(embedding, layers.embedding_backward, ((5, 3),)),
    "patch_embedding": Pair(
        layers.patch_embedding_forward, layers.patch_embedding_backward, ((2, 3, 4, 6), (5, 3, 2, 2), (5,))
    ),
    "conv": Pair(conv, layers.conv_backward, ((2, 4, 5, 4), (6, 2, 3, 2), (6,))),
    "max_pool": Pair(max_pool, layers.max_pool_backward, ((2, 3, 5, 4),)),
    "avg_pool": Pair(avg_pool, layers.avg_pool_backward, ((2, 3, 5, 4),)),
    "global_avg_pool": Pair(layers.global_avg_pool_forward, layers.global_avg_pool_backward, ((2, 3, 3, 2),)),
    "conv_relu": Pair(conv_relu, layers.conv_relu_backward, ((2, 2, 4, 4), (3, 2, 3, 3), (3,))),
    "conv_relu_pool": Pair(conv_relu_pool, layers.conv_relu_pool_backward, ((2, 2, 4, 4), (3, 2, 3, 3), (3,))),
    "dropout": Pair(dropout, layers.dropout_backward, ((4, 5),)),
    "dropout-test": Pair(lambda x: dropout(x, "test"), layers.dropout_backward, ((2, 3),)),
    "scale": Pair(lambda x: layers.scale_forward(x, -0.7), layers.scale_backward, ((3, 4),)),
    "flatten": Pair(layers.flatten_forward, layers.flatten_backward, ((2, 3, 2, 4),)),
    "positional_embedding": Pair(
        layers.positional_embedding_forward, layers.positional_embedding_backward, ((3, 2, 4), (2, 4))
    ),
    "token_mean": Pair(layers.token_mean_forward, layers.token_mean_backward, ((2, 3, 4),)),
    "affine_relu": Pair(layers.affine_relu_forward, layers.affine_relu_backward, ((3, 2, 2), (4, 3), (3,))),
    # The bias before a batch norm has no effect, so db is zero: relative to it every rounding is large.
    "affine_batchnorm_relu": Pair(
        affine_batchnorm_relu, layers.affine_batchnorm_relu_backward, ((4, 2, 2), (4, 3), (3,), (3,), (3,)), zero=(2,)
    ),
}

# What central differences with h = 1e-5 see of a gradient that is zero: the rounding of sums of about 10, over 2h.
NOISE = 1e-9


@pytest.fixture(params=PAIRS.values(), ids=PAIRS)
def pair(request):
    return request.param


def inputs_of(pair):
    return [normals(shape, seed, "float32") for seed, shape in enumerate(pair.shapes)]


def grads_of(pair, dout, cache):
    grads = pair.backward(dout, cache)
    return grads if isinstance(grads, tuple) else (grads,)


def test_gradients_agree_with_numerical_ones(pair, kind):
    arrays = inputs_of(pair)
    out, cache = pair.forward(*map(kind, arrays))
    dout = kind(normals(out.shape, 10))
    varied = [kind.writable(a) for a in arrays]
    for i, (grad, x) in enumerate(zip(grads_of(pair, dout, cache), varied, strict=True)):
        numerical = eval_numerical_gradient_array(lambda _: pair.forward(*varied)[0], x, dout)
        if i in pair.zero:
            kind.assert_close(grad, np.zeros(x.shape), atol=1e-15)  # a few roundings of numbers below 1
            kind.assert_close(numerical, np.zeros(x.shape), atol=NOISE)
        else:
            assert rel_error(grad, numerical) < 1e-7


def test_outputs_and_gradients_keep_kind_device_dtype_and_shape(pair, kind, dtype):
    out, cache = pair.forward(*(kind(a, dtype) for a in inputs_of(pair)))
    kind.check(out, dtype)
    grads = grads_of(pair, kind(np.ones(out.shape), dtype), cache)
    for grad, shape in zip(grads, pair.shapes, strict=True):
        kind.check(grad, dtype, shape)


def test_float32_agrees_with_float64(pair, kind):
    results = {}
    for dtype in ("float32", "float64"):
        out, cache = pair.forward(*(kind(a, dtype) for a in inputs_of(pair)))
        results[dtype] = [out, *grads_of(pair, kind(normals(out.shape, 10, "float32"), dtype), cache)]
    for single, double in zip(results["float32"], results["float64"], strict=True):
        # sums of a dozen numbers of size up to 5, with some fifty roundings on the way
        kind.assert_close(single, kind.to_numpy(double), atol=50 * 5 * EPS["float32"])


def test_inputs_are_not_modified(pair, kind, dtype):
    arrays = inputs_of(pair)
    given = [kind.writable(a, dtype) for a in arrays]
    out, cache = pair.forward(*given)
    dout = kind.writable(np.ones(out.shape), dtype)
    grads_of(pair, dout, cache)
    for array, expected in zip([*given, dout], [*arrays, np.ones(out.shape)], strict=True):
        kind.assert_close(array, expected)


def test_a_cache_serves_twice(pair, kind, dtype):
    out, cache = pair.forward(*(kind(a, dtype) for a in inputs_of(pair)))
    dout = kind(normals(out.shape, 10), dtype)
    first = [kind.to_numpy(grad).copy() for grad in grads_of(pair, dout, cache)]
    for again, expected in zip(grads_of(pair, dout, cache), first, strict=True):
        kind.assert_close(again, expected)


def transposed(kind, array, dtype):
    """The same numbers, with the axes in the opposite order in memory."""
    xp = kind.xp
    return xp.permute_dims(kind(np.transpose(array), dtype), tuple(reversed(range(array.ndim))))


def strided(kind, array, dtype):
    """The same numbers, with a gap after each in memory."""
    return kind(np.repeat(array, 2, axis=-1), dtype)[..., ::2]


@pytest.mark.parametrize("layout", [transposed, strided])
def test_inputs_need_not_be_contiguous(pair, kind, dtype, layout):
    arrays = inputs_of(pair)
    expected, cache = pair.forward(*(kind(a, dtype) for a in arrays))
    dout = normals(expected.shape, 10)
    expected = [expected, *grads_of(pair, kind(dout, dtype), cache)]
    out, cache = pair.forward(*(layout(kind, a, dtype) for a in arrays))
    results = [out, *grads_of(pair, layout(kind, dout, dtype), cache)]
    for result, truth in zip(results, expected, strict=True):
        kind.check(result, dtype)
        # another layout may add in another order: a dozen roundings of numbers up to 5
        kind.assert_close(result, kind.to_numpy(truth), atol=12 * 5 * EPS[dtype])


def test_a_change_of_the_input_after_forward_does_not_reach_the_output(kind, dtype):
    x = kind.writable(np.ones((2, 3)), dtype)
    out, _ = layers.affine_forward(x, kind(np.ones((3, 2)), dtype), kind(np.zeros(2), dtype))
    x[...] = 0.0
    kind.assert_close(out, np.full((2, 2), 3.0))


@pytest.mark.parametrize("name", [name for name in PAIRS if name != "dropout-test"])
def test_a_gradient_of_another_shape_is_refused(name, kind):
    pair = PAIRS[name]
    out, cache = pair.forward(*(kind(x) for x in inputs_of(pair)))
    with pytest.raises(ValueError, match=r"_backward: expected dout of shape .*, as out; received \(1, 2\)"):
        pair.backward(kind(np.ones((1, 2)), "float32"), cache)
    assert tuple(out.shape) != (1, 2)


@pytest.mark.parametrize("name", [name for name in PAIRS if name != "dropout-test"])
def test_a_gradient_of_another_kind_is_refused(name):
    strict = backends.get("array-api-strict")
    if not strict.is_available():
        pytest.skip(strict.reason)
    pair = PAIRS[name]
    out, cache = pair.forward(*inputs_of(pair))
    with pytest.raises(TypeError, match=r"expected dout and cache of one kind; received dout: array_api_strict"):
        pair.backward(strict.asarray(out), cache)
