"""Functions that the standard lacks, and their kernels."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from layouts import LAYOUTS, MANY
from oracles import EPS, few_examples, normals
from xpnn import kernels
from xpnn.special import erf, sigmoid

# Where erf bends, where its approximations meet (1, 4.5 and 6), and where it is as good as x or 1.
GRID = np.concatenate(
    [np.linspace(-7, 7, 20_001), 10.0 ** np.linspace(-37, 37, 400), -(10.0 ** np.linspace(-37, 37, 400))]
)
ENDS = [0.0, -0.0, np.inf, -np.inf, np.nan]


def truth(function, x):
    return np.array([function(v) for v in np.ravel(x)]).reshape(np.shape(x))


def exact_sigmoid(v):
    return 1.0 / (1.0 + math.exp(-v)) if v > -700 else math.exp(v)


def kernel_of(function, library):
    kernels.load(library)
    if (function, library) not in kernels.TABLE:
        pytest.skip(f"{library} has no kernel for {function}")
    return kernels.TABLE[function, library]


def test_erf_is_right_to_a_few_units_in_the_last_place(kind, dtype):
    x = GRID.astype(dtype)
    out = erf(kind(x))
    kind.check(out, dtype, x.shape)
    # 3 units in the last place was the most on NumPy; the libraries' exponentials differ by one
    kind.assert_close(out, truth(math.erf, x), rtol=4 * EPS[dtype])


def test_the_kernel_of_erf_is_right_to_a_few_units_in_the_last_place(kind, dtype):
    x = GRID.astype(dtype)
    out = kernel_of("special.erf", kind.backend.name)(kind(x))
    kind.check(out, dtype, x.shape)
    # 3.8 units in the last place was the most on NumPy in float32
    kind.assert_close(out, truth(math.erf, x), rtol=4 * EPS[dtype])


def test_erf_at_the_ends(kind, dtype):
    kind.assert_close(erf(kind(ENDS, dtype)), [0.0, 0.0, 1.0, -1.0, np.nan])


def test_the_kernel_of_erf_at_the_ends(kind, dtype):
    out = kernel_of("special.erf", kind.backend.name)(kind(ENDS, dtype))
    kind.assert_close(out, [0.0, 0.0, 1.0, -1.0, np.nan])


def test_erf_of_far_numbers_is_exactly_1(kind, dtype):
    far = [6.0, 100.0, float(np.finfo(dtype).max)]
    kind.assert_close(erf(kind(far, dtype)), [1.0, 1.0, 1.0])
    kind.assert_close(kernel_of("special.erf", kind.backend.name)(kind(far, dtype)), [1.0, 1.0, 1.0])


def test_erf_is_odd_to_the_last_bit(kind, dtype):
    x = np.linspace(0, 7, 1001)
    kind.assert_close(erf(kind(-x, dtype)), -kind.to_numpy(erf(kind(x, dtype))))


def test_erf_of_float16_is_computed_in_float32(kind):
    x = np.linspace(-7, 7, 101, dtype="float16")
    if not hasattr(kind.xp, "float16"):
        pytest.skip(f"{kind} has no float16")
    out = erf(kind(x))
    kind.check(out, "float16", (101,))
    kind.assert_close(out, truth(math.erf, x), rtol=2.0**-11 + 4 * EPS["float32"])


@few_examples
@given(x=hnp.arrays("float32", hnp.array_shapes(min_dims=0, min_side=0), elements=hnp.from_dtype(np.dtype("float32"))))
def test_erf_takes_any_shape(kind, dtype, x):
    out = erf(kind(x, dtype))
    kind.check(out, dtype, x.shape)
    kind.assert_close(
        out, truth(math.erf, x), rtol=4 * EPS[dtype], atol=float(np.finfo("float32").tiny) * EPS["float32"]
    )


def test_erf_refuses_integers(kind):
    with pytest.raises(TypeError, match="erf: expected x of a floating-point dtype; received int32"):
        erf(kind([1, 2], "int32"))


def test_sigmoid_is_right_to_a_few_units_in_the_last_place(kind, dtype):
    x = np.linspace(-80, 80, 2001).astype(dtype)
    out = sigmoid(kind(x))
    kind.check(out, dtype, x.shape)
    kind.assert_close(out, truth(exact_sigmoid, x), rtol=4 * EPS[dtype])  # an exponential, a sum and a quotient


def test_sigmoid_at_the_ends(kind, dtype):
    largest = float(np.finfo(dtype).max)
    out = sigmoid(kind([*ENDS, largest, -largest], dtype))
    kind.assert_close(out, [0.5, 0.5, 1.0, 0.0, np.nan, 1.0, 0.0])


def test_sigmoid_refuses_integers(kind):
    with pytest.raises(TypeError, match="sigmoid: expected x of a floating-point dtype; received int32"):
        sigmoid(kind([1, 2], "int32"))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_numpys_kernel_of_erf_takes_any_layout(dtype, layout):
    x = layout(normals(MANY).astype(dtype))
    x.flags.writeable = False
    out = kernel_of("special.erf", "numpy")(x)
    assert (out.shape, out.dtype) == (x.shape, x.dtype)
    np.testing.assert_allclose(out, erf(x), rtol=(4 + 4) * EPS[dtype])  # each is a few units off the truth


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "fortran"])
def test_numpys_kernel_of_erf_keeps_the_layout(dtype, layout):
    x = LAYOUTS[layout](normals(MANY).astype(dtype))
    assert kernel_of("special.erf", "numpy")(x).strides == x.strides


def test_numpys_kernel_of_erf_is_the_definition_in_float64():
    x = normals(MANY)
    np.testing.assert_array_equal(kernel_of("special.erf", "numpy")(x), erf(x))
