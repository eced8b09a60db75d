"""Convolution on the device: by cuDNN, or windows written out as rows, a few images at a time, and one product.

Images are handled as (N, H, W, C), and results come back as (N, C, H, W) views of that. The columns of a chunk take no
more than `COLUMNS` bytes, if those of one image do not.
"""

import math
from collections.abc import Iterator
from typing import Any

import cupy

from xpnn.kernels import kernel
from xpnn.kernels.cupy import cublaslt, cudnn, source
from xpnn.kernels.cupy.fused import add_and_activate
from xpnn.kernels.cupy.products import multiply
from xpnn.windows import Pair, Window

COLUMNS = 256 * 2**20  # bytes
TILE = 4096  # numbers, as in convolution.cu
ONE_PIXEL = Window((1, 1))

CONVOLUTION = source.Source(
    "convolution.cu",
    source.of_each_type(
        *(f"{name}<T, {packed}>" for name in ("im2col", "col2im") for packed in source.FLAGS.values()),
        *(f"arrange<{of}, {last}>" for of in ("T, T", "T, Acc", "Acc, T") for last in source.FLAGS.values()),
    ),
)


@kernel("layers.convolution.arranged", "cupy")
def arranged(w: Any, dtype: Any) -> Any:
    """With the channels last: a copy, but for filters of one pixel or one channel, which lie so already."""
    last = w.transpose(0, 2, 3, 1)
    if last.flags.c_contiguous and last.dtype == dtype:
        return w
    out = cupy.empty(last.shape, dtype=dtype)
    _arrange(w, out.transpose(0, 3, 1, 2), to_last=True)
    return out.transpose(0, 3, 1, 2)


def _arrange(filters: Any, out: Any, to_last: bool) -> None:
    """Copy filters (F, C, KH, KW), whose channels are last in memory in one of the two arrays and not in the other."""
    (f, c, *window), (last, first) = filters.shape, (out, filters) if to_last else (filters, out)
    taps = math.prod(window)
    fits = first.flags.c_contiguous and last.transpose(0, 2, 3, 1).flags.c_contiguous
    name = f"arrange<{source.C_TYPES[filters.dtype.char]}, {source.C_TYPES[out.dtype.char]}, {source.FLAGS[to_last]}>"
    if not fits or taps > TILE or name not in CONVOLUTION.kernels or not out.size:
        out[...] = filters
        return
    blocks = math.ceil(c / (TILE // taps))
    channels = math.ceil(c / blocks)
    CONVOLUTION.launch(name, (f, blocks), (source.THREADS,), (filters, out, c, taps, channels))


@kernel("layers.convolution.correlate", "cupy")
def correlate(x: Any, w: Any, b: Any, window: Window, groups: int) -> Any:
    x, w = _of_one_dtype(x, w)
    out = cudnn.correlate(x, w, b, window)
    return _correlate(x, _rows_of_filters(w, groups), b, window) if out is None else out


@kernel("layers.convolution.correlate_activated", "cupy")
def correlate_activated(x: Any, w: Any, b: Any, window: Window, groups: int, activation: str) -> tuple[Any, Any]:
    """A ReLU is part of cuDNN's plan or of cuBLASLt's product, where there is one for both, or else a launch.

    In a plan or a product it may make 0 of what is no number, other than the definition's.
    """
    x, w, b = _of_one_dtype(x, w, b)
    if activation == "relu":
        out = _rectified(x, w, b, window, groups)
        return out, out
    before = correlate(x, w, b, window, groups)
    return _activate(before.transpose(0, 2, 3, 1), None, activation).transpose(0, 3, 1, 2), before


def _rectified(x: Any, w: Any, b: Any, window: Window, groups: int) -> Any:
    out = cudnn.correlate(x, w, b, window, relu=True)
    if out is not None:
        return out
    out = cudnn.correlate(x, w, b, window)
    if out is None:
        return _correlate(x, _rows_of_filters(w, groups), b, window, relu=True)
    return _activate(out.transpose(0, 2, 3, 1), None, "relu").transpose(0, 3, 1, 2)


def _activate(images: Any, b: Any, activation: str) -> Any:
    """Add a bias to images (N, H, W, C) and return what an activation makes of them: for a ReLU they themselves."""
    b = None if b is None else cupy.ascontiguousarray(b)
    out, _ = add_and_activate(images.reshape(-1, images.shape[3]), b, activation)
    return out.reshape(images.shape)


def _correlate(x: Any, filters: Any, b: Any, window: Window, relu: bool = False) -> Any:
    """Filters (groups, F / groups, KH KW C / groups) times every window."""
    (n, _, *image), (groups, f, _) = x.shape, filters.shape
    out = cupy.empty((n, *window.counts(image), groups * f), dtype=x.dtype)
    bias = b.reshape(groups, f) if b is not None and b.dtype == x.dtype else None
    epilogue = "RELU" if bias is None else "RELU_BIAS"
    for images, columns in _columns(x, window, groups):
        factors, result = (columns, filters.transpose(0, 2, 1)), _by_group(out[images], groups)
        if not relu:
            multiply(*factors, result, bias)
        elif groups > 1 or not cublaslt.multiply(*factors, result, bias, False, epilogue):
            multiply(*factors, result)
            _activate(out[images], b, "relu")
    if b is not None and bias is None:
        out = out + b
    return out.transpose(0, 3, 1, 2)


@kernel("layers.convolution.correlate_filter_grad", "cupy")
def correlate_filter_grad(dout: Any, x: Any, window: Window, groups: int, out: Any = None) -> Any:
    dout, x = _of_one_dtype(dout, x)
    dw = cudnn.correlate_filter_grad(dout, x, window, groups, out)
    if dw is None:
        dw = _filter_grad(dout, x, window, groups, out)
    if out is None:
        return dw.astype(x.dtype, copy=False)
    if dw.data.ptr != out.data.ptr:
        _arrange(dw, out, to_last=False)
    return out


def _filter_grad(dout: Any, x: Any, window: Window, groups: int, out: Any) -> Any:
    shape = f, c, *_ = dout.shape[1], x.shape[1] // groups, *window.size
    # Chunks of half types are added up in float32.
    memory = cudnn.memory_for(shape, "float32" if x.dtype.itemsize == 2 else x.dtype, out)
    douts, dw = dout.transpose(0, 2, 3, 1), memory.reshape(groups, f // groups, math.prod(window.size) * c)
    if len(x) == 0:
        dw[...] = 0
    for images, columns in _columns(x, window, groups):
        multiply(_by_group(douts[images], groups).transpose(0, 2, 1), columns, dw, add=images.start > 0)
    return memory.transpose(0, 3, 1, 2)


@kernel("layers.convolution.correlate_input_grad", "cupy")
def correlate_input_grad(dout: Any, w: Any, image: Pair, window: Window, groups: int) -> Any:
    dtype = dout.dtype
    dout, w = _of_one_dtype(dout, w)
    dx = cudnn.correlate_input_grad(dout, w, image, window, groups)
    if dx is not None:
        return dx.astype(dtype, copy=False)
    (f, c, kh, kw), (eh, ew), (ph, pw) = w.shape, window.extent, window.pad
    if window.stride == (1, 1) and ph < eh and pw < ew and f // groups <= c and window != ONE_PIXEL:
        # A pixel's gradient is a sum over the windows that met it: a correlation with the filters turned round.
        turned = w.reshape(groups, f // groups, c, kh, kw)[..., ::-1, ::-1].transpose(0, 2, 3, 4, 1)
        filters = cupy.ascontiguousarray(turned).reshape(groups, c, kh * kw * f // groups)
        dx = _correlate(dout, filters, None, window._replace(pad=(eh - 1 - ph, ew - 1 - pw)))
    else:
        dx = _gather(dout, _rows_of_filters(w, groups), image, window)
    return dx.astype(dtype, copy=False)


def _gather(dout: Any, filters: Any, image: Pair, window: Window) -> Any:
    """The gradients of all windows, and for each pixel the sum of those that met it."""
    (n, _, *counts), (groups, _, length), douts = dout.shape, filters.shape, dout.transpose(0, 2, 3, 1)
    places, c = math.prod(counts), length // math.prod(window.size)
    dx = cupy.empty((n, *image, groups * c), dtype=dout.dtype)
    if window == ONE_PIXEL:
        multiply(_by_group(douts, groups), filters, _by_group(dx, groups))
        return dx.transpose(0, 3, 1, 2)
    for images, memory in _chunks(n, groups * places * length, dx.dtype):
        columns = memory.reshape(groups, -1, length)
        multiply(_by_group(douts[images], groups), filters, columns)
        pixels = (images.stop - images.start) * math.prod(image)
        args = (columns, dx[images], pixels, c, *image, *counts, *_numbers(window))
        _launch("col2im", c * dx.itemsize % 16 == 0, dx.dtype, pixels, c, groups, args)
    return dx.transpose(0, 3, 1, 2)


def _columns(x: Any, window: Window, groups: int) -> Iterator[tuple[slice, Any]]:
    """A few images at a time: which they are, and their windows (groups, places, KH KW C / groups)."""
    (n, channels, *image), counts, size = x.shape, window.counts(x.shape[2:]), x.itemsize
    if window == ONE_PIXEL and n:  # the images are the matrix
        yield slice(0, n), _by_group(x.transpose(0, 2, 3, 1), groups)
        return
    c = channels // groups
    places, length = math.prod(counts), math.prod(window.size) * c
    of_image, of_channel, of_row, of_column = (stride // size for stride in x.strides)
    packed = of_channel == 1 and all(numbers * size % 16 == 0 for numbers in (c, of_image, of_row, of_column))
    packed = packed and x.data.ptr % 16 == 0
    for images, memory in _chunks(n, groups * places * length, x.dtype):
        columns = memory.reshape(groups, -1, length)
        rows, strides = columns.shape[1], (of_image, of_row, of_column, of_channel)
        args = (x[images], columns, rows, c, *image, *counts, *_numbers(window), *strides)
        _launch("im2col", packed, x.dtype, rows, length, groups, args)
        yield images, columns


def _chunks(n: int, numbers: int, dtype: Any) -> Iterator[tuple[slice, Any]]:
    """A few of n images at a time: which they are, and memory for so many numbers of each; it is always the same."""
    if n:
        size = math.ceil(n / math.ceil(n * numbers * dtype.itemsize / COLUMNS))
        memory = cupy.empty(size * numbers, dtype=dtype)
        for start in range(0, n, size):
            images = slice(start, min(start + size, n))
            yield images, memory[: (images.stop - start) * numbers]


def _launch(kernel: str, packed: bool, dtype: Any, rows: int, length: int, groups: int, args: tuple) -> None:
    """A row of threads for each of the rows, of so many numbers."""
    threads = 1
    while threads < source.WARP and threads * (16 // dtype.itemsize if packed else 1) < length:
        threads *= 2
    block = threads, source.THREADS // threads
    grid = min(math.ceil(rows / block[1]), source.BLOCKS), groups
    name = f"{kernel}<{source.C_TYPES[dtype.char]}, {source.FLAGS[packed]}>"
    CONVOLUTION.launch(name, grid, block, args)


def _numbers(window: Window) -> tuple[int, ...]:
    """As the kernels take a window."""
    return (*window.size, *window.stride, *window.pad, *window.dilation)


def _rows_of_filters(w: Any, groups: int) -> Any:
    """The filters (groups, F / groups, KH KW C): a view where their channels are last in memory."""
    f, c, kh, kw = w.shape
    return cupy.ascontiguousarray(w.transpose(0, 2, 3, 1)).reshape(groups, f // groups, kh * kw * c)


def _by_group(images: Any, groups: int) -> Any:
    """Images (N, H, W, C) as matrices (groups, N H W, C / groups): a view where they have no gaps in memory."""
    c = images.shape[3]
    return images.reshape(-1, groups, c // groups).transpose(1, 0, 2)


def _of_one_dtype(*arrays: Any) -> list[Any]:
    """Return the arrays in the type that all go into. None stays None."""
    types = {x.dtype for x in arrays if x is not None}
    dtype = cupy.result_type(*types) if len(types) > 1 else arrays[0].dtype
    return [None if x is None else x.astype(dtype, copy=False) for x in arrays]


def describe() -> str:
    """By what convolutions are computed, for people to read."""
    if cudnn.obstacle():
        return f"im2col and products; {cudnn.obstacle()}"
    single = "TF32" if cublaslt.TF32 else "exact float32, by im2col and products where cuDNN has no exact plan"
    plans = f"the fastest of up to {cudnn.CANDIDATES} plans" if cudnn.AUTOTUNE else "the heuristic's first plan"
    return f"cuDNN {cudnn.version()}, {single}; {plans}"
