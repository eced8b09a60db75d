"""Convolution: the course's published values, single numbers by hand, and what the layer refuses."""

import itertools

import numpy as np
import pytest

import oracles
from oracles import EPS, course_case, course_tolerance, normals
from xpnn import layers
from xpnn.backend import namespace
from xpnn.layers import Conv, Flatten, Sequential, conv_backward, conv_forward
from xpnn.layers.initializers import constant
from xpnn.models import Model


def test_the_published_values(kind, dtype):
    inputs, expected = course_case("conv_forward_naive")
    out, _ = conv_forward(*(kind(inputs[name], dtype) for name in "xwb"), {"stride": 2, "pad": 1})
    kind.check(out, dtype)
    # 48 products to a sum
    kind.assert_close(out, expected["out"], atol=course_tolerance(expected["out"], dtype) + 48 * EPS[dtype] * 0.15)


def test_it_is_a_correlation_and_turns_no_filter(kind, dtype):
    x = kind([[[[1.0, 2.0], [3.0, 4.0]]]], dtype)
    w = kind([[[[1.0, 10.0], [100.0, 1000.0]]]], dtype)
    out, _ = conv_forward(x, w, kind([0.5], dtype), {})
    kind.check(out, dtype, (1, 1, 1, 1))
    kind.assert_close(out, [[[[4321.5]]]])


SETTINGS = [
    # stride, pad, dilation, groups, kernel
    (1, 0, 1, 1, (1, 1)),
    (1, 1, 1, 1, (3, 3)),
    (2, 1, 1, 1, (3, 3)),
    ((2, 3), (0, 2), 1, 1, (2, 3)),
    (1, (2, 1), (2, 1), 1, (3, 2)),
    (1, 1, 1, 2, (3, 3)),
    ((1, 2), 0, (1, 2), 4, (2, 2)),
]


@pytest.mark.parametrize(("stride", "pad", "dilation", "groups", "kernel"), SETTINGS)
def test_each_number_is_the_sum_that_the_formula_says(kind, dtype, stride, pad, dilation, groups, kernel):
    x, w, b = normals((2, 4, 6, 7)), normals((8, 4 // groups, *kernel), 1), normals((8,), 2)
    expected = oracles.conv(x, w, b, stride, pad, dilation, groups)
    conv_param = {"stride": stride, "pad": pad, "dilation": dilation, "groups": groups}
    out, cache = conv_forward(kind(x, dtype), kind(w, dtype), kind(b, dtype), conv_param)
    kind.check(out, dtype, expected.shape)
    # inputs and some 40 products, each up to about 10, rounded
    kind.assert_close(out, expected, atol=40 * 10 * EPS[dtype])
    dout = normals(expected.shape, 3)
    grads = conv_backward(kind(dout, dtype), cache)
    for grad, truth in zip(grads, oracles.conv_grads(dout, x, w, stride, pad, dilation, groups), strict=True):
        kind.check(grad, dtype, truth.shape)
        kind.assert_close(grad, truth, atol=100 * 10 * EPS[dtype])


def test_without_a_bias_there_is_no_gradient_of_one(kind, dtype):
    x, w = kind(normals((2, 2, 3, 3)), dtype), kind(normals((3, 2, 2, 2), 1), dtype)
    out, cache = conv_forward(x, w, None, {})
    with_zeros, _ = conv_forward(x, w, kind(np.zeros(3), dtype), {})
    kind.assert_close(out, kind.to_numpy(with_zeros))
    assert conv_backward(out, cache)[2] is None


def test_whole_floats_will_do_for_stride_and_pad(kind):
    x, w, b = kind(normals((1, 1, 5, 5))), kind(normals((1, 1, 3, 3))), kind([1.0])
    out, _ = conv_forward(x, w, b, {"stride": 2.0, "pad": 1.0})
    expected, _ = conv_forward(x, w, b, {"stride": 2, "pad": 1})
    kind.assert_close(out, kind.to_numpy(expected))


def test_images_with_the_channels_last_in_memory_give_the_same(kind, dtype):
    x, w, b = normals((3, 4, 6, 5)), kind(normals((2, 4, 3, 3), 1), dtype), kind([1.0, 2.0], dtype)
    last = kind.xp.permute_dims(kind(np.ascontiguousarray(x.transpose(0, 2, 3, 1)), dtype), (0, 3, 1, 2))
    expected, first_cache = conv_forward(kind(x, dtype), w, b, {"pad": 1})
    out, last_cache = conv_forward(last, w, b, {"pad": 1})
    kind.assert_close(out, kind.to_numpy(expected), atol=36 * 10 * EPS[dtype])
    for a, b in zip(conv_backward(out, last_cache), conv_backward(out, first_cache), strict=True):
        kind.assert_close(a, kind.to_numpy(b), atol=90 * 30 * EPS[dtype])


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_gradients_are_written_into_the_arrays_that_were_lent(kind, dtype, kernel, groups):
    layer, window = Conv(4, kernel, groups=groups), (kernel, kernel)
    layer.params = {"W": kind(normals((4, 2 // groups, *window)), dtype), "b": kind(normals((4,)), dtype)}
    lent = {name: namespace(param).ones_like(param) for name, param in layer.params.items()}
    out, cache = layer.forward(kind(normals((3, 2, 5, 5)), dtype))
    dout = kind(normals(tuple(out.shape), seed=1), dtype)
    _, expected = layer.backward(dout, cache)
    layer.grads = dict(lent)
    _, grads = layer.backward(dout, cache)
    assert layer.grads == {}
    for name, grad in grads.items():
        assert grad is lent[name]
        kind.assert_close(grad, kind.to_numpy(expected[name]))


def test_a_batch_of_no_images_is_a_batch(kind, dtype):
    out, cache = conv_forward(kind(np.zeros((0, 2, 4, 4)), dtype), kind(np.ones((3, 2, 3, 3)), dtype), None, {"pad": 1})
    kind.check(out, dtype, (0, 3, 4, 4))
    dx, dw, _ = conv_backward(out, cache)
    kind.check(dx, dtype, (0, 2, 4, 4))
    kind.assert_close(dw, np.zeros((3, 2, 3, 3)))


@pytest.mark.parametrize(
    ("conv_param", "message"),
    [
        ({"stride": 0}, "conv: expected a stride of at least 1, one number or two.*; received 0"),
        ({"stride": 1.5}, "conv: expected a stride of at least 1, one number or two.*; received 1.5"),
        ({"pad": -1}, "conv: expected a pad of at least 0, one number or two.*; received -1"),
        ({"dilation": "2"}, "conv: expected a dilation of at least 1, one number or two.*; received '2'"),
        (
            {"stride": (1, 2, 3)},
            r"conv: expected a stride of at least 1, one number or two.*; received \(1, 2, 3\)",
        ),
        ({"groups": 0}, "conv: expected groups, a whole number of at least 1, .*; received 0"),
        ({"strides": 1}, "conv: expected a dict of stride, pad, dilation and groups; received 'strides'"),
        (
            {"groups": 2},
            r"conv: expected x \(N, C, H, W\) and w .*; received x \(2, 3, 4, 4\), w \(2, 3, 3, 3\) and gr",
        ),
        (
            {"dilation": 3},
            r"conv: expected a window no larger than the padded image \(4, 4\); received \(7, 7\)",
        ),
    ],
)
def test_impossible_settings_are_refused(kind, conv_param, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        conv_forward(kind(normals((2, 3, 4, 4))), kind(normals((2, 3, 3, 3))), kind([0.0, 0.0]), conv_param)


def test_shapes_that_do_not_fit_are_refused(kind):
    x, w = kind(normals((2, 3, 4, 4))), kind(normals((2, 3, 3, 3)))
    with pytest.raises(ValueError, match=r"conv: expected b of shape \(2,\); received \(3,\)"):
        conv_forward(x, w, kind(np.zeros(3)), {})
    for shape in [(2, 4, 3, 3), (2, 3, 3), (0, 3, 3, 3), (2, 3, 0, 3)]:
        with pytest.raises(ValueError, match=r"conv: expected x \(N, C, H, W\) and w \(F, C / groups, KH, KW\)"):
            conv_forward(x, kind(np.zeros(shape)), None, {})


def test_integers_are_refused(kind):
    with pytest.raises(TypeError, match="conv: expected x of a floating-point dtype; received int64"):
        conv_forward(kind(np.ones((1, 1, 2, 2), dtype="int64")), kind(np.ones((1, 1, 1, 1))), None, {})


def test_the_courses_other_names_are_the_same_function():
    for name in ("naive", "fast", "im2col", "strides"):
        assert getattr(layers, f"conv_forward_{name}") is conv_forward
        assert getattr(layers, f"conv_backward_{name}") is conv_backward


def test_the_layer_is_the_function_with_its_parameters(kind, dtype):
    layer = Conv(4, (3, 2), stride=2, pad=1, groups=2, bias_init=constant(0.5))
    model = Model(Sequential(layer, Flatten()), (2, 5, 6), dtype=dtype, backend=kind.backend, rng=0)
    assert model.params.shapes == {"conv1.W": (4, 1, 3, 2), "conv1.b": (4,)}
    assert layer.output_shape((2, 5, 6)) == (4, 3, 4)
    x = kind(normals((3, 2, 5, 6)), dtype)
    expected, _ = conv_forward(x, *model.params.values(), {"stride": 2, "pad": 1, "groups": 2})
    kind.assert_close(layer.forward(x)[0], kind.to_numpy(expected))
    assert layer.flops((2, 5, 6)) == 2 * (3 * 2) * (4 * 3 * 4)


def test_same_padding_keeps_the_size():
    for kernel, dilation in itertools.product([1, 3, (5, 3)], [1, 2]):
        assert Conv(2, kernel, pad="same", dilation=dilation).output_shape((1, 9, 11)) == (2, 9, 11)


def test_frozen_weights_are_state_and_get_no_gradient(kind, dtype):
    net = Sequential(Conv(2, 1, train_weights=False, name="whiten"), Flatten())
    model = Model(net, (3, 2, 2), dtype=dtype, backend=kind.backend, rng=0)
    assert list(model.params) == ["whiten.b"]
    assert list(model.state) == ["whiten.W"]
    x, y = kind(normals((4, 3, 2, 2)), dtype), kind(np.zeros(4), "int64")
    before = kind.to_numpy(model.state["whiten.W"]).copy()
    _, grads = model.loss(x, y)
    assert list(grads) == ["whiten.b"]
    kind.assert_close(model.state["whiten.W"], before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Conv(0, 3), "conv: expected filters, a whole number of at least 1, .*; received 0"),
        (lambda: Conv(3, 3, groups=2), "conv: expected filters, a multiple of groups 2; received 3"),
        (lambda: Conv(3, 3, groups=0), "conv: expected groups, a whole number of at least 1, .*; received 0"),
        (
            lambda: Conv(3, 0, name="stem"),
            "stem: expected a kernel of at least 1, one number or two.*; received 0",
        ),
        (lambda: Conv(3, 3, stride=0), "conv: expected a stride of at least 1, one number or two.*; received 0"),
        (lambda: Conv(3, 2, pad="same"), "conv: expected an odd window and a stride of 1 for pad 'same'; received a w"),
        (
            lambda: Conv(3, 3, pad="valid"),
            "conv: expected a pad of at least 0, one number or two.*; received 'valid'",
        ),
    ],
)
def test_an_impossible_layer_is_refused(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


def test_what_is_no_initializer_is_refused():
    with pytest.raises(TypeError, match=r"^stem: expected an initializer; received 0\.1"):
        Conv(3, 3, init=0.1, name="stem")


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Conv(2, 9), r"net\.conv1: expected a window no larger than the padded image \(8, 8\); received \(9, 9\)"),
        (
            Conv(2, 3, groups=2),
            r"net\.conv1: expected input of shape \(C, H, W\), C a multiple of 2; received \(3, 8, 8\)",
        ),
    ],
)
def test_images_that_do_not_fit_are_reported_when_the_net_is_built(layer, message):
    with pytest.raises(ValueError, match=message):
        Model(Sequential(layer, name="net"), (3, 8, 8))
    with pytest.raises(ValueError, match=r"conv: expected input of shape \(C, H, W\); received \(8,\)"):
        Conv(2, 3).output_shape((8,))
