"""Activations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

import oracles
from oracles import course_case, course_tolerance, few_examples
from xpnn.layers import relu_backward, relu_forward


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
