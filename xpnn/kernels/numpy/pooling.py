"""Pooling on NumPy, of images as (N, H, W, C), written into place."""

import math

import numpy as np

from xpnn.kernels import kernel
from xpnn.kernels.numpy.blocks import WORTH_A_THREAD
from xpnn.kernels.numpy.loops import loops
from xpnn.threads import share
from xpnn.windows import Pair, Window


@kernel("layers.pooling.window_max", "numpy")
def window_max(x: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
    out = np.empty((x.shape[0], *window.counts(x.shape[2:]), x.shape[1]), dtype=x.dtype)
    place = np.zeros(out.shape, dtype=np.uint8 if math.prod(window.size) <= 256 else np.int64)
    pixels = x.transpose(0, 2, 3, 1)

    def fill(images: slice) -> None:
        loops.window_max(np.ascontiguousarray(pixels[images]), window, out[images], place[images])

    share(fill, len(x), WORTH_A_THREAD // max(x[:1].size, 1), along=True)
    return out.transpose(0, 3, 1, 2), place.transpose(0, 3, 1, 2)


@kernel("layers.pooling.window_max_grad", "numpy")
def window_max_grad(dout: np.ndarray, place: np.ndarray, image: Pair, window: Window) -> np.ndarray:
    dx = np.empty((dout.shape[0], *image, dout.shape[1]), dtype=dout.dtype)
    douts, places = (array.transpose(0, 2, 3, 1) for array in (dout, place))
    # Windows side by side write each number once, but for the rows and columns at the end that fill none.
    side_by_side = window.stride == window.size
    rows, cols = (n * s * side_by_side for n, s in zip(dout.shape[2:], window.size, strict=True))

    def fill(images: slice) -> None:
        dx[images, rows:] = 0
        dx[images, :, cols:] = 0
        dout, place = np.ascontiguousarray(douts[images]), np.ascontiguousarray(places[images])
        loops.window_max_grad(dout, place, window, dx[images])

    share(fill, len(dout), WORTH_A_THREAD // max(dout[:1].size, 1), along=True)
    return dx.transpose(0, 3, 1, 2)
