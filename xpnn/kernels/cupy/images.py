"""Moving pixels on the device, and standardizing them: a batch in one launch, wherever its images come from."""

import math
from typing import Any

import cupy

from xpnn.kernels import kernel
from xpnn.kernels.cupy.source import C_TYPES, THREADS, Source, of_each_type
from xpnn.places import Chain, Mirrored, Shifted, places_of

BITS = {1: "unsigned char", 2: "unsigned short", 4: "unsigned", 8: "u64"}  # by the size of a number
PACKS = BITS | {16: "Pack<u64, 2>"}  # by the size of what a thread moves at once
BLOCKS = 1024  # of an image, at most
FEW = 4  # channels that a thread takes with a pixel, at most

IMAGES = Source(
    "images.cu",
    [
        *(f"pick<{bits}, {bits}, false>" for bits in BITS.values()),
        *of_each_type("pick<unsigned char, T, true>", "pick<T, T, true>", "pick<Acc, T, true>"),
        *(f"taken<{pack}>" for pack in PACKS.values()),
    ],
)


@kernel("data.images.pick", "cupy")
def pick(x: Any, indices: Any = None, rows: Chain = (), columns: Chain = ()) -> Any:
    """Keeps the order in memory: channels last or not."""
    bits = BITS[x.itemsize]
    return _picked(f"pick<{bits}, {bits}, false>", x, x.dtype, _is_last(x), (None, None), indices, rows, columns)


@kernel("data.images.taken", "cupy")
def taken(x: Any, indices: Any) -> Any:
    """Keeps the order in memory, as `pick` does."""
    last = x.ndim == 4 and not x.flags.c_contiguous
    examples = x.transpose(0, 2, 3, 1) if last else x
    if not examples.flags.c_contiguous or indices.ndim != 1:
        return cupy.take(x, indices, axis=0)
    out = cupy.empty((len(indices), *examples.shape[1:]), dtype=x.dtype)
    if out.size:
        size = out[0].nbytes
        unit = math.gcd(size, x.data.ptr, out.data.ptr, max(PACKS))
        blocks = min(math.ceil(size / unit / THREADS), BLOCKS)
        indices = cupy.ascontiguousarray(indices, dtype="int64")
        IMAGES.launch(f"taken<{PACKS[unit]}>", (len(out), blocks), (THREADS,), (x, indices, size // unit, out))
    return out.transpose(0, 3, 1, 2) if last else out


@kernel("data.images.pick_standardized", "cupy")
def pick_standardized(
    x: Any, mean: Any, std: Any, dtype: str, indices: Any = None, rows: Chain = (), columns: Chain = ()
) -> Any:
    """Keeps the order in memory, too."""
    return _standardized(x, mean, std, dtype, _is_last(x), indices, rows, columns)


@kernel("layers.standardize.standardized", "cupy")
def standardized(x: Any, mean: Any, std: Any, dtype: str) -> Any:
    """Images come out with their channels last in memory, as convolutions want them."""
    if x.ndim == 4:
        return _standardized(x, mean, std, dtype, last=True)
    rows = cupy.ascontiguousarray(x).reshape(len(x), 1, 1, math.prod(x.shape[1:]))
    mean, std = (None if y is None else y.reshape(1, 1, y.size) for y in (mean, std))
    return _standardized(rows, mean, std, dtype, last=False).reshape(x.shape)


def _standardized(
    x: Any,
    mean: Any,
    std: Any,
    dtype: str,
    last: bool,
    indices: Any = None,
    rows: Chain = (),
    columns: Chain = (),
) -> Any:
    """`std` has the shape of `mean`: for each number or channel of an image, or one for all."""
    of = cupy.dtype(dtype)
    kept = cupy.dtype("float64" if of.char == "d" else "float32")
    if x.dtype not in ("uint8", of):  # of other integers no more than those of the batch are cast
        x = pick(x, indices, rows, columns).astype(kept)
        indices, rows, columns = None, (), ()
    mean, std = (None if y is None else cupy.ascontiguousarray(y, dtype=kept) for y in (mean, std))
    name = f"pick<{C_TYPES.get(x.dtype.char, 'unsigned char')}, {C_TYPES[of.char]}, true>"
    return _picked(name, x, of, last, (mean, std), indices, rows, columns)


def _is_last(x: Any) -> bool:
    """Whether images have their channels last in memory."""
    return x.shape[1] > 1 and x.strides[1] < x.strides[3]


def _picked(
    name: str,
    x: Any,
    dtype: Any,
    last: bool,
    statistics: tuple[Any, Any],
    indices: Any = None,
    rows: Chain = (),
    columns: Chain = (),
) -> Any:
    (m, c, *size), (mean, _) = x.shape, statistics
    of_rows, (down,) = _origin(rows, size[0], Shifted)
    of_columns, (right, mirrored) = _origin(columns, size[1], Shifted, Mirrored)
    n = m if indices is None else len(indices)
    h, w = (old if new is None else new.shape[1] for old, new in zip(size, (of_rows, of_columns), strict=True))
    out = cupy.empty((n, h, w, c) if last else (n, c, h, w), dtype)
    if out.size:
        arrays = indices, of_rows, of_columns, *(None if each is None else each[0] for each in (down, right, mirrored))
        origin = [None if y is None else cupy.ascontiguousarray(y, dtype="int64") for y in arrays]
        reflect = [int(each is not None and each.edges == "reflect") for each in (down, right)]
        orders = int(bool(columns) and columns[0] is mirrored), int(last)
        of_mean = (0, 0, 0) if mean is None else _strides(mean)
        of_thread = c if c <= FEW else 1
        sizes = (of_thread, c, h, w, *size)
        args = (x, out, *origin, *reflect, *orders, *sizes, *_strides(x), *statistics, *of_mean)
        blocks = math.ceil(h * w * c / of_thread / THREADS)
        IMAGES.launch(name, (n, min(blocks, BLOCKS)), (THREADS,), args)
    return out.transpose(0, 3, 1, 2) if last else out


def _origin(chain: Chain, size: int, *kinds: type) -> tuple[Any, list[Any]]:
    """Return None and, of a chain that has each kind at most once, those; a kernel then finds the places itself.

    Of other chains the places, and None for each kind.
    """
    known = {type(places): places for places in chain if type(places) in kinds}
    if len(known) == len(chain):
        return None, [known.get(kind) for kind in kinds]
    return places_of(chain, size), [None for _ in kinds]


def _strides(x: Any) -> list[int]:
    """In numbers; 0 where one serves all."""
    return [0 if size == 1 else stride // x.itemsize for size, stride in zip(x.shape, x.strides, strict=True)]
