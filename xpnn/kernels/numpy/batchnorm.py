"""Batch normalization on NumPy: each pass over the batch reads it once."""

from collections.abc import Callable

import numpy as np

from xpnn.kernels import kernel
from xpnn.kernels.numpy.loops import COMPILED, loops
from xpnn.kernels.numpy.rows import columns, over_blocks, sum_of


@kernel("layers.batchnorm.moments", "numpy")
def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n, d = x.shape

    def of_block(block: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rounded, offsets, squares = loops.block_moments(block)
        # Less what the mean lost when it was rounded: Chan, Golub and LeVeque, 1983.
        mean = rounded + offsets / np.float64(len(block))
        return np.full(mean.shape, float(len(block))), mean, squares - offsets * (mean - rounded)

    blocks = over_blocks(of_block, [x])
    if len(blocks) == 1 and len(blocks[0][1]) == d:
        _, mean, squares = blocks[0]
        return mean.astype(x.dtype), (squares / n).astype(x.dtype)
    counts, means, squares = (columns(v, d) for v in zip(*blocks, strict=True))
    mean = np.sum(counts * means, axis=0) / n
    # Of the blocks' variances and of their means: Chan, Golub and LeVeque, 1979.
    var = np.sum(squares + counts * (means - mean) ** 2, axis=0) / n
    return mean.astype(x.dtype), var.astype(x.dtype)


@kernel("layers.batchnorm.normalize", "numpy")
def normalize(x: np.ndarray, mean: np.ndarray, scale: np.ndarray, beta: np.ndarray) -> np.ndarray:
    return _each_number(loops.normalize, [x], [mean, scale, beta])


def normalize_relu(x: np.ndarray, mean: np.ndarray, scale: np.ndarray, beta: np.ndarray) -> np.ndarray:
    return _each_number(loops.normalize_relu, [x], [mean, scale, beta])


@kernel("layers.batchnorm.gradient_sums", "numpy")
def gradient_sums(dout: np.ndarray, x: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return _sums(loops.gradient_sums, dout, x, [mean])


def gradient_sums_relu(
    dout: np.ndarray, x: np.ndarray, mean: np.ndarray, scale: np.ndarray, beta: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    return _sums(loops.gradient_sums_relu, dout, x, [mean, scale, beta])


@kernel("layers.batchnorm.input_gradient", "numpy")
def input_gradient(
    dout: np.ndarray, x: np.ndarray, mean: np.ndarray, scale: np.ndarray, shift: np.ndarray, slope: np.ndarray
) -> np.ndarray:
    return _each_number(loops.input_gradient, [dout, x], [mean, scale, shift, slope])


def input_gradient_relu(
    dout: np.ndarray,
    x: np.ndarray,
    mean: np.ndarray,
    scale: np.ndarray,
    beta: np.ndarray,
    shift: np.ndarray,
    slope: np.ndarray,
) -> np.ndarray:
    return _each_number(loops.input_gradient_relu, [dout, x], [mean, scale, beta, shift, slope])


if COMPILED:  # NumPy's own loops would go through memory more often than batch norm and ReLU apart
    for fused in (normalize_relu, gradient_sums_relu, input_gradient_relu):
        kernel(f"layers.batchnorm.{fused.__name__}", "numpy")(fused)


def _each_number(loop: Callable[..., None], rows: list[np.ndarray], vectors: list[np.ndarray]) -> np.ndarray:
    """Return what a loop gives for arrays (N, D) and vectors (D,), an array (N, D)."""
    out = np.empty(rows[0].shape, dtype=np.result_type(*rows, *vectors))
    over_blocks(loop, [*rows, out], vectors)
    return out


def _sums(
    loop: Callable[..., tuple[np.ndarray, np.ndarray]], dout: np.ndarray, x: np.ndarray, vectors: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Add up the two sums (D,) that a loop gives for each block."""
    sums = over_blocks(loop, [dout, x], vectors)
    dbeta, products = (sum_of([pair[i] for pair in sums], x.shape[1]) for i in range(2))
    return dbeta.astype(dout.dtype, copy=False), products.astype(np.result_type(dout, x), copy=False)
