"""Functions that the standard lacks."""

from collections.abc import Sequence

from xpnn.backend import Array, dtype_name, one_kind

# From -FAR down, the factor of GELU or SiLU is 0 to the last bit. Held there, infinity gives 0 and not 0 * infinity,
# and from FAR up, where the factor is 1 and flat, no power of x overflows.
GELU_FAR, SILU_FAR = 40.0, 1000.0

# Coefficients of the Cephes library's ndtr.c, highest power first; those of a denominator begin with 1.
# fmt: off
_INNER_P = (9.60497373987051638749, 9.00260197203842689217e1, 2.23200534594684319226e3, 7.00332514112805075473e3,
            5.55923013010394962768e4)
_INNER_Q = (1.0, 3.35617141647503099647e1, 5.21357949780152679795e2, 4.59432382970980127987e3, 2.26290000613890934246e4,
            4.92673942608635921086e4)
_OUTER_P = (2.46196981473530512524e-10, 5.64189564831068821977e-1, 7.46321056442269912687, 4.86371970985681366614e1,
            1.96520832956077098242e2, 5.26445194995477358631e2, 9.34528527171957607540e2, 1.02755188689515710272e3,
            5.57535335369399327526e2)
_OUTER_Q = (1.0, 1.32281951154744992508e1, 8.67072140885989742329e1, 3.54937778887819891062e2, 9.75708501743205489753e2,
            1.82390916687909736289e3, 2.24633760818710981792e3, 1.65666309194161350182e3, 5.57535340817727675546e2)
# fmt: on


def erf(x: Array) -> Array:
    """The error function: ``2 / sqrt(pi) * integral from 0 to x of exp(-t²) dt``, to about 3 units in the last place.

    Parameters
    ----------
    x : array of any shape

    Returns
    -------
    array of x's shape

    Raises
    ------
    TypeError
        When x holds no floating-point numbers.

    Source: Moshier, Cephes mathematical library, ndtr.c; rational approximations as in Cody, "Rational Chebyshev
    approximations for the error function", Mathematics of Computation 1969.
    """
    xp = one_kind("erf", x=x)
    if dtype_name(x.dtype) not in ("float64", "float32"):  # the coefficients are beyond what float16 holds
        return xp.astype(erf(xp.astype(x, xp.float32)), x.dtype)
    x = xp.maximum(xp.minimum(x, 6.0), -6.0)  # from 6 on it is 1 to the last bit
    size, square = xp.abs(x), x * x
    inner = x * (_polynomial(_INNER_P, square) / _polynomial(_INNER_Q, square))
    tail = xp.exp(-square) * (_polynomial(_OUTER_P, size) / _polynomial(_OUTER_Q, size))
    return xp.where(size < 1.0, inner, xp.sign(x) * (1.0 - tail))


def sigmoid(x: Array) -> Array:
    """The logistic function: ``1 / (1 + exp(-x))``, without overflow.

    Parameters
    ----------
    x : array of any shape

    Returns
    -------
    array of x's shape

    Raises
    ------
    TypeError
        When x holds no floating-point numbers.
    """
    xp = one_kind("sigmoid", x=x)
    exp = xp.exp(-xp.abs(x))
    return xp.where(x < 0.0, exp, 1.0) / (1.0 + exp)


def _polynomial(coefficients: Sequence[float], x: Array) -> Array:
    """By Horner's rule, highest power first."""
    value = coefficients[0] * x + coefficients[1]
    for coefficient in coefficients[2:]:
        value = value * x + coefficient
    return value
