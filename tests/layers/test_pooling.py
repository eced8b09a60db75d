"""Pooling: the course's published values, ties, overlapping windows, and what is refused."""

import numpy as np
import pytest

from oracles import EPS, course_case, course_tolerance, normals
from xpnn import layers
from xpnn.layers import (
    AvgPool,
    GlobalAvgPool,
    MaxPool,
    avg_pool_backward,
    avg_pool_forward,
    global_avg_pool_backward,
    global_avg_pool_forward,
    max_pool_backward,
    max_pool_forward,
)
from xpnn.layers.rows import pixels

TWO = {"pool_height": 2, "pool_width": 2, "stride": 2}
OVERLAPPING = {"pool_height": 2, "pool_width": 2, "stride": 1}


def test_the_published_values(kind, dtype):
    inputs, expected = course_case("max_pool_forward_naive")
    out, _ = max_pool_forward(kind(inputs["x"], dtype), TWO)
    kind.check(out, dtype)
    kind.assert_close(out, expected["out"], atol=course_tolerance(expected["out"], dtype))


def test_the_gradient_goes_to_the_first_of_equal_maxima(kind, dtype):
    x = kind([[[[1.0, 3.0], [3.0, 3.0]]]], dtype)
    _, cache = max_pool_forward(x, TWO)
    kind.assert_close(max_pool_backward(kind([[[[5.0]]]], dtype), cache), [[[[0.0, 5.0], [0.0, 0.0]]]])


def test_gradients_of_overlapping_windows_add_up(kind, dtype):
    x = kind([[[[0.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 1.0]]]], dtype)
    out, cache = max_pool_forward(x, OVERLAPPING)
    kind.assert_close(out, [[[[9.0, 9.0], [9.0, 9.0]]]])
    dx = max_pool_backward(kind([[[[1.0, 2.0], [4.0, 8.0]]]], dtype), cache)
    kind.assert_close(dx, [[[[0, 0, 0], [0, 15, 0], [0, 0, 0]]]])


def test_rows_and_columns_that_fill_no_window_are_left_out(kind, dtype):
    x = kind(np.arange(15.0).reshape(1, 1, 3, 5), dtype)
    out, cache = max_pool_forward(x, TWO)
    kind.assert_close(out, [[[[6.0, 8.0]]]])
    dx = max_pool_backward(kind([[[[1.0, 1.0]]]], dtype), cache)
    kind.check(dx, dtype, (1, 1, 3, 5))
    assert kind.to_numpy(dx).sum() == 2


def test_a_stride_larger_than_the_window_leaves_gaps(kind, dtype):
    x = kind(np.arange(25.0).reshape(1, 1, 5, 5), dtype)
    out, _ = max_pool_forward(x, {"pool_height": 2, "pool_width": 1, "stride": 3})
    kind.assert_close(out, [[[[5.0, 8.0], [20.0, 23.0]]]])


def test_nan_passes_through(kind, dtype):
    x = kind([[[[1.0, np.nan], [2.0, 3.0]], [[1.0, 2.0], [4.0, 3.0]]]], dtype)
    out, cache = max_pool_forward(x, TWO)
    kind.assert_close(out, [[[[np.nan]], [[4.0]]]])
    dx = max_pool_backward(kind(np.ones((1, 2, 1, 1)), dtype), cache)
    kind.assert_close(dx, [[[[0, 1], [0, 0]], [[0, 0], [1, 0]]]])


def test_minus_infinity_is_a_number_like_others(kind, dtype):
    x = kind(np.full((1, 1, 2, 2), -np.inf), dtype)
    out, cache = max_pool_forward(x, TWO)
    kind.assert_close(out, [[[[-np.inf]]]])
    kind.assert_close(max_pool_backward(kind([[[[2.0]]]], dtype), cache), [[[[2.0, 0.0], [0.0, 0.0]]]])


def test_a_window_of_more_than_256_numbers(kind, dtype):
    x = np.zeros((1, 1, 17, 17))
    x[0, 0, 16, 16] = 1.0
    param = {"pool_height": 17, "pool_width": 17, "stride": 1}
    out, cache = max_pool_forward(kind(x, dtype), param)
    kind.assert_close(out, [[[[1.0]]]])
    kind.assert_close(max_pool_backward(kind([[[[3.0]]]], dtype), cache), 3.0 * x)


def test_the_average_of_each_window_and_its_gradient(kind, dtype):
    x = kind([[[[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]]]], dtype)
    out, cache = avg_pool_forward(x, OVERLAPPING)
    kind.assert_close(out, [[[[3.5, 4.5]]]])
    kind.assert_close(avg_pool_backward(kind([[[[4.0, 8.0]]]], dtype), cache), [[[[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]]]])


def test_the_gradient_of_an_average_has_the_channels_last_in_memory():
    out, cache = avg_pool_forward(normals((2, 3, 4, 5)), OVERLAPPING)
    dx = avg_pool_backward(out, cache)
    assert np.shares_memory(pixels(dx), dx)


def test_the_average_of_the_whole_image_and_its_gradient(kind, dtype):
    x = kind(normals((2, 3, 4, 5)), dtype)
    out, cache = global_avg_pool_forward(x)
    kind.check(out, dtype, (2, 3))
    kind.assert_close(out, normals((2, 3, 4, 5)).mean(axis=(2, 3)), atol=20 * EPS[dtype])
    dx = global_avg_pool_backward(kind(np.full((2, 3), 20.0), dtype), cache)
    kind.check(dx, dtype, (2, 3, 4, 5))
    kind.assert_close(dx, np.ones((2, 3, 4, 5)), atol=2 * EPS[dtype])


@pytest.mark.parametrize("forward", [max_pool_forward, avg_pool_forward])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 0}, "expected a stride of at least 1, one number or two.*; received 0"),
        ({"pool_height": 0}, r"expected a window of at least 1, one number or two.*; received \(0, 2\)"),
        ({"pool_width": 5}, r"expected a window no larger than the padded image \(4, 4\); received \(2, 5\)"),
        ({"pad": 1}, "expected a dict of pool_height, pool_width and stride; received 'pad'"),
    ],
)
def test_impossible_settings_are_refused(kind, forward, changes, message):
    where = forward.__name__.removesuffix("_forward")
    with pytest.raises(ValueError, match=f"^{where}: {message}"):
        forward(kind(normals((1, 1, 4, 4))), TWO | changes)


def test_other_shapes_and_dtypes_are_refused(kind):
    with pytest.raises(ValueError, match=r"max_pool: expected x \(N, C, H, W\); received x \(4, 4\)"):
        max_pool_forward(kind(normals((4, 4))), TWO)
    with pytest.raises(
        ValueError, match=r"global_avg_pool: expected x \(N, C, H, W\), H and W > 0; received x \(4, 4\)"
    ):
        global_avg_pool_forward(kind(normals((4, 4))))
    with pytest.raises(TypeError, match="max_pool: expected x of a floating-point dtype; received uint8"):
        max_pool_forward(kind(np.ones((1, 1, 2, 2), dtype="uint8")), TWO)


def test_the_courses_other_names_are_the_same_function():
    assert layers.max_pool_forward_naive is layers.max_pool_forward_fast is max_pool_forward
    assert layers.max_pool_backward_naive is layers.max_pool_backward_fast is max_pool_backward


@pytest.mark.parametrize(
    ("layer", "forward", "backward"),
    [
        (MaxPool(2, 1), lambda x: max_pool_forward(x, OVERLAPPING), max_pool_backward),
        (AvgPool((2, 2), 1), lambda x: avg_pool_forward(x, OVERLAPPING), avg_pool_backward),
        (GlobalAvgPool(), global_avg_pool_forward, global_avg_pool_backward),
    ],
    ids=["max", "avg", "global"],
)
def test_the_layers_are_the_functions(kind, dtype, layer, forward, backward):
    x = kind(normals((2, 3, 5, 4)), dtype)
    (out, cache), (expected, expected_cache) = layer.forward(x), forward(x)
    assert layer.output_shape((3, 5, 4)) == tuple(out.shape[1:])
    kind.assert_close(out, kind.to_numpy(expected))
    dx, grads = layer.backward(out, cache)
    assert grads == {}
    kind.assert_close(dx, kind.to_numpy(backward(out, expected_cache)))


def test_windows_do_not_overlap_by_default():
    assert MaxPool(3).output_shape((2, 7, 9)) == (2, 2, 3)


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (MaxPool(3, name="pool"), (1, 2, 2), r"pool: expected a window no larger .* \(2, 2\); received \(3, 3\)"),
        (AvgPool(3), (1, 2, 2), r"avgpool: expected a window no larger than the padded image \(2, 2\)"),
        (MaxPool(3), (4,), r"maxpool: expected input of shape \(C, H, W\); received \(4,\)"),
        (GlobalAvgPool(), (4,), r"globalavgpool: expected input of shape \(C, H, W\); received \(4,\)"),
    ],
)
def test_images_that_do_not_fit_are_reported_by_the_layer(layer, shape, message):
    with pytest.raises(ValueError, match=message):
        layer.output_shape(shape)


def test_a_window_of_no_size_is_refused():
    with pytest.raises(ValueError, match="maxpool: expected a window of at least 1, one number or two.*; received 0"):
        MaxPool(0)
