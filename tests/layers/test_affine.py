"""The affine layer, and the linear one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oracles
from oracles import EPS, course_case, course_tolerance, few_examples, normals
from xpnn import backend as backends
from xpnn.layers import Affine, Linear, Sequential, affine_backward, affine_forward, linear_backward, linear_forward
from xpnn.models import Model

# A sum of n products of numbers below 5 in size is off by at most n roundings of it, in whatever order it is taken.
LARGEST = 5.0


def sum_tolerance(terms, dtype):
    return (terms + 1) * EPS[dtype] * (terms + 1) * LARGEST**2


def test_forward_gives_the_values_that_the_course_published(kind, dtype):
    inputs, expected = course_case("affine_forward")
    out, _ = affine_forward(*(kind(inputs[name], dtype) for name in "xwb"))
    kind.check(out, dtype)
    kind.assert_close(out, expected["out"], atol=course_tolerance(expected["out"], dtype))


def test_forward_flattens_each_example(kind, dtype):
    x = kind([[[1.0, 2.0], [3.0, 4.0]]], dtype)
    out, _ = affine_forward(x, kind([[1.0], [10.0], [100.0], [1000.0]], dtype), kind([0.5], dtype))
    kind.assert_close(out, [[4321.5]])


def test_forward_takes_one_number_an_example(kind, dtype):
    out, _ = affine_forward(kind([2.0, 3.0], dtype), kind([[1.0, 10.0]], dtype), kind([0.0, 1.0], dtype))
    kind.assert_close(out, [[2.0, 21.0], [3.0, 31.0]])


def test_dx_has_the_shape_of_x(kind, dtype):
    x = kind(normals((2, 3, 4, 5)), dtype)
    _, cache = affine_forward(x, kind(normals((60, 7)), dtype), kind(normals(7), dtype))
    dx, dw, db = affine_backward(kind(normals((2, 7)), dtype), cache)
    kind.check(dx, dtype, (2, 3, 4, 5))
    kind.check(dw, dtype, (60, 7))
    kind.check(db, dtype, (7,))


def test_gradients_by_the_parameters_are_sums_over_the_batch_not_means(kind, dtype):
    x = kind([[1.0], [2.0], [4.0]], dtype)
    _, cache = affine_forward(x, kind([[1.0]], dtype), kind([0.0], dtype))
    _, dw, db = affine_backward(kind([[1.0], [1.0], [1.0]], dtype), cache)
    kind.assert_close(dw, [[7.0]])
    kind.assert_close(db, [3.0])


def test_a_batch_of_no_examples_gives_no_rows_and_zero_gradients(kind, dtype):
    out, cache = affine_forward(kind(np.zeros((0, 2, 3)), dtype), kind(normals((6, 4)), dtype), kind(normals(4), dtype))
    kind.check(out, dtype, (0, 4))
    dx, dw, db = affine_backward(out, cache)
    kind.check(dx, dtype, (0, 2, 3))
    kind.assert_close(dw, np.zeros((6, 4)))
    kind.assert_close(db, np.zeros(4))


@few_examples
@given(n=st.integers(1, 6), shape=st.lists(st.integers(1, 4), max_size=3), m=st.integers(1, 5), seed=st.integers(0, 99))
def test_any_shape_agrees_with_the_sums_written_out(kind, dtype, n, shape, m, seed):
    d = int(np.prod(shape))
    x, w, b, dout = (
        np.clip(normals(s, seed + i, dtype), -5, 5) for i, s in enumerate([(n, *shape), (d, m), m, (n, m)])
    )
    out, cache = affine_forward(kind(x, dtype), kind(w, dtype), kind(b, dtype))
    kind.assert_close(out, oracles.affine(x, w, b), atol=sum_tolerance(d, dtype))
    expected = oracles.affine_grads(dout, x, w)
    for grad, truth, terms in zip(affine_backward(kind(dout, dtype), cache), expected, (m, n, n), strict=True):
        kind.check(grad, dtype, truth.shape)
        kind.assert_close(grad, truth, atol=sum_tolerance(terms, dtype))


@pytest.mark.parametrize(
    ("x", "w", "b"), [((2, 3), (4, 5), (5,)), ((2, 3), (3, 5), (4,)), ((2, 3), (3,), (3,)), ((), (1, 2), (2,))]
)
def test_shapes_that_do_not_fit_are_reported(kind, x, w, b):
    with pytest.raises(ValueError, match=r"^affine: expected x \(N, \.\.\.\).*received x") as error:
        affine_forward(kind(np.zeros(x)), kind(np.zeros(w)), kind(np.zeros(b)))
    assert f"received x {x}, w {w} and b {b}" in str(error.value)


def test_integers_are_refused(kind):
    with pytest.raises(TypeError, match="affine: expected w of a floating-point dtype; received int64"):
        affine_forward(kind([[1.0]]), kind([[1]], "int64"), kind([0.0]))


@pytest.mark.parametrize(
    ("other", "description"),
    [("torch", r"torch\.Tensor"), ("array-api-strict", r"array_api_strict\.Array \(device CPU_DEVICE\)")],
)
def test_kinds_that_mix_are_refused_and_each_is_named(other, description):
    backend = backends.get(other)
    if not backend.is_available():
        pytest.skip(backend.reason)
    message = rf"^affine: expected x, w and b of one kind; received x: numpy\.ndarray, w: {description}.*, b: numpy"
    with pytest.raises(TypeError, match=message):
        affine_forward(np.ones((1, 1)), backend.zeros((1, 1), "float64"), np.ones(1))


def test_devices_that_mix_are_refused_and_each_is_named():
    backend = backends.get("array-api-strict")
    if not backend.is_available():
        pytest.skip(backend.reason)
    elsewhere = backends.get("array-api-strict:device1")
    with pytest.raises(TypeError, match=r"x: array_api_strict\.Array \(device CPU_DEVICE\), w: .*\(device device1\)"):
        affine_forward(backend.zeros((1, 1)), elsewhere.zeros((1, 1)), backend.zeros((1,)))


def test_a_list_is_refused():
    with pytest.raises(TypeError, match="affine: expected x to be an array of numpy, .*; received list"):
        affine_forward([[1.0]], np.ones((1, 1)), np.ones(1))


def test_linear_multiplies_the_last_axis(kind, dtype):
    x, w, b = kind([[[1.0, 2.0], [3.0, 4.0]]], dtype), kind([[1.0], [10.0]], dtype), kind([0.5], dtype)
    out, cache = linear_forward(x, w, b)
    kind.check(out, dtype, (1, 2, 1))
    kind.assert_close(out, [[[21.5], [43.5]]])
    dx, dw, db = linear_backward(kind([[[1.0], [2.0]]], dtype), cache)
    kind.assert_close(dx, [[[1.0, 10.0], [2.0, 20.0]]])
    kind.assert_close(dw, [[7.0], [10.0]])
    kind.assert_close(db, [3.0])


def test_linear_without_a_bias_adds_none_and_has_no_gradient_by_it(kind, dtype):
    out, cache = linear_forward(kind([[1.0, 2.0]], dtype), kind([[1.0], [10.0]], dtype))
    kind.assert_close(out, [[21.0]])
    assert linear_backward(out, cache)[2] is None


def test_linear_of_vectors_is_affine(kind, dtype):
    x, w, b = (kind(normals(shape, i), dtype) for i, shape in enumerate([(3, 4), (4, 5), (5,)]))
    expected, affine_cache = affine_forward(x, w, b)
    out, cache = linear_forward(x, w, b)
    kind.assert_close(out, kind.to_numpy(expected))
    for grad, truth in zip(linear_backward(out, cache), affine_backward(out, affine_cache), strict=True):
        kind.assert_close(grad, kind.to_numpy(truth))


@pytest.mark.parametrize(
    ("x", "w", "b"), [((2, 3), (4, 5), (5,)), ((2, 3), (3, 5), (4,)), ((2, 3), (3,), (3,)), ((), (1, 2), (2,))]
)
def test_shapes_that_do_not_fit_a_linear_layer_are_reported(kind, x, w, b):
    with pytest.raises(ValueError, match=r"^linear: expected x \(\.\.\., D\).*received x") as error:
        linear_forward(kind(np.zeros(x)), kind(np.zeros(w)), kind(np.zeros(b)))
    assert f"received x {x}, w {w} and b {b}" in str(error.value)


@pytest.mark.parametrize("bias", [True, False])
def test_the_linear_layer_keeps_the_axes_before_the_last(kind, dtype, bias):
    net = Linear(5, bias=bias)
    model = Model(net, (2, 3), dtype=dtype, backend=kind.backend, rng=0)
    expected = {"W": (3, 5), "b": (5,)} if bias else {"W": (3, 5)}
    assert model.output_shape == (2, 5)
    assert {name: tuple(array.shape) for name, array in model.params.items()} == expected
    out, cache = net.forward(kind(normals((4, 2, 3)), dtype))
    kind.check(out, dtype, (4, 2, 5))
    dx, grads = net.backward(out, cache)
    kind.check(dx, dtype, (4, 2, 3))
    assert {name: tuple(grad.shape) for name, grad in grads.items()} == expected
    nothing, alone = net.backward(out, cache, input_grad=False)
    assert nothing is None
    for name, grad in alone.items():
        kind.assert_close(grad, kind.to_numpy(grads[name]))


def test_two_flops_for_each_product_of_an_example():
    assert Affine(10).flops((3, 4)) == 2 * 12 * 10
    assert Linear(10).flops((3, 4)) == 2 * 3 * 4 * 10


def test_an_input_without_features_is_reported_when_the_net_is_built():
    with pytest.raises(ValueError, match=r"^linear1: expected input of shape \(\.\.\., D\)"):
        Sequential(Linear(2)).output_shape(())


def test_impossible_settings_of_a_linear_layer_are_refused():
    with pytest.raises(ValueError, match=r"^out: expected units, a whole number of at least 1, .*; received 0"):
        Linear(0, name="out")
    with pytest.raises(TypeError, match=r"^linear: expected an initializer; received 0\.1"):
        Linear(2, init=0.1)
