"""Numerical gradients, to check backward passes against.

Course code often passes a function that ignores its argument and reads the array itself. So `x` is perturbed
in place, number by number, and put back.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

from xpnn.backend import Array, namespace, to_numpy
from xpnn.random import as_generator


def rel_error(x: Array, y: Array) -> float:
    """Return ``max(|x - y| / max(1e-8, |x| + |y|))`` in float64, for arrays of any backend."""
    import numpy as np

    a, b = (np.asarray(to_numpy(v), dtype=np.float64) for v in (x, y))
    if a.shape != b.shape:
        raise ValueError(f"rel_error: expected arrays of one shape; received {a.shape} and {b.shape}")
    return float(np.max(np.abs(a - b) / np.maximum(1e-8, np.abs(a) + np.abs(b)), initial=0.0))


def eval_numerical_gradient(f: Callable[[Array], Any], x: Array, verbose: bool = True, h: float = 1e-5) -> Array:
    """Return the gradient of the scalar function f at x by central differences.

    ``(f(x + h) - f(x - h)) / 2h`` for each number of x, in x's own dtype: use float64.

    Parameters
    ----------
    f : callable
        Of one array; may ignore it and read `x` itself.
    x : array
        Writable; unchanged afterwards.
    verbose : bool
        Print each index and its derivative.
    h : float
        Half the distance between the two points.
    """
    grad = namespace(x).zeros_like(x)
    for index in _indices(x.shape):
        high, low = _two_sides(f, x, index, h)
        grad[index] = (float(high) - float(low)) / (2 * h)
        if verbose:
            print(index, float(grad[index]))
    return grad


def eval_numerical_gradient_array(f: Callable[[Array], Array], x: Array, df: Array, h: float = 1e-5) -> Array:
    """Return the gradient of ``sum(f(x) df)`` by x: for a function with an array as its value."""
    xp, grad = namespace(x), namespace(x).zeros_like(x)
    for index in _indices(x.shape):
        high, low = _two_sides(f, x, index, h)
        grad[index] = float(xp.sum((high - low) * df)) / (2 * h)
    return grad


def eval_numerical_gradient_blobs(
    f: Callable[..., None], inputs: Sequence[Any], output: Any, h: float = 1e-5
) -> list[Array]:
    """Return the gradients by the inputs of a function that writes its value into a blob.

    Parameters
    ----------
    f : callable
        ``f(*inputs, output)``, which sets ``output.vals``.
    inputs : sequence of objects with an array `vals`
    output : object with arrays `vals` and `diffs`
        `diffs` weighs the output's numbers.
    """
    grads = []
    for blob in inputs:
        xp, grad = namespace(blob.vals), namespace(blob.vals).zeros_like(blob.vals)

        def value(_: Array, xp: Any = xp) -> Array:
            f(*inputs, output)
            return xp.asarray(output.vals, copy=True)

        for index in _indices(blob.vals.shape):
            high, low = _two_sides(value, blob.vals, index, h)
            grad[index] = float(xp.sum((high - low) * output.diffs)) / (2 * h)
        grads.append(grad)
    return grads


def eval_numerical_gradient_net(net: Any, inputs: Sequence[Any], output: Any, h: float = 1e-5) -> list[Array]:
    """Return `eval_numerical_gradient_blobs` of ``net.forward()``."""
    return eval_numerical_gradient_blobs(lambda *_: net.forward(), inputs, output, h=h)


def grad_check_sparse(
    f: Callable[[Array], Any],
    x: Array,
    analytic_grad: Array,
    num_checks: int = 10,
    h: float = 1e-5,
    seed: int | None = None,
) -> None:
    """Print the numerical and the analytic derivative, and their relative error, at some random numbers of x."""
    rng = as_generator(seed)
    for _ in range(num_checks):
        index = tuple(int(rng.integers(0, size, backend="numpy")) for size in x.shape)
        high, low = _two_sides(f, x, index, h)
        numerical, analytic = (float(high) - float(low)) / (2 * h), float(analytic_grad[index])
        error = abs(numerical - analytic) / max(abs(numerical) + abs(analytic), math.ulp(0.0))
        print(f"numerical: {numerical:f} analytic: {analytic:f}, relative error: {error:e}")


def _two_sides(f: Callable[[Array], Any], x: Array, index: tuple[int, ...], h: float) -> tuple[Any, Any]:
    """f with the number at `index` raised by h, and lowered by h; afterwards x is as it was."""
    old = float(x[index])
    try:
        x[index] = old + h
        high = _keep(f(x))
        x[index] = old - h
        return high, _keep(f(x))
    finally:
        x[index] = old


def _keep(value: Any) -> Any:
    """A copy, where the function may return x itself, or one array again and again."""
    return value if isinstance(value, float) or not hasattr(value, "ndim") else value + 0.0


def _indices(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return product(*map(range, shape))
