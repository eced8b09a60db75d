"""Pooling: one number for each window of each channel."""

import math
from collections.abc import Mapping
from typing import Any

from xpnn import backend as backends
from xpnn.arguments import check_keys
from xpnn.backend import Array, Shape, library_of, namespace, one_kind
from xpnn.kernels import fast_path
from xpnn.layers.layer import Cache, Layer, check_dout
from xpnn.layers.precision import narrowed
from xpnn.windows import Pair, Window, as_pair

POOL_KEYS = ("pool_height", "pool_width", "stride")


def max_pool_forward(x: Array, pool_param: Mapping[str, Any]) -> tuple[Array, Cache]:
    """Take the largest number of each window: ``out[n,c,i,j] = max_uv x[n,c,s i + u,s j + v]``.

    Rows and columns at the end that fill no window are left out. NaN passes through.

    Parameters
    ----------
    x : array (N, C, H, W)
    pool_param : dict
        ``pool_height``, ``pool_width``, and ``stride``: a whole number, or one for each axis.

    Returns
    -------
    out : array (N, C, H', W')
        ``H' = 1 + (H - pool_height) // stride``.
    cache : object
        For `max_pool_backward`.

    Raises
    ------
    TypeError
        When x holds no floating-point numbers.
    ValueError
        For a stride of 0, or a window larger than the image.

    Source: UCLA ECE C147, homework 5.
    """
    return _max_pool(x, _checked_window("max_pool", x, pool_param))


def _max_pool(x: Array, window: Window) -> tuple[Array, Cache]:
    fast = fast_path("layers.pooling.window_max", library_of(x))
    out, place = (fast or window_max)(x, window)
    return out, (place, tuple(x.shape[2:]), window)


def max_pool_backward(dout: Array, cache: Cache) -> Array:
    """Differentiate `max_pool_forward`: a window's gradient goes to its largest number, the first of equal ones.

    Where windows overlap, gradients add up.

    Parameters
    ----------
    dout : array (N, C, H', W')
        The gradient of the loss by out.
    cache : object
        From `max_pool_forward`.

    Returns
    -------
    dx : array (N, C, H, W)
    """
    place, image, window = cache
    check_dout("max_pool_backward", dout, place, place.shape)
    fast = fast_path("layers.pooling.window_max_grad", library_of(dout))
    return (fast or window_max_grad)(dout, place, image, window)


def window_max(x: Array, window: Window) -> tuple[Array, Array]:
    """The definition of `max_pool_forward`: the maximum, and its place within the window, counted row by row."""
    xp = namespace(x)
    first, *rest = (x[:, :, rows, cols] for rows, cols in window.slices(window.counts(x.shape[2:])))
    out, place = xp.asarray(first, copy=True), xp.zeros(first.shape, dtype=_place_dtype(xp, window), device=x.device)
    for k, taps in enumerate(rest, 1):
        larger = (taps > out) | (xp.isnan(taps) & ~xp.isnan(out))
        out = xp.where(larger, taps, out)
        place = xp.where(larger, xp.full_like(place, k), place)
    return out, place


def window_max_grad(dout: Array, place: Array, image: Pair, window: Window) -> Array:
    """The definition of `max_pool_backward`."""
    xp = namespace(dout)
    dx = xp.zeros((*dout.shape[:2], *image), dtype=dout.dtype, device=dout.device)
    for k, (rows, cols) in enumerate(window.slices(dout.shape[2:])):
        dx[:, :, rows, cols] += xp.where(place == k, dout, 0.0)
    return dx


def _place_dtype(xp: Any, window: Window) -> Any:
    return xp.uint8 if math.prod(window.size) <= 256 else xp.int64


def avg_pool_forward(x: Array, pool_param: Mapping[str, Any]) -> tuple[Array, Cache]:
    """Average each window: ``out[n,c,i,j] = mean_uv x[n,c,s i + u,s j + v]``.

    Parameters, returns and errors as for `max_pool_forward`.

    Source: LeCun et al., "Gradient-based learning applied to document recognition", 1998.
    """
    window = _checked_window("avg_pool", x, pool_param)
    return _avg_pool(x, window)


def _avg_pool(x: Array, window: Window) -> tuple[Array, Cache]:
    first, *rest = (x[:, :, rows, cols] for rows, cols in window.slices(window.counts(x.shape[2:])))
    out = namespace(x).asarray(first, copy=True)
    for taps in rest:
        out += taps
    out *= 1.0 / math.prod(window.size)
    return out, (backends.of(x), x.shape, window)


def avg_pool_backward(dout: Array, cache: Cache) -> Array:
    """Differentiate `avg_pool_forward`: each number of a window has an equal part of its gradient.

    Parameters and returns as for `max_pool_backward`.
    """
    kind, (n, c, height, width), window = cache
    counts = window.counts((height, width))
    xp = check_dout("avg_pool_backward", dout, kind, (n, c, *counts))
    part = xp.permute_dims(dout, (0, 2, 3, 1)) * (1.0 / math.prod(window.size))
    dx = xp.zeros((n, height, width, c), dtype=dout.dtype, device=dout.device)
    for rows, cols in window.slices(counts):
        dx[:, rows, cols, :] += part
    return xp.permute_dims(dx, (0, 3, 1, 2))


def global_avg_pool_forward(x: Array) -> tuple[Array, Cache]:
    """Average each channel over the whole image: ``out[n,c] = mean_ij x[n,c,i,j]``.

    Parameters
    ----------
    x : array (N, C, H, W)

    Returns
    -------
    out : array (N, C)
    cache : object
        For `global_avg_pool_backward`.

    Raises
    ------
    TypeError
        When x holds no floating-point numbers.
    ValueError
        When x has another number of dimensions.

    Source: Lin, Chen and Yan, "Network in network", ICLR 2014.
    """
    xp = one_kind("global_avg_pool", x=x)
    if x.ndim != 4 or 0 in x.shape[2:]:
        raise ValueError(f"global_avg_pool: expected x (N, C, H, W), H and W > 0; received x {tuple(x.shape)}")
    return xp.mean(x, axis=(2, 3)), (backends.of(x), x.shape)


def global_avg_pool_backward(dout: Array, cache: Cache) -> Array:
    """Differentiate `global_avg_pool_forward`: each pixel has an equal part of its channel's gradient.

    Parameters
    ----------
    dout : array (N, C)
        The gradient of the loss by out.
    cache : object
        From `global_avg_pool_forward`.

    Returns
    -------
    dx : array (N, C, H, W)
    """
    kind, (n, c, height, width) = cache
    xp = check_dout("global_avg_pool_backward", dout, kind, (n, c))
    part = xp.reshape(narrowed(dout * (1.0 / (height * width)), dout.dtype), (n, 1, 1, c))
    return xp.permute_dims(xp.broadcast_to(part, (n, height, width, c)), (0, 3, 1, 2))


def _checked_window(where: str, x: Array, pool_param: Mapping[str, Any]) -> Window:
    """The window that the course's dict describes, if x has room for it."""
    one_kind(where, x=x)
    if x.ndim != 4:
        raise ValueError(f"{where}: expected x (N, C, H, W); received x {tuple(x.shape)}")
    check_keys(where, pool_param, *POOL_KEYS)
    if missing := [key for key in POOL_KEYS if key not in pool_param]:
        raise ValueError(f"{where}: expected {missing[0]}; received {', '.join(pool_param) or 'nothing'}")
    size = as_pair(where, "a window", (pool_param["pool_height"], pool_param["pool_width"]), 1)
    window = Window(size, as_pair(where, "a stride", pool_param["stride"], 1))
    window.check(where, tuple(x.shape[2:]))
    return window


# The course has several implementations to compare; here there is one, and it is the fast one.
max_pool_forward_naive = max_pool_forward_fast = max_pool_forward
max_pool_backward_naive = max_pool_backward_fast = max_pool_backward


class _Pool(Layer):
    """What the layers with a window share."""

    def __init__(self, size: int | Pair, stride: int | Pair | None = None, *, name: str = "") -> None:
        super().__init__(name)
        where = name or type(self).__name__.lower()
        pair = as_pair(where, "a window", size, 1)
        self.window = Window(pair, pair if stride is None else as_pair(where, "a stride", stride, 1))

    def output_shape(self, input_shape: Shape) -> Shape:
        where = self.path or type(self).__name__.lower()
        if len(input_shape) != 3:
            raise ValueError(f"{where}: expected input of shape (C, H, W); received {input_shape}")
        channels, height, width = input_shape
        self.window.check(where, (height, width))
        return channels, *self.window.counts((height, width))


class MaxPool(_Pool):
    """`max_pool_forward` as a layer.

    Parameters
    ----------
    size : int or (int, int)
        The window's height and width.
    stride : int or (int, int), optional
        By default the window's size, so that windows do not overlap.
    """

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        return _max_pool(x, self.window)

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        return max_pool_backward(dout, cache), {}


class AvgPool(_Pool):
    """`avg_pool_forward` as a layer; parameters as for `MaxPool`."""

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        return _avg_pool(x, self.window)

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        return avg_pool_backward(dout, cache), {}


class GlobalAvgPool(Layer):
    """`global_avg_pool_forward` as a layer."""

    def output_shape(self, input_shape: Shape) -> Shape:
        if len(input_shape) != 3:
            raise ValueError(
                f"{self.path or 'globalavgpool'}: expected input of shape (C, H, W); received {input_shape}"
            )
        return input_shape[:1]

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        return global_avg_pool_forward(x)

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        return global_avg_pool_backward(dout, cache), {}
