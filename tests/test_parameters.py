"""Parameters: named views into one buffer."""

import numpy as np
import pytest

from xpnn import backend as backends
from xpnn.parameters import Parameters

SHAPES = {"W": (2, 3), "b": (3,), "scale": ()}


@pytest.fixture
def params(kind, dtype):
    params = Parameters(SHAPES, kind.backend, dtype)
    params.flat[...] = kind(np.arange(10.0), dtype)
    return params


def test_the_buffer_starts_at_zeros(kind, dtype):
    params = Parameters(SHAPES, kind.backend, dtype)
    kind.check(params.flat, dtype, (10,))
    kind.assert_close(params.flat, np.zeros(10))


def test_names_stand_in_the_buffer_in_the_order_given(kind, dtype, params):
    assert list(params) == ["W", "b", "scale"]
    assert len(params) == 3
    for name, expected in (("W", [[0, 1, 2], [3, 4, 5]]), ("b", [6, 7, 8]), ("scale", 9)):
        kind.check(params[name], dtype, SHAPES[name])
        kind.assert_close(params[name], expected)


def test_writing_to_a_view_writes_to_the_buffer(kind, dtype, params):
    params["b"][...] = kind([-1.0, -2.0, -3.0], dtype)
    kind.assert_close(params.flat, [0, 1, 2, 3, 4, 5, -1, -2, -3, 9])


def test_writing_to_the_buffer_writes_to_the_views(kind, dtype, params):
    params.flat[...] = kind(np.full(10, 7.0), dtype)
    kind.assert_close(params["W"], np.full((2, 3), 7.0))


def test_assignment_copies_into_the_view(kind, dtype, params):
    value, view = kind.writable([-1.0, -2.0, -3.0], dtype), params["b"]
    params["b"] = value
    value[...] = 0.0
    assert params["b"] is view
    kind.assert_close(params.flat, [0, 1, 2, 3, 4, 5, -1, -2, -3, 9])


def test_assignment_takes_another_dtype_and_library(kind, dtype, params):
    params["b"] = np.array([1, 2, 3], dtype="int16")
    kind.check(params["b"], dtype)
    kind.assert_close(params["b"], [1.0, 2.0, 3.0])


def test_augmented_assignment_changes_the_buffer(kind, dtype, params):
    params["b"] += 10.0
    params["W"] *= 2.0
    kind.assert_close(params.flat, [0, 2, 4, 6, 8, 10, 16, 17, 18, 9])


@pytest.mark.parametrize("shape", [(3, 2), (6,), (1, 2, 3), ()])
def test_assignment_of_another_shape_is_refused(kind, dtype, params, shape):
    with pytest.raises(ValueError, match=r"W: expected shape \(2, 3\); received") as error:
        params["W"] = kind(np.ones(shape), dtype)
    assert str(error.value).endswith(f"received {shape}")
    kind.assert_close(params["W"], [[0, 1, 2], [3, 4, 5]])


def test_assignment_to_an_unknown_name_is_refused(kind, dtype, params):
    with pytest.raises(KeyError, match="expected one of W, b, scale; received 'w'"):
        params["w"] = kind(np.ones((2, 3)), dtype)


def test_a_parameter_cannot_be_deleted(params):
    with pytest.raises(TypeError, match="W: a parameter cannot be deleted"):
        del params["W"]


def test_an_unknown_name_is_a_key_error(params):
    with pytest.raises(KeyError, match="w"):
        params["w"]


def test_a_copy_has_a_buffer_of_its_own(kind, dtype, params):
    copy = params.copy()
    params["b"] += 1.0
    kind.check(copy.flat, dtype)
    kind.assert_close(copy["b"], [6, 7, 8])


def test_like_gives_zeros_of_the_same_layout(kind, dtype, params):
    like = params.like()
    assert like.shapes == params.shapes
    kind.check(like.flat, dtype)
    kind.assert_close(like.flat, np.zeros(10))


def test_views_of_another_buffer_share_its_memory(kind, dtype, params):
    buffer = kind.writable(np.zeros(10), dtype)
    params.views(buffer)["b"][...] = 1.0
    kind.assert_close(buffer, [0, 0, 0, 0, 0, 0, 1, 1, 1, 0])


def test_to_another_backend_and_back_keeps_every_number(kind, dtype, params):
    there = params.to(backends.get("numpy"))
    assert type(there.flat) is np.ndarray
    assert there.flat.dtype == dtype
    np.testing.assert_array_equal(there["W"], [[0, 1, 2], [3, 4, 5]])
    back = there.to(kind.backend)
    kind.check(back.flat, dtype)
    kind.assert_close(back.flat, np.arange(10.0))


def test_to_gives_memory_of_its_own(kind, dtype, params):
    there = params.to(backends.get("numpy"))
    there["b"] += 1.0
    kind.assert_close(params["b"], [6, 7, 8])


def test_no_parameters_at_all(kind, dtype):
    params = Parameters({}, kind.backend, dtype)
    kind.check(params.flat, dtype, (0,))
    assert dict(params) == {}


def test_the_repr_tells_names_shapes_dtype_and_backend(kind, params, dtype):
    assert repr(params) == f"<Parameters {{W: (2, 3), b: (3,), scale: ()}} {dtype} on {kind.backend}>"
