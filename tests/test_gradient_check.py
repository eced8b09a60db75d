"""Numerical gradients."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from oracles import normals
from xpnn.gradient_check import (
    eval_numerical_gradient,
    eval_numerical_gradient_array,
    eval_numerical_gradient_blobs,
    eval_numerical_gradient_net,
    grad_check_sparse,
    rel_error,
)

# (f(x + h) - f(x - h)) / 2h of a polynomial of degree 2 is exact but for rounding: f of about 10, eps / 2h = 1e-11.
ROUNDING = 1e-9


@pytest.fixture
def x(kind):
    return kind.writable([[1.0, -2.0], [0.5, 3.0]])


def sum_of_squares(kind):
    return lambda x: kind.xp.sum(x * x)


def test_rel_error_is_the_courses_formula():
    assert rel_error(np.array([1.0, 2.0]), np.array([1.0, 3.0])) == 1 / 5
    assert rel_error(np.array([0.0]), np.array([1e-9])) == 1e-9 / 1e-8
    assert rel_error(np.array([-1.0]), np.array([1.0])) == 1.0


def test_rel_error_takes_arrays_of_any_kind(kind, dtype):
    assert rel_error(kind([1.0, 2.0], dtype), np.array([1.0, 3.0])) == 1 / 5
    assert rel_error(np.array([1.0, 3.0]), kind([1.0, 2.0], dtype)) == 1 / 5


def test_rel_error_of_nothing_is_zero():
    assert rel_error(np.zeros(0), np.zeros(0)) == 0.0


def test_rel_error_is_nan_where_a_number_is():
    assert np.isnan(rel_error(np.array([np.nan, 1.0]), np.array([1.0, 1.0])))


def test_rel_error_is_computed_in_float64():
    tiny = np.float32(1e-7)
    assert rel_error(np.float32([1.0]), np.float32([1.0]) + tiny) == pytest.approx(2.0**-23 / 2, rel=1e-6)


def test_gradient_of_a_scalar_function(kind, x):
    grad = eval_numerical_gradient(sum_of_squares(kind), x, verbose=False)
    kind.check(grad, "float64", (2, 2))
    kind.assert_close(grad, [[2.0, -4.0], [1.0, 6.0]], atol=ROUNDING)


def test_a_function_may_return_a_python_float(kind, x):
    grad = eval_numerical_gradient(lambda x: float(kind.xp.sum(x * x)), x, verbose=False)
    kind.assert_close(grad, [[2.0, -4.0], [1.0, 6.0]], atol=ROUNDING)


def test_a_function_may_ignore_its_argument_and_read_the_array_itself(kind, x):
    grad = eval_numerical_gradient(lambda _: kind.xp.sum(x * x), x, verbose=False)
    kind.assert_close(grad, [[2.0, -4.0], [1.0, 6.0]], atol=ROUNDING)


def test_the_array_is_as_before_afterwards(kind, x):
    eval_numerical_gradient(sum_of_squares(kind), x, verbose=False)
    kind.assert_close(x, [[1.0, -2.0], [0.5, 3.0]])


def test_the_array_is_as_before_when_the_function_raises(kind, x):
    def broken(x):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        eval_numerical_gradient(broken, x, verbose=False)
    kind.assert_close(x, [[1.0, -2.0], [0.5, 3.0]])


def test_verbose_prints_each_index_and_its_derivative(capsys):
    eval_numerical_gradient(lambda x: float(3.0 * x[0] + x[1]), np.array([1.0, 2.0]), h=0.5)
    assert capsys.readouterr().out == "(0,) 3.0\n(1,) 1.0\n"


def test_h_is_half_the_distance_between_the_two_points():
    grad = eval_numerical_gradient(lambda x: float(x[0] ** 3), np.array([0.0]), verbose=False, h=0.5)
    assert grad[0] == 0.25  # (0.125 + 0.125) / 1


def test_gradient_of_a_function_with_an_array_as_its_value(kind, x):
    df = kind(normals((2, 2)))
    grad = eval_numerical_gradient_array(lambda x: x * x, x, df)
    kind.check(grad, "float64", (2, 2))
    kind.assert_close(grad, 2 * np.array([[1.0, -2.0], [0.5, 3.0]]) * normals((2, 2)), atol=ROUNDING)


def test_a_function_may_return_its_argument(kind, x):
    grad = eval_numerical_gradient_array(lambda x: x, x, kind(np.ones((2, 2))))
    kind.assert_close(grad, np.ones((2, 2)), atol=ROUNDING)


def test_a_function_may_return_the_same_array_at_each_call(kind, x):
    out = kind.writable(np.zeros((2, 2)))

    def in_place(x):
        out[...] = x * x
        return out

    grad = eval_numerical_gradient_array(in_place, x, kind(np.ones((2, 2))))
    kind.assert_close(grad, [[2.0, -4.0], [1.0, 6.0]], atol=ROUNDING)


def product_of_blobs(a, b, out):
    out.vals = a.vals * b.vals


def blobs(kind):
    a, b = (SimpleNamespace(vals=kind.writable(v)) for v in ([1.0, 2.0], [3.0, 5.0]))
    return [a, b], SimpleNamespace(vals=None, diffs=kind([1.0, 10.0]))


def test_gradients_by_blobs(kind):
    inputs, output = blobs(kind)
    by_a, by_b = eval_numerical_gradient_blobs(product_of_blobs, inputs, output)
    kind.assert_close(by_a, [3.0, 50.0], atol=10 * ROUNDING)
    kind.assert_close(by_b, [1.0, 20.0], atol=10 * ROUNDING)


def test_gradients_of_a_net_of_blobs(kind):
    inputs, output = blobs(kind)
    net = SimpleNamespace(forward=lambda: product_of_blobs(*inputs, output))
    by_a, by_b = eval_numerical_gradient_net(net, inputs, output)
    kind.assert_close(by_a, [3.0, 50.0], atol=10 * ROUNDING)
    kind.assert_close(by_b, [1.0, 20.0], atol=10 * ROUNDING)


LINE = r"numerical: (\S+) analytic: (\S+), relative error: (\S+)"


def printed_errors(capsys):
    return [float(error) for _, _, error in re.findall(LINE, capsys.readouterr().out)]


def test_sparse_check_prints_small_errors_for_a_right_gradient(kind, x, capsys):
    grad_check_sparse(sum_of_squares(kind), x, 2.0 * x, num_checks=5, seed=0)
    errors = printed_errors(capsys)
    assert len(errors) == 5
    assert max(errors) < ROUNDING


def test_sparse_check_prints_large_errors_for_a_wrong_gradient(kind, x, capsys):
    grad_check_sparse(sum_of_squares(kind), x, 6.0 * x, num_checks=5, seed=0)
    assert min(printed_errors(capsys)) == pytest.approx(0.5)  # |2x - 6x| / |2x| + |6x|


def test_sparse_check_of_two_zeros_has_no_error(capsys):
    grad_check_sparse(lambda x: 0.0, np.ones(3), np.zeros(3), num_checks=1, seed=0)
    assert printed_errors(capsys) == [0.0]


def test_sparse_check_makes_ten_checks_and_leaves_the_array(kind, x, capsys):
    grad_check_sparse(sum_of_squares(kind), x, 2.0 * x)
    assert len(printed_errors(capsys)) == 10
    kind.assert_close(x, [[1.0, -2.0], [0.5, 3.0]])


def test_sparse_check_of_a_seed_looks_at_the_same_places(kind, capsys):
    seen = []
    for _ in range(2):
        x = kind.writable(normals((5, 5)))
        grad_check_sparse(sum_of_squares(kind), x, 2.0 * x, seed=3)
        seen.append(capsys.readouterr().out)
    assert seen[0] == seen[1]
