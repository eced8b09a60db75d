"""Activations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

import oracles
from layouts import LAYOUTS, MANY
from oracles import EPS, course_case, course_tolerance, few_examples, normals
from xpnn import kernels, layers
from xpnn.layers import (
    gelu_backward,
    gelu_forward,
    leaky_relu_backward,
    leaky_relu_forward,
    relu_backward,
    relu_forward,
)
from xpnn.layers.activation import gelu_and_slope


def test_relu_gives_the_values_that_the_course_published(kind, dtype):
    inputs, expected = course_case("relu_forward")
    out, _ = relu_forward(kind(inputs["x"], dtype))
    kind.check(out, dtype)
    kind.assert_close(out, expected["out"], atol=course_tolerance(expected["out"], dtype))


def test_relu_keeps_the_positive_and_zeroes_the_rest(kind, dtype):
    out, _ = relu_forward(kind([-2.0, -0.0, 0.0, 3.0, np.inf, -np.inf], dtype))
    kind.assert_close(out, [0.0, 0.0, 0.0, 3.0, np.inf, 0.0])


def test_relu_lets_nan_pass(kind, dtype):
    out, _ = relu_forward(kind([np.nan, 1.0], dtype))
    kind.assert_close(out, [np.nan, 1.0])


def test_relu_gradient_is_zero_at_exactly_zero(kind, dtype):
    _, cache = relu_forward(kind([-1.0, 0.0, 1.0], dtype))
    dx = relu_backward(kind([10.0, 20.0, 30.0], dtype), cache)
    kind.check(dx, dtype, (3,))
    kind.assert_close(dx, [0.0, 0.0, 30.0])


def test_relu_gradient_is_zero_where_x_is_negative_whatever_comes_from_above(kind, dtype):
    _, cache = relu_forward(kind([-1.0, 0.0, 1.0], dtype))
    kind.assert_close(relu_backward(kind([np.inf, np.nan, np.inf], dtype), cache), [0.0, 0.0, np.inf])


@few_examples
@given(x=hnp.arrays("float32", hnp.array_shapes(min_dims=0, min_side=0), elements=hnp.from_dtype(np.dtype("float32"))))
def test_relu_takes_any_shape(kind, dtype, x):
    out, cache = relu_forward(kind(x, dtype))
    kind.check(out, dtype, x.shape)
    kind.assert_close(out, np.where(np.isnan(x), np.nan, oracles.relu(x)))
    kind.assert_close(relu_backward(kind(np.ones(x.shape), dtype), cache), x > 0)


def test_relu_refuses_integers(kind):
    with pytest.raises(TypeError, match="relu: expected x of a floating-point dtype; received int32"):
        relu_forward(kind([1, 2], "int32"))


def test_relu_refuses_what_is_no_array():
    with pytest.raises(TypeError, match="relu: expected x to be an array of numpy, .*; received list"):
        relu_forward([1.0])


def test_leaky_relu_by_hand(kind, dtype):
    out, cache = leaky_relu_forward(kind([-2.0, 0.0, 3.0, np.inf, -np.inf, np.nan], dtype), negative_slope=0.25)
    kind.assert_close(out, [-0.5, 0.0, 3.0, np.inf, -np.inf, np.nan])
    dx = leaky_relu_backward(kind([4.0, 4.0, 4.0, 4.0, 4.0, 4.0], dtype), cache)
    kind.assert_close(dx, [1.0, 1.0, 4.0, 4.0, 1.0, 1.0])


def test_leaky_relu_leaks_a_hundredth_unless_told_otherwise(kind, dtype):
    out, _ = leaky_relu_forward(kind([-1.0], dtype))
    kind.assert_close(out, [-0.01], rtol=EPS[dtype])


def test_leaky_relu_without_a_leak_is_relu(kind, dtype):
    x = kind([-1.0, 0.0, np.inf], dtype)
    out, cache = leaky_relu_forward(x, 0.0)
    kind.assert_close(out, [0.0, 0.0, np.inf])
    kind.assert_close(leaky_relu_backward(kind([1.0, 1.0, 1.0], dtype), cache), [0.0, 0.0, 1.0])


def test_sigmoid_by_hand(kind, dtype):
    out, cache = layers.sigmoid_forward(kind([0.0, np.log(3.0), -np.log(3.0)], dtype))
    kind.assert_close(out, [1 / 2, 3 / 4, 1 / 4], rtol=4 * EPS[dtype])
    dx = layers.sigmoid_backward(kind([1.0, 2.0, 4.0], dtype), cache)
    kind.assert_close(dx, [1 / 4, 3 / 8, 3 / 4], rtol=8 * EPS[dtype])


def test_tanh_by_hand(kind, dtype):
    out, cache = layers.tanh_forward(kind([0.0, np.log(2.0), -np.log(2.0)], dtype))
    kind.assert_close(out, [0.0, 3 / 5, -3 / 5], rtol=4 * EPS[dtype])
    dx = layers.tanh_backward(kind([1.0, 1.0, 2.0], dtype), cache)
    kind.assert_close(dx, [1.0, 16 / 25, 32 / 25], rtol=8 * EPS[dtype])


def test_silu_by_hand(kind, dtype):
    out, cache = layers.silu_forward(kind([0.0, np.log(3.0), -np.log(3.0)], dtype))
    kind.assert_close(out, np.log(3.0) * np.array([0.0, 3 / 4, -1 / 4]), rtol=4 * EPS[dtype])
    expected = [1 / 2, 3 / 4 + np.log(3.0) * 3 / 16, 1 / 4 - np.log(3.0) * 3 / 16]
    kind.assert_close(layers.silu_backward(kind([1.0, 1.0, 1.0], dtype), cache), expected, rtol=16 * EPS[dtype])


def test_gelu_is_x_times_the_share_of_a_normal_variable_below_x(kind, dtype):
    out, cache = gelu_forward(kind([0.0, 1.0, -1.0, 2.0], dtype))
    # Phi(1) = 0.8413447460685429 and Phi(2) = 0.9772498680518208, as in any table
    kind.assert_close(out, [0.0, 0.8413447460685429, -0.15865525393145707, 1.9544997361036416], rtol=16 * EPS[dtype])
    # phi(1) = 0.24197072451914337
    dx = gelu_backward(kind([1.0, 1.0, 10.0, 0.0], dtype), cache)
    kind.assert_close(dx, [0.5, 1.0833154705876863, -0.833154705876863, 0.0], rtol=64 * EPS[dtype])


def test_gelu_by_tanh_is_the_formula_of_its_authors(kind, dtype):
    x = np.array([-3.0, -1.0, 0.0, 0.5, 2.0])
    out, _ = gelu_forward(kind(x, dtype), approximate="tanh")
    expected = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    # 1 + tanh is a difference of numbers near 1, which x then multiplies
    kind.assert_close(out, expected, atol=4 * 3.0 * EPS[dtype])


def test_the_two_gelus_differ_by_less_than_a_thousandth(kind, dtype):
    x = np.linspace(-6, 6, 1001)
    exact, _ = gelu_forward(kind(x, dtype))
    approximate, _ = gelu_forward(kind(x, dtype), "tanh")
    difference = np.abs(kind.to_numpy(exact) - kind.to_numpy(approximate))
    assert 1e-4 < difference.max() < 1e-3


SMOOTH = {
    "gelu": (lambda x: gelu_forward(x), gelu_backward),
    "gelu-tanh": (lambda x: gelu_forward(x, "tanh"), gelu_backward),
    "silu": (layers.silu_forward, layers.silu_backward),
}


@pytest.mark.parametrize("pair", SMOOTH.values(), ids=SMOOTH)
def test_a_gated_unit_is_x_or_nothing_far_from_zero(kind, dtype, pair):
    forward, backward = pair
    largest = float(np.finfo(dtype).max)
    x = [2000.0, largest, np.inf, -2000.0, -largest, -np.inf, np.nan]
    out, cache = forward(kind(x, dtype))
    kind.assert_close(out, [2000.0, largest, np.inf, 0.0, 0.0, 0.0, np.nan])
    dx = backward(kind(np.ones(7), dtype), cache)
    kind.assert_close(dx, [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, np.nan])


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_a_squashing_unit_is_flat_far_from_zero(kind, dtype, name):
    largest = float(np.finfo(dtype).max)
    out, cache = getattr(layers, f"{name}_forward")(kind([largest, np.inf, -largest, -np.inf, np.nan], dtype))
    low = {"sigmoid": 0.0, "tanh": -1.0}[name]
    kind.assert_close(out, [1.0, 1.0, low, low, np.nan])
    dx = getattr(layers, f"{name}_backward")(kind(np.ones(5), dtype), cache)
    kind.assert_close(dx, [0.0, 0.0, 0.0, 0.0, np.nan])


ACTIVATIONS = ["gelu", "leaky_relu", "sigmoid", "silu", "tanh"]


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (2, 3, 4, 5)])
def test_any_shape(kind, dtype, name, shape):
    out, cache = getattr(layers, f"{name}_forward")(kind(normals(shape), dtype))
    kind.check(out, dtype, shape)
    kind.check(getattr(layers, f"{name}_backward")(kind(np.ones(shape), dtype), cache), dtype, shape)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_integers_are_refused(kind, name):
    with pytest.raises(TypeError, match=f"{name}: expected x of a floating-point dtype; received int32"):
        getattr(layers, f"{name}_forward")(kind([1, 2], "int32"))


@pytest.mark.parametrize("slope", [-0.1, np.inf, np.nan])
def test_a_slope_that_is_none_is_refused(slope):
    with pytest.raises(ValueError, match="^leaky_relu: expected a finite negative_slope of at least 0; received"):
        leaky_relu_forward(np.ones(3), slope)
    with pytest.raises(ValueError, match="^leak: expected a finite negative_slope of at least 0; received"):
        layers.LeakyReLU(slope, name="leak")


def test_another_approximation_is_refused():
    with pytest.raises(ValueError, match="^gelu: expected approximate 'none' or 'tanh'; received 'erf'"):
        gelu_forward(np.ones(3), approximate="erf")
    with pytest.raises(ValueError, match="^bend: expected approximate 'none' or 'tanh'; received None"):
        layers.GELU(None, name="bend")


LAYERS = {
    "relu": (layers.ReLU(), relu_forward, relu_backward),
    "leaky_relu": (layers.LeakyReLU(0.2), lambda x: leaky_relu_forward(x, 0.2), leaky_relu_backward),
    "sigmoid": (layers.Sigmoid(), layers.sigmoid_forward, layers.sigmoid_backward),
    "tanh": (layers.Tanh(), layers.tanh_forward, layers.tanh_backward),
    "silu": (layers.SiLU(), layers.silu_forward, layers.silu_backward),
    "gelu": (layers.GELU(), gelu_forward, gelu_backward),
    "gelu-tanh": (layers.GELU("tanh"), lambda x: gelu_forward(x, "tanh"), gelu_backward),
}


@pytest.mark.parametrize("case", LAYERS.values(), ids=LAYERS)
def test_a_layer_is_its_pair_of_functions(kind, dtype, case):
    layer, forward, backward = case
    x, dout = kind(normals((3, 4)), dtype), kind(normals((3, 4), 1), dtype)
    assert layer.output_shape((4,)) == (4,)
    assert (layer.param_specs((4,)), layer.state_specs((4,)), layer.flops((4,))) == ({}, {}, 0)
    out, cache = layer.forward(x, train=True)
    expected, expected_cache = forward(x)
    kind.assert_close(out, kind.to_numpy(expected))
    dx, grads = layer.backward(dout, cache)
    kind.assert_close(dx, kind.to_numpy(backward(dout, expected_cache)))
    assert grads == {}


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_numpys_kernel_of_gelu_agrees_with_the_definition_in_any_layout(dtype, layout, approximate):
    kernels.load("numpy")
    x = layout(normals(MANY).astype(dtype))
    x.flags.writeable = False
    received = kernels.TABLE["layers.activation.gelu_and_slope", "numpy"](x, approximate)
    for fast, slow in zip(received, gelu_and_slope(x, approximate), strict=True):
        assert (fast.shape, fast.dtype) == (x.shape, x.dtype)
        # a dozen roundings of numbers below 6, normal numbers or their slopes
        np.testing.assert_allclose(fast, slow, atol=12 * 6 * EPS[dtype])


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_gelu_keeps_the_layout_of_numpys_arrays(dtype, layout):
    x = LAYOUTS[layout](normals(MANY).astype(dtype))
    out, cache = gelu_forward(x)
    assert out.strides == gelu_backward(out, cache).strides == x.strides
