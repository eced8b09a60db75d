"""From images to vectors."""

import numpy as np
import pytest

from xpnn.layers import Flatten, flatten_backward, flatten_forward


def test_the_last_axis_runs_fastest_and_the_gradient_goes_back_to_its_place(kind, dtype):
    x = np.arange(12.0).reshape(2, 1, 2, 3)
    out, cache = flatten_forward(kind(x, dtype))
    kind.check(out, dtype, (2, 6))
    kind.assert_close(out, [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0, 10.0, 11.0]])
    dx = flatten_backward(kind(10.0 * x.reshape(2, 6), dtype), cache)
    kind.check(dx, dtype, (2, 1, 2, 3))
    kind.assert_close(dx, 10.0 * x)


def test_the_order_does_not_depend_on_the_layout_in_memory(kind, dtype):
    x = np.arange(24.0).reshape(2, 3, 2, 2)
    last = kind.xp.permute_dims(kind(x.transpose(0, 2, 3, 1).copy(), dtype), (0, 3, 1, 2))
    kind.assert_close(flatten_forward(last)[0], x.reshape(2, 12))


def test_examples_of_no_axes_or_no_numbers(kind, dtype):
    kind.check(flatten_forward(kind([1.0, 2.0], dtype))[0], dtype, (2, 1))
    out, cache = flatten_forward(kind(np.zeros((0, 2, 3)), dtype))
    kind.check(out, dtype, (0, 6))
    kind.check(flatten_backward(out, cache), dtype, (0, 2, 3))


def test_the_layer_is_the_function(kind, dtype):
    layer = Flatten()
    assert layer.output_shape((3, 2, 4)) == (24,)
    out, cache = layer.forward(kind(np.ones((2, 3, 2, 4)), dtype))
    kind.check(out, dtype, (2, 24))
    dx, grads = layer.backward(out, cache)
    kind.check(dx, dtype, (2, 3, 2, 4))
    assert grads == {}


def test_what_has_no_examples_is_refused(kind):
    with pytest.raises(ValueError, match=r"^flatten: expected x \(N, \.\.\.\); received x \(\)"):
        flatten_forward(kind(1.0))
