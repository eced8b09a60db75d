"""Pooling on NumPy: a few images at a time, as (N, H, W, C), written into place."""

import math

import numpy as np

from xpnn.kernels import kernel
from xpnn.kernels.numpy.blocks import WORTH_A_THREAD, split
from xpnn.kernels.numpy.masks import keep
from xpnn.threads import share
from xpnn.windows import Pair, Window

CHUNK = 2**20  # bytes of images that are handled at a time


@kernel("layers.pooling.window_max", "numpy")
def window_max(x: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
    counts, last = window.counts(x.shape[2:]), math.prod(window.size) - 1
    out = np.empty((x.shape[0], *counts, x.shape[1]), dtype=x.dtype)
    place = np.zeros(out.shape, dtype=np.uint8 if last < 256 else np.int64)

    def fill(part: slice) -> None:
        for images in split(part, CHUNK // max(x[:1].nbytes, 1)):
            taps = [x[images, :, rows, cols].transpose(0, 2, 3, 1) for rows, cols in window.slices(counts)]
            largest, where = out[images], place[images]
            largest[...] = taps[0]
            for tap in taps[1:]:
                np.maximum(largest, tap, out=largest)
            # The place of the first maximum is how many numbers before it are smaller.
            smaller, before = np.ones(largest.shape, dtype=bool), np.empty(largest.shape, dtype=bool)
            for tap in taps[:last]:
                np.logical_and(smaller, np.not_equal(tap, largest, out=before), out=smaller)
                np.add(where, smaller, out=where)
            if np.isnan(largest).any():  # NaN equals nothing, itself included
                for k in range(last, -1, -1):
                    where[np.isnan(taps[k])] = k

    share(fill, len(x), WORTH_A_THREAD // max(x[:1].size, 1), along=True)
    return out.transpose(0, 3, 1, 2), place.transpose(0, 3, 1, 2)


@kernel("layers.pooling.window_max_grad", "numpy")
def window_max_grad(dout: np.ndarray, place: np.ndarray, image: Pair, window: Window) -> np.ndarray:
    dx = np.zeros((dout.shape[0], *image, dout.shape[1]), dtype=dout.dtype)
    apart = all(stride >= size for stride, size in zip(window.stride, window.size, strict=True))

    def fill(part: slice) -> None:
        for images in split(part, CHUNK // max(dout[:1].nbytes, 1)):
            douts, where = (a[images].transpose(0, 2, 3, 1) for a in (dout, place))
            for k, (rows, cols) in enumerate(window.slices(dout.shape[2:])):
                tap = dx[images, rows, cols]
                if apart:  # each number is in one window at most
                    keep(douts, where == k, out=tap)
                else:
                    tap += keep(douts, where == k)

    share(fill, len(dout), WORTH_A_THREAD // max(dout[:1].size, 1), along=True)
    return dx.transpose(0, 3, 1, 2)
