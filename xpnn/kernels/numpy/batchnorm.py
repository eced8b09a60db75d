"""Batch normalization on NumPy: each pass over the batch reads it once, in blocks that stay in a core's cache.

Rows are taken several side by side, as one row of a wider matrix: NumPy is slow on many short rows. Sums of blocks are
added up in float64.
"""

import math

import numpy as np

from xpnn.kernels import kernel
from xpnn.kernels.numpy.blocks import BLOCK, WORTH_A_THREAD, split
from xpnn.threads import share

WIDTH = 1024  # numbers in a row, or fewer


@kernel("layers.batchnorm.moments", "numpy")
def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    (n, d), (wide,) = x.shape, _wide(x)

    def of_blocks(part: slice) -> list[tuple[int, np.ndarray, np.ndarray]]:
        found = []
        for rows in split(part, BLOCK // wide.shape[1]):
            mean = np.mean(wide[rows], axis=0)
            centered = wide[rows] - mean
            centered *= centered
            found.append((rows.stop - rows.start, mean, np.sum(centered, axis=0)))
        return found

    blocks = [block for part in share(of_blocks, *_size(wide)) for block in part]
    counts = np.repeat([float(count) for count, _, _ in blocks], wide.shape[1] // d)[:, np.newaxis]
    means, squares = (np.stack(v).reshape(-1, d).astype(np.float64) for v in list(zip(*blocks, strict=True))[1:])
    mean = np.sum(counts * means, axis=0) / n
    var = (np.sum(squares, axis=0) + np.sum(counts * (means - mean) ** 2, axis=0)) / n  # Chan et al., 1979
    return mean.astype(x.dtype), var.astype(x.dtype)


@kernel("layers.batchnorm.normalize", "numpy")
def normalize(x: np.ndarray, mean: np.ndarray, scale: np.ndarray, beta: np.ndarray) -> np.ndarray:
    out = np.empty(x.shape, dtype=np.result_type(x, mean, scale, beta))
    wide, wide_out = _wide(x, out)
    mean, scale, beta = _repeated(wide, mean, scale, beta)

    def fill(part: slice) -> None:
        for rows in split(part, BLOCK // wide.shape[1]):
            block = np.subtract(wide[rows], mean, out=wide_out[rows])
            block *= scale
            block += beta

    share(fill, *_size(wide))
    return out


@kernel("layers.batchnorm.gradient_sums", "numpy")
def gradient_sums(dout: np.ndarray, x: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    douts, wide = _wide(dout, x)
    (means,) = _repeated(wide, mean)

    def of_part(part: slice) -> np.ndarray:
        sums = np.zeros((2, wide.shape[1]))
        for rows in split(part, BLOCK // wide.shape[1]):
            centered = wide[rows] - means
            centered *= douts[rows]
            sums += np.sum(douts[rows], axis=0), np.sum(centered, axis=0)
        return sums

    sums = np.sum(share(of_part, *_size(wide)), axis=0)
    dbeta, products = np.sum(sums.reshape(2, -1, x.shape[1]), axis=1).astype(dout.dtype)
    return dbeta, products


@kernel("layers.batchnorm.input_gradient", "numpy")
def input_gradient(
    dout: np.ndarray, x: np.ndarray, mean: np.ndarray, scale: np.ndarray, shift: np.ndarray, slope: np.ndarray
) -> np.ndarray:
    dx = np.empty(x.shape, dtype=np.result_type(dout, x, scale))
    douts, wide, wide_dx = _wide(dout, x, dx)
    mean, scale, shift, slope = _repeated(wide, mean, scale, shift, slope)

    def fill(part: slice) -> None:
        for rows in split(part, BLOCK // wide.shape[1]):
            centered = wide[rows] - mean
            centered *= slope
            block = np.subtract(douts[rows], shift, out=wide_dx[rows])
            block -= centered
            block *= scale

    share(fill, *_size(wide))
    return dx


def _wide(*arrays: np.ndarray) -> list[np.ndarray]:
    """Rows (N, D), so many side by side as divide N and make rows of no more than WIDTH numbers."""
    n, d = arrays[0].shape
    together = math.gcd(n, 2 ** int(math.log2(max(WIDTH // max(d, 1), 1))))
    return [array.reshape(n // max(together, 1), -1) if n else array for array in arrays]


def _repeated(wide: np.ndarray, *vectors: np.ndarray) -> list[np.ndarray]:
    return [np.tile(vector, wide.shape[1] // max(vector.size, 1)) for vector in vectors]


def _size(wide: np.ndarray) -> tuple[int, int]:
    """How many rows there are, and how many are worth a thread."""
    return len(wide), WORTH_A_THREAD // max(wide.shape[1], 1)
