"""Batch normalization on NumPy: each pass over the batch reads it once."""

import numpy as np

from xpnn.kernels import kernel
from xpnn.kernels.numpy.rows import block_sum, columns, over_blocks, sum_of


@kernel("layers.batchnorm.moments", "numpy")
def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n, d = x.shape

    def of_block(block: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        mean = block_sum(block) / len(block)
        centered = block - mean
        centered *= centered
        return np.full(mean.shape, float(len(block))), mean, block_sum(centered)

    counts, means, squares = (columns(v, d) for v in zip(*over_blocks(of_block, [x]), strict=True))
    mean = np.sum(counts * means, axis=0) / n
    # Of the blocks' variances and of their means: Chan, Golub and LeVeque, 1979.
    var = np.sum(squares + counts * (means - mean) ** 2, axis=0) / n
    return mean.astype(x.dtype), var.astype(x.dtype)


@kernel("layers.batchnorm.normalize", "numpy")
def normalize(x: np.ndarray, mean: np.ndarray, scale: np.ndarray, beta: np.ndarray) -> np.ndarray:
    def fill(x: np.ndarray, out: np.ndarray, mean: np.ndarray, scale: np.ndarray, beta: np.ndarray) -> None:
        np.subtract(x, mean, out=out)
        out *= scale
        out += beta

    out = np.empty(x.shape, dtype=np.result_type(x, mean, scale, beta))
    over_blocks(fill, [x, out], [mean, scale, beta])
    return out


@kernel("layers.batchnorm.gradient_sums", "numpy")
def gradient_sums(dout: np.ndarray, x: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    def of_block(dout: np.ndarray, x: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        products = x - mean
        products *= dout
        return block_sum(dout), block_sum(products)

    sums = over_blocks(of_block, [dout, x], [mean])
    dbeta, products = (sum_of([pair[i] for pair in sums], x.shape[1]).astype(dout.dtype) for i in range(2))
    return dbeta, products


@kernel("layers.batchnorm.input_gradient", "numpy")
def input_gradient(
    dout: np.ndarray, x: np.ndarray, mean: np.ndarray, scale: np.ndarray, shift: np.ndarray, slope: np.ndarray
) -> np.ndarray:
    def fill(
        dout: np.ndarray,
        x: np.ndarray,
        dx: np.ndarray,
        mean: np.ndarray,
        scale: np.ndarray,
        shift: np.ndarray,
        slope: np.ndarray,
    ) -> None:
        centered = x - mean
        centered *= slope
        np.subtract(dout, shift, out=dx)
        dx -= centered
        dx *= scale

    dx = np.empty(x.shape, dtype=np.result_type(dout, x, scale))
    over_blocks(fill, [dout, x, dx], [mean, scale, shift, slope])
    return dx
