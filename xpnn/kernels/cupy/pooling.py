"""Max pooling on the device, of images in either order of memory."""

import math
from typing import Any

import cupy

from xpnn.kernels import kernel
from xpnn.kernels.cupy.blocks import over_rows, packed
from xpnn.kernels.cupy.source import C_TYPES, FLAGS, Source, of_each_type
from xpnn.windows import Pair, Window

POOLING = Source(
    "pooling.cu",
    of_each_type(
        *("window_max<T, unsigned char, true>", "window_max<T, unsigned char, false>", "window_max<T, i64, false>"),
        "window_max_grad<T, unsigned char, true>",
        "window_max_grad<T, unsigned char, false>",
        "window_max_grad<T, i64, false>",
    ),
)


@kernel("layers.pooling.window_max", "cupy")
def window_max(x: Any, window: Window) -> tuple[Any, Any]:
    shape, channels_first = x.shape, _channels_first(x)
    counts, small = window.counts(shape[2:]), math.prod(window.size) <= 256
    x = _in_memory(x, channels_first)
    out = cupy.empty((len(x), *counts, x.shape[3]), dtype=x.dtype)
    place = cupy.empty(out.shape, dtype="uint8" if small else "int64")
    _launch("window_max", (x, out, place), out, place, shape[2:], counts, window)
    return _images(out, shape, channels_first), _images(place, shape, channels_first)


@kernel("layers.pooling.window_max_grad", "cupy")
def window_max_grad(dout: Any, place: Any, image: Pair, window: Window) -> Any:
    """In memory as the places are, and so as the images were."""
    shape, channels_first = place.shape, _channels_first(place)
    dout, place = _in_memory(dout, channels_first), _in_memory(place, channels_first)
    dx = cupy.empty((len(dout), *image, dout.shape[3]), dtype=dout.dtype)
    _launch("window_max_grad", (dout, place, dx), dx, place, image, shape[2:], window)
    return _images(dx, shape, channels_first)


def _launch(
    name: str, arrays: tuple[Any, ...], result: Any, place: Any, image: Pair, counts: Pair, window: Window
) -> None:
    """Launch a kernel over the rows of its result, which is (N, H, W, C) in memory."""
    if result.size == 0:
        return
    n, height, width, c = result.shape
    byte = place.dtype.itemsize == 1
    pack = byte and packed(c, *(x for x in arrays if x is not place))
    grid, block = over_rows(n * height, width * c * result.dtype.itemsize // 16 if pack else width * c)
    kernel_name = f"{name}<{C_TYPES[result.dtype.char]}, {'unsigned char' if byte else 'i64'}, {FLAGS[pack]}>"
    sizes = (n * height, *image, c, *counts, *window.size, *window.stride)
    POOLING.launch(kernel_name, grid, block, (*arrays, *sizes))


def _channels_first(images: Any) -> bool:
    """Whether they lie so and not with the channels last, which one pixel has in either order: as convolutions like."""
    return images.flags.c_contiguous and not images.transpose(0, 2, 3, 1).flags.c_contiguous


def _in_memory(images: Any, channels_first: bool) -> Any:
    """Return images (N, C, H, W) as (N, H, W, C) or (N C, H, W, 1), whichever they are in memory."""
    if channels_first:
        n, c, h, w = images.shape
        return cupy.ascontiguousarray(images).reshape(n * c, h, w, 1)
    return cupy.ascontiguousarray(images.transpose(0, 2, 3, 1))


def _images(pixels: Any, shape: tuple[int, ...], channels_first: bool) -> Any:
    """The way back, for images (N, C, ...) as in `shape`."""
    if channels_first:
        return pixels.reshape(*shape[:2], *pixels.shape[1:3])
    return pixels.transpose(0, 3, 1, 2)
