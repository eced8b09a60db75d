"""A stand-in for CuPy without a device: arrays in the host's memory, CUDA sources through g++ and cuda_on_cpu.h.

The call sites in xpnn/kernels/cupy run on it as they are, with their grids, arguments and dtypes. More is refused than
by CuPy, whose kernels would read or write what they should not: arguments of other types than the kernel's, NumPy's
arrays among CuPy's, read-only ones that are written to; and what memory_watch.cpp finds in kernels: accesses outside of
the arrays or to addresses without alignment, and data races. What `empty` gives holds no numbers.

While a stream captures a graph nothing is computed, and what would wait for the device or go to the host is refused;
the graph then does all of it at each launch, with the arrays and numbers that were given, in their places.

How one adds a kernel, say for ``layers.pooling.window_max``:

1. ``xpnn/kernels/cupy/pooling.cu`` includes common.cuh and has the kernel as a template over the type in memory;
   it computes in ``Acc<T>``.
2. ``pooling.py`` beside it makes ``Source("pooling.cu", of_each_type("window_max<T>"))``, registers the call site with
   ``@kernel("layers.pooling.window_max", "cupy")``, and is imported by ``__init__.py``.
3. That is all for the tests, if CALLS of test_kernels.py has calls of the function: each kernel that a Source names is
   compiled by g++ and by NVRTC, and the call site's results are compared with the definition's.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib
import itertools
import math
import operator
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import types
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from xpnn import backend as backends
from xpnn import kernels

try:
    import fcntl
except ImportError:  # Windows, where there is no g++ either
    fcntl = None

HERE = Path(__file__).parent
COMPILER = shutil.which("g++") if sys.platform == "linux" else None
OPTIONS = ["-std=c++17", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-Wall", "-Werror", "-Wno-unknown-pragmas"]
OPTIONS += ["-fPIC", f"-I{HERE / 'include'}"]
# Every access to memory calls memory_watch.cpp. No variable is shared with another library.
WATCHED = ["-O1", "-shared", "-fsanitize=thread,alignment,bounds", "-fno-gnu-unique", "-fno-threadsafe-statics"]
LIBRARIES = ["-nodefaultlibs", "-lstdc++", "-lm", "-lgcc_s", "-lc"]  # all but the sanitizers' own

ARCHITECTURE = 90  # of the device that there is not
ARGUMENTS = 4096  # bytes of a launch, at most
GUARD = 256  # bytes before and behind every array
CYCLES = 2_000_000  # of the device's clock, in a millisecond
IN_C_ORDER = np.where, np.concatenate, np.stack  # results, besides those of elementwise functions
UNWRITTEN = 0xFF  # no number in every floating-point type, whatever a kernel reads of it


class Launch(NamedTuple):
    """What was launched: a kernel's name with its template's arguments, and how."""

    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_mem: int


launches: list[Launch] = []  # since `installed`, or what the test has cleared
waits: list[str] = []  # the same: what waits for a device, as `float(x)` does, or for memory on its way there
computed: list[int] = []  # the same: sizes of what CuPy's own functions have written, by a launch each or more
asked: list[Callable] = []  # the same: work that libraries were asked for
watched = True  # whether memory_watch.cpp looks at what kernels access, which takes its time
backwards = False  # whether blocks and threads run from the last to the first: no result may depend on it


class KernelError(Exception):
    """What on a device would be a wrong result, a hang or an illegal address."""


class Memory(np.ndarray):
    """The bytes of an array between two guards, which are no numbers either, but others for each array."""

    _marks = itertools.cycle(range(0xF1, 0xFF))
    # All memory that a kernel may be given an address of, by where it begins and ends.
    alive: ClassVar[weakref.WeakValueDictionary] = weakref.WeakValueDictionary()

    @classmethod
    def of(cls, size: int) -> "Memory":
        mark = next(cls._marks)
        memory = np.full(size // 2 + GUARD + 256, 0xFF00 | mark, np.uint16).view(np.uint8).view(cls)
        memory.mark = mark
        memory.start = GUARD + -(memory.ctypes.data + GUARD) % 512  # CuPy's arrays start at such addresses
        memory.stop = memory.start + size
        memory.view(np.ndarray)[memory.start : memory.stop] = UNWRITTEN
        cls.alive[memory.ctypes.data + memory.start, memory.ctypes.data + memory.stop] = _root(memory)
        return _allocated(memory, size)

    def is_whole(self) -> bool:
        plain = self.view(np.ndarray)
        guards = np.full(len(plain) // 2, 0xFF00 | self.mark, np.uint16).view(np.uint8)
        guards[self.start : self.stop] = plain[self.start : self.stop]
        return np.array_equal(guards, plain)


class ndarray(np.ndarray):
    """An array "on the device"."""

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        _refuse_numpy(inputs)
        if ufunc is np.matmul:
            refuse_in_capture("cuBLAS")
        if out is not None:
            kwargs["out"] = out
        into = inputs[0] if method == "at" else out[0] if out is not None and len(out) == 1 else out
        return _do(getattr(ufunc, method), inputs, kwargs, into, in_c_order=True)

    def __array_function__(self, function, classes, args, kwargs):
        _refuse_numpy(args)
        return _do(function, args, kwargs, kwargs.get("out"), in_c_order=function in IN_C_ORDER)

    def __getitem__(self, key):
        if not _arrays_in(key) and not isinstance(key, list):  # a view, though it be of one number
            key = (
                *(key if isinstance(key, tuple) else (key,)),
                *(() if key is ... or (isinstance(key, tuple) and ... in key) else (...,)),
            )
        return _do(operator.getitem, (self, _index(key)))

    def __setitem__(self, key, value):
        _refuse_numpy((value,))
        _do(operator.setitem, (self, _index(key), value), into=self)

    def get(self, *, out=None, blocking=True):
        refuse_in_capture("a copy to the host")
        if blocking:
            waits.append("get")
            return np.array(self.view(np.ndarray))
        if not any(_root(out) is memory() for memory in pinned):
            raise KernelError("a copy to memory that is not pinned is waited for")
        if out.dtype != self.dtype or out.shape != self.shape:
            raise TypeError(f"expected {self.dtype} of {self.shape} to be copied to; received {out.dtype} {out.shape}")
        where = types.SimpleNamespace(__array_interface__=out.__array_interface__)  # which keeps nothing
        copies.append((clock.work(0.01), weakref.ref(_root(out)), where, np.array(self.view(np.ndarray))))
        return out

    def item(self, *args):
        refuse_in_capture("a copy to the host")
        waits.append("item")
        return self.view(np.ndarray).item(*args)

    def __bool__(self):
        return bool(self.item())

    def __int__(self):
        return int(self.item())

    def __index__(self):
        return self.__int__()

    def __float__(self):
        return float(self.item())

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self.ctypes.data)


def _method(name: str):
    def call(self, *args, **kwargs):
        return _do(getattr(np.ndarray, name), (self, *args), kwargs)

    return call


for _name in (
    "all",
    "any",
    "argmax",
    "argsort",
    "astype",
    "copy",
    "max",
    "mean",
    "min",
    "ravel",
    "reshape",
    "sum",
    "take",
):
    setattr(ndarray, _name, _method(_name))

ndarray.__module__ = "cupy"


def _plain(x):
    if isinstance(x, ndarray):
        return x.view(np.ndarray)
    if isinstance(x, (tuple, list)):
        return type(x)(map(_plain, x))
    return {key: _plain(value) for key, value in x.items()} if isinstance(x, dict) else x


def _on_device(x):
    if isinstance(x, (tuple, list)):
        return type(x)(map(_on_device, x))
    return np.asarray(x).view(ndarray) if isinstance(x, (np.ndarray, np.generic)) else x


def _refuse_numpy(values) -> None:
    for x in values:
        if isinstance(x, (tuple, list)):
            _refuse_numpy(x)
        elif isinstance(x, np.ndarray) and not isinstance(x, ndarray):
            raise TypeError("CuPy takes no arrays of NumPy")


@np.errstate(all="ignore")  # a device never warns
def _do(function: Callable, args: tuple, kwargs: dict | None = None, into=None, in_c_order=False):
    """Call a function of NumPy's, which writes into an array or returns new ones; while a graph is captured, later.

    What CuPy computes element by element lies in C order, other than NumPy's, whatever its arguments do.
    """
    kwargs = {} if kwargs is None else kwargs
    if into is not None:
        computed.append(into.size)
        if _capture is None:
            function(*_plain(args), **_plain(kwargs))
        else:
            call = _capture.remembered((args, kwargs))
            _capture.work.append(lambda: _call(function, call))
        return into
    result = function(*_plain(args), **_plain(kwargs))
    arrays = [
        x for x in (result if isinstance(result, tuple | list) else [result]) if isinstance(x, np.ndarray | np.generic)
    ]
    if not arrays or any(_overlap(x, arg) for x in arrays for arg in _arrays_in((args, kwargs))):
        return _on_device(result)
    computed.extend(x.size for x in arrays)
    if in_c_order:
        arrays = [np.array(x, order="C") for x in arrays]
        result = tuple(arrays) if isinstance(result, tuple) else arrays[0]
    new = arrays if _capture is None else [_capture.hold(np.array(x)) for x in arrays]
    for x in new:
        if isinstance(x, np.ndarray):  # and no number
            _allocated(x, x.nbytes)
    if _capture is None:
        result = _on_device(result)
        for x in result if isinstance(result, tuple | list) else [result]:
            Memory.alive[np.lib.array_utils.byte_bounds(x)] = _root(x)
        return result
    call = _capture.remembered((args, kwargs))

    def compute():
        again = _call(function, call)
        for x, value in zip(new, again if isinstance(again, tuple | list) else [again], strict=True):
            x[...] = value

    _capture.work.append(compute)
    for x in new:
        x[...] = 0  # computed later, and until then an index that every array has
    return _on_device(type(result)(new) if isinstance(result, tuple | list) else new[0])


def _call(function: Callable, remembered) -> object:
    args, kwargs = _recalled(remembered)
    return function(*args, **kwargs)


def _index(key):
    if isinstance(key, list):
        refuse_in_capture("a copy from the host")
    if any(x.dtype == bool for x in _arrays_in(key)):
        refuse_in_capture("an index whose length nobody knows")
    return key


def _arrays_in(x) -> list[np.ndarray]:
    if isinstance(x, np.ndarray):
        return [x]
    parts = x.values() if isinstance(x, dict) else x if isinstance(x, tuple | list) else ()
    return [array for part in parts for array in _arrays_in(part)]


def _overlap(x, y) -> bool:
    return isinstance(x, np.ndarray) and np.may_share_memory(x, y.view(np.ndarray))


def empty(shape, dtype=float, order="C", *, device=None):
    dtype, shape = np.dtype(dtype), tuple(np.atleast_1d(np.array(shape, dtype=int)))
    memory = Memory.of(math.prod(shape) * dtype.itemsize)
    if _capture is not None:
        _capture.hold(memory)
    return memory[memory.start : memory.stop].view(np.ndarray).view(dtype).reshape(shape, order=order).view(ndarray)


def empty_like(x, dtype=None, order="K", *, shape=None, device=None):
    if shape is not None:
        return empty(shape, x.dtype if dtype is None else dtype)
    axes = sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))
    keeps = order == "K" or (order == "A" and x.flags.f_contiguous)
    if not keeps or x.flags.c_contiguous:
        axes = range(x.ndim)
    packed = empty([x.shape[axis] for axis in axes], x.dtype if dtype is None else dtype)
    return packed.transpose(np.argsort(axes)) if x.ndim else packed


def full(shape, value, dtype=None, *, device=None):
    array = empty(shape, np.asarray(_plain(value)).dtype if dtype is None else dtype)
    array[...] = value
    return array


def zeros(shape, dtype=float, *, device=None):
    return full(shape, 0, dtype)


def ones(shape, dtype=float, *, device=None):
    return full(shape, 1, dtype)


def asarray(x, dtype=None, order=None, *, device=None, copy=None):
    if isinstance(x, ndarray) and not copy and dtype in (None, x.dtype):
        return x
    return array(x, dtype)


def array(x, dtype=None, *, copy=True):
    """A copy on the device, with the strides that x has, gaps and repetitions included."""
    if isinstance(x, ndarray):
        copy = empty_like(x, dtype)
        copy[...] = x
        return copy
    refuse_in_capture("a copy from the host")
    waits.append("copy from the host")
    x = np.asarray(_plain(x), dtype=dtype)
    if 0 in x.shape:
        return empty_like(x)
    low, high = np.lib.array_utils.byte_bounds(x)
    memory = Memory.of(high - low)
    offset = memory.start + x.__array_interface__["data"][0] - low
    result = np.ndarray(x.shape, x.dtype, memory, offset, x.strides)
    result[...] = x
    return result.view(ndarray)


def ascontiguousarray(x, dtype=None):
    dtype = x.dtype if dtype is None else np.dtype(dtype)
    if x.flags.c_contiguous and x.dtype == dtype:
        return x
    contiguous = empty(x.shape, dtype)
    contiguous[...] = x
    return contiguous


def asnumpy(x):
    return x.get()


def _memory_of(x) -> Memory | None:
    while x is not None and not hasattr(x, "mark"):
        x = getattr(x, "base", None)
    return x


# ---- kernels

_libraries: list[tuple[str, dict[str, tuple]]] = []  # source, and by name what is compiled of it


def compile_kernels(code: str, names, options=()) -> None:
    """Compile the kernels of that source by one call of g++, unless all are there."""
    if all(_find(code, name) for name in names):
        return
    lines = [f'#include "{HERE / "cuda_on_cpu.h"}"', '#line 1 "kernels.cu"', code]
    lines += [f"KERNEL({i}, {name})" for i, name in enumerate(names)]
    loaded = ctypes.CDLL(str(_library_of("\n".join(lines) + "\n", *options)))
    loaded.cycles_of_launch.restype = ctypes.c_longlong
    compiled = {}
    for i, name in enumerate(names):
        signature, launch = loaded[f"signature_{i}"], loaded[f"launch_{i}"]
        signature.restype = launch.restype = ctypes.c_char_p
        launch.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_bool, ctypes.c_void_p]
        launch.argtypes += [ctypes.c_void_p, ctypes.c_size_t]
        compiled[name] = launch, signature().decode().split(",")[:-1], loaded.cycles_of_launch
    _libraries.append((code, compiled))


def _library_of(text: str, *options: str) -> Path:
    """The library of a source, in a folder that processes share: each is compiled once, by whoever comes first."""
    folder = _folder()
    library = folder / f"{hashlib.sha256(repr((text, options, _ingredients())).encode()).hexdigest()}.so"
    with library.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            new, cpp, watch = (library.with_suffix(suffix) for suffix in (".new", ".cpp", ".o"))
            cpp.write_text(text)
            watch.write_bytes(_memory_watch())
            command = [COMPILER, *OPTIONS, *WATCHED, *options, "-o", str(new), str(cpp), str(watch), *LIBRARIES]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            for source in (cpp, watch):
                source.unlink()
            if done.returncode:
                raise KernelError(done.stderr)
            new.rename(library)
        os.utime(library)  # in use
    return library


@functools.cache
def _folder() -> Path:
    """Where compiled kernels are kept; what nobody has used for a week goes."""
    folder = HERE.parents[1] / ".pytest_cache" / "cuda"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a checkout that cannot be written to
        return Path(tempfile.mkdtemp())
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process was quicker
            if time.time() - file.stat().st_mtime > 7 * 24 * 3600:
                file.unlink()
    return folder


@functools.cache
def _ingredients() -> str:
    """What a library is made of besides its source, in short."""
    files = sorted(path for path in HERE.rglob("*") if path.suffix in {".h", ".cuh", ".cpp"})
    version = subprocess.run([COMPILER, "--version"], capture_output=True, check=True).stdout
    made_of = [version, repr((OPTIONS, WATCHED, LIBRARIES)).encode(), *(path.read_bytes() for path in files)]
    return hashlib.sha256(b"".join(made_of)).hexdigest()


@functools.cache
def _memory_watch() -> bytes:
    """Compile what WATCHED calls, which is not watched itself."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "memory_watch.o")
        source = HERE / "memory_watch.cpp"
        subprocess.run([COMPILER, *OPTIONS, "-O2", "-c", "-o", str(output), str(source)], check=True)
        return output.read_bytes()


def _find(code: str, name: str):
    return next((compiled[name] for source, compiled in _libraries if source == code and name in compiled), None)


class RawModule:
    def __init__(self, *, code, options=(), name_expressions=None):
        if not isinstance(options, tuple):
            raise TypeError("options: CuPy expects a tuple")
        self.code, self.names = code, name_expressions
        self.options = [option for option in options if option.startswith(("-I", "-D"))]

    def get_function(self, name):
        if self.names is not None and name not in self.names:
            raise KernelError(f"{name} is not among the name expressions {self.names}")
        compile_kernels(self.code, [name] if self.names is None else self.names, self.options)
        return RawKernel(self.code, name)


class RawKernel:
    def __init__(self, code, name, options=()):
        self.code, self.name = code, name
        self.max_dynamic_shared_size_bytes = 48 * 1024

    def __call__(self, grid, block, args, *, shared_mem=0):
        compile_kernels(self.code, [self.name])
        launch, types_, cycles = _find(self.code, self.name)
        _check_sizes(grid, block, shared_mem, self.max_dynamic_shared_size_bytes)
        if len(args) != len(types_):
            raise KernelError(f"{self.name}: expected {len(types_)} arguments; received {len(args)}")
        values = [_argument(self.name, i, *pair) for i, pair in enumerate(zip(args, types_, strict=True))]
        if (size := sum(value.nbytes for value in values)) > ARGUMENTS:
            raise KernelError(f"{self.name}: a launch takes {ARGUMENTS} bytes of arguments; received {size}")
        pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        sizes = [np.array([*size, 1, 1][:3], dtype=np.uint32) for size in (grid, block)]
        accessible = np.array([span for i, x in enumerate(args) for span in _spans(i, x)], dtype=np.uint64)
        launches.append(Launch(self.name, tuple(grid), tuple(block), shared_mem))

        def run() -> None:
            where = sizes[0].ctypes.data, sizes[1].ctypes.data, shared_mem
            memory = accessible.ctypes.data if watched else None
            error = launch(*where, backwards, pointers, memory, len(accessible))
            if error:
                raise KernelError(f"{self.name}: {error.decode()}")
            clock.work(cycles() / CYCLES)

        if _capture is not None:
            given = _capture.remembered(tuple(x for x in args if isinstance(x, ndarray)))
            _capture.work.append(lambda: (_recalled(given), run(), values))
            return
        run()
        for i, x in enumerate(args):
            memory = _memory_of(x) if isinstance(x, ndarray) and not watched else None
            if memory is not None and not memory.is_whole():
                raise KernelError(f"{self.name}: argument {i} was written to beyond its ends")


def _spans(i: int, x) -> Iterator[tuple[int, int, int, int]]:
    """Where the memory that argument i names begins and ends, and the size of a number in it."""
    if isinstance(x, ndarray) and x.size:
        yield *np.lib.array_utils.byte_bounds(x), x.itemsize, i
    elif isinstance(x, np.ndarray) and x.dtype.names:
        addresses, spans = np.sort(x.view(np.uint64)), np.array(list(Memory.alive), dtype=np.uint64)
        first, last = np.searchsorted(addresses, spans[:, 0]), np.searchsorted(addresses, spans[:, 1])
        for start, stop in spans[first < last]:
            yield int(start), int(stop), 2, i  # of the smallest type


def _argument(kernel: str, i: int, x, expected: str) -> np.ndarray:
    """The argument as CuPy passes it, in memory, once it is sure to be of the kernel's type."""
    if isinstance(x, ndarray):
        received = f"{x.dtype.name}*"
        if not x.flags.writeable and not expected.startswith("const "):
            raise KernelError(f"{kernel}: argument {i} is read-only; received by the kernel as {expected}")
        fits = expected.removeprefix("const ") in (received, "void*")
        value = np.uint64(x.ctypes.data)
    elif x is None:
        received, fits, value = "None", expected.endswith("*"), np.uint64(0)
    elif isinstance(x, np.ndarray) and x.size == 1 and x.dtype.names:
        received, value = f"struct{8 * x.dtype.itemsize}", x.copy()
        fits = expected == received
    elif isinstance(x, (bool, np.ndarray)) or not isinstance(x, (int, float, np.generic)):
        raise TypeError(f"{kernel}: argument {i}: CuPy passes no {type(x)}")
    else:
        value = x if isinstance(x, np.generic) else np.int64(x) if isinstance(x, int) else np.float64(x)
        received = value.dtype.name
        fits = expected == received
    if not fits:
        raise KernelError(f"{kernel}: expected argument {i} as {expected}; received {received}")
    return np.array(value)


def _check_sizes(grid, block, shared_mem, most_shared) -> None:
    for sizes, most in ((grid, (2**31 - 1, 65535, 65535)), (block, (1024, 1024, 64))):
        if not isinstance(sizes, tuple) or not all(type(size) is int for size in sizes):
            raise TypeError(f"grid and block: CuPy expects tuples of int; received {sizes!r}")
        if not 1 <= len(sizes) <= 3 or not all(1 <= size <= limit for size, limit in zip(sizes, most, strict=False)):
            raise KernelError(f"a device refuses {sizes} of a grid or block")
    if math.prod(block) > 1024:
        raise KernelError(f"a block has at most 1024 threads; received {block}")
    if shared_mem > most_shared:
        raise KernelError(f"shared_mem: expected at most {most_shared} bytes; received {shared_mem}")


# ---- streams and graphs


class Capture:
    """What a stream has been given since it began to capture."""

    def __init__(self) -> None:
        self.work: list[Callable] = []
        self.is_valid = True
        self._held: dict[int, np.ndarray] = {}  # the memory that it allocated itself

    def hold(self, x: np.ndarray) -> np.ndarray:
        if not allocators:
            raise KernelError("memory that others are given, too, once the graph is captured")
        self._held[id(_root(x))] = _root(x)
        return x

    def remembered(self, x):
        """Arguments, without keeping the arrays among them that the graph did not allocate."""
        if isinstance(x, np.ndarray):
            plain, root = x.view(np.ndarray), _root(x)
            return Remembered(plain, None if id(root) in self._held else weakref.ref(root))
        if isinstance(x, tuple | list):
            return type(x)(map(self.remembered, x))
        return {key: self.remembered(value) for key, value in x.items()} if isinstance(x, dict) else x


class Remembered:
    """An array of a graph: by its address, where somebody else has to keep it."""

    def __init__(self, x: np.ndarray, root: weakref.ref | None) -> None:
        self.root, self.dtype = root, x.dtype
        self.kept = x if root is None else types.SimpleNamespace(__array_interface__=x.__array_interface__)

    def recalled(self) -> np.ndarray:
        if self.root is not None and self.root() is None:
            raise KernelError("the memory of an array that a graph was captured with is somebody else's now")
        return np.asarray(self.kept).view(self.dtype)


def _recalled(x):
    if isinstance(x, Remembered):
        return x.recalled()
    if isinstance(x, tuple | list):
        return type(x)(map(_recalled, x))
    return {key: _recalled(value) for key, value in x.items()} if isinstance(x, dict) else x


def _root(x: np.ndarray) -> np.ndarray:
    while isinstance(x.base, np.ndarray):
        x = x.base
    return x


@np.errstate(all="ignore")
def deferred(work: Callable) -> None:
    """Do work of a library's now, or at each launch of the graph that is being captured."""
    asked.append(work)
    if _capture is None:
        work()
    else:
        _capture.work.append(work)


def refuse_in_capture(what: str) -> None:
    if _capture is not None:
        _capture.is_valid = False
        raise KernelError(f"a graph that is being captured cannot have {what}")


class Stream:
    _numbers = itertools.count(7777)

    def __init__(self, *, non_blocking=False):
        self.ptr, self.non_blocking = next(self._numbers), non_blocking

    def __enter__(self):
        streams.append(self)
        return self

    def __exit__(self, *_):
        streams.pop()

    def is_capturing(self):
        return _capture is not None and streams[-1] is self

    def begin_capture(self):
        global _capture
        if streams[-1] is not self or not self.non_blocking or _capture is not None:
            raise KernelError("a capture begins on a current stream that blocks no other")
        _capture = Capture()

    def end_capture(self):
        global _capture
        ended, _capture = _capture, None
        if not ended.is_valid:
            raise KernelError("the capture has become invalid")
        return Graph(ended)


class Clock:
    """Time in milliseconds: the host's, and when the device will have done what it has been asked for.

    Libraries' stand-ins move them, and kernels that look at the clock.
    """

    def __init__(self) -> None:
        self.host = self.device = 0.0

    def work(self, milliseconds=0.0):
        """Have the device work so long, once it is asked and has done what came before; return when it is done."""
        self.device = max(self.host, self.device) + milliseconds
        return self.device


class Event:
    def __init__(self, *, disable_timing=False):
        self.is_timed = not disable_timing

    def record(self):
        refuse_in_capture("an event that is timed")
        self.time, self.is_reached = clock.work(), False

    @property
    def done(self):
        if clock.host >= self.time:
            self._reach()
        return self.is_reached

    def synchronize(self):
        refuse_in_capture("an event that is waited for")
        waits.append("event")
        self._reach()

    def __reduce__(self):
        raise TypeError("no event can be copied")

    def _reach(self):
        clock.host, self.is_reached = max(clock.host, self.time), True
        while copies and copies[0][0] <= clock.host:
            _, memory, where, values = copies.pop(0)
            if memory() is None:
                raise KernelError("the memory that a copy goes to is somebody else's now")
            np.asarray(where)[...] = values


def get_elapsed_time(start, end):
    if not getattr(end, "is_reached", False):
        raise KernelError("the device is not there yet")
    if not (start.is_timed and end.is_timed):
        raise KernelError("an event that is not timed")
    return end.time - start.time


def empty_pinned(shape, dtype=float, order="C"):
    """Memory of the host that the device writes to by itself; no numbers until it has."""
    memory = np.full(math.prod(shape) * np.dtype(dtype).itemsize, UNWRITTEN, np.uint8)
    pinned.append(weakref.ref(memory))
    return memory.view(dtype).reshape(shape, order=order)


clock = Clock()
pinned: list[weakref.ref] = []
copies: list[tuple] = []  # on their way: when they arrive, in which memory and where in it, and what


class Graph:
    def __init__(self, capture: Capture) -> None:
        self._capture = capture

    def upload(self):
        pass

    @np.errstate(all="ignore")
    def launch(self):
        launches.append(Launch("graph", (), (), 0))
        for work in self._capture.work:
            work()


class Blocks:
    """What an allocator gives a pool."""

    def __init__(self, size):
        self.size = size


class MemoryPool:
    """Counts bytes, which lie elsewhere: it asks for more where its arrays do not fit, and keeps what they free."""

    def __init__(self, allocator=Blocks):
        self.allocator, self.used, self.held, self.limit = allocator, 0, 0, math.inf

    def malloc(self, size):
        """Return what gives it back."""
        if self.used + size > self.limit:
            raise MemoryError(f"Out of memory allocating {size:,} bytes (limit set to: {self.limit:,} bytes).")
        more = self.used + size - self.held
        if more > 0:
            self.allocator(more)
            self.held += more
        self.used += size
        return functools.partial(self._free, size)

    def _free(self, size):
        self.used -= size

    def used_bytes(self):
        return self.used

    def total_bytes(self):
        return self.held

    def set_limit(self, *, size):
        self.limit = size or math.inf

    def free_all_blocks(self):
        self.held = self.used


def _allocated(x: np.ndarray, size: int):
    """Count the array in the current pool, until it is gone."""
    give_back = (allocators[-1] if allocators else pool.malloc)(int(size))
    weakref.finalize(_root(x), give_back).atexit = False
    return x


@contextlib.contextmanager
def using_allocator(allocator):
    allocators.append(allocator)
    try:
        yield
    finally:
        allocators.pop()


_capture: Capture | None = None
allocators: list[Callable] = []
pool = MemoryPool()  # CuPy's own, since `installed`
streams = [Stream()]  # the last is the current one


# ---- the modules


def _error_function(x):
    def values(x):
        return np.array([math.erf(value) for value in x.ravel().tolist()]).reshape(x.shape).astype(x.dtype)

    return _do(values, (x,))


@functools.cache
def _modules() -> dict[str, types.ModuleType]:
    """cupy and cupyx, which have NumPy's functions where they have none of their own."""
    names = ("cupy", "cupyx", "cupyx.scipy", "cupyx.scipy.special")
    modules = {name: types.ModuleType(name) for name in names}
    cupy = modules["cupy"]
    own = (ndarray, RawModule, RawKernel, empty, empty_like, full, zeros, ones, asarray, array, ascontiguousarray)
    for function in (*own, asnumpy):
        setattr(cupy, function.__name__, function)
    cupy.get_default_memory_pool = lambda: pool

    def of_numpy(name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        attribute = getattr(np, name)
        if not callable(attribute) or isinstance(attribute, type):
            return attribute

        def call(*args, **kwargs):
            _refuse_numpy(args)
            kwargs.pop("device", None)
            if name in {"matmul", "dot", "tensordot", "einsum", "vecdot"}:
                refuse_in_capture("cuBLAS")
            if name in {"concatenate", "concat", "stack"} and len(args[0]) > 8:
                refuse_in_capture("a copy from the host")  # of where they are
            if name == "clip":  # array-api-compat's
                refuse_in_capture("a copy from the host")
                waits.append("clip")
            in_c_order = isinstance(attribute, np.ufunc) or attribute in IN_C_ORDER
            return _do(attribute, args, kwargs, kwargs.get("out"), in_c_order=in_c_order)

        return call

    cupy.__getattr__ = of_numpy
    cupy.cuda = types.SimpleNamespace(
        get_current_stream=lambda: streams[-1],
        get_elapsed_time=get_elapsed_time,
        Memory=Blocks,
        MemoryPointer=lambda memory, offset: memory,
        Device=lambda: types.SimpleNamespace(compute_capability=str(ARCHITECTURE)),
        **{x.__name__: x for x in (Event, Stream, MemoryPool, using_allocator)},
    )
    modules["cupyx"].empty_pinned = empty_pinned
    modules["cupyx.scipy.special"].erf = _error_function
    for parent, child in itertools.pairwise(names[1:]):
        setattr(modules[parent], child.rpartition(".")[2], modules[child])
    return modules


@contextlib.contextmanager
def installed() -> Iterator[types.ModuleType]:
    """Put the stand-in where CuPy is imported from, load CuPy's kernels with it, and undo it all in the end."""
    ours = re.compile(r"(cupy|cupyx|xpnn\.kernels\.cupy|cudnn|nvmath\.bindings)(\.|$)")
    modules = {name: module for name, module in sys.modules.items() if ours.match(name)}
    table, attributes = dict(kernels.TABLE), dict(vars(kernels))
    backend = backends.get("cupy")
    state = dict(vars(backend))
    for seen in (launches, waits, computed, asked, pinned, copies):
        seen.clear()
    clock.host = clock.device = 0.0
    global pool
    pool = MemoryPool()
    try:
        for name in modules:
            del sys.modules[name]
        sys.modules.update(_modules())
        # Not there: they would ask for a device.
        sys.modules.update(dict.fromkeys(("cudnn", "nvmath.bindings.cublasLt")))
        cupy = sys.modules["cupy"]
        vars(backend).update(
            _diagnosis=("", ""), namespace=cupy, device="cpu", synchronize=lambda: waits.append("synchronize")
        )
        kernels.fast_path.cache_clear()
        kernels.load("cupy")
        sources = importlib.import_module("xpnn.kernels.cupy.source").SOURCES.values()
        with ThreadPoolExecutor(os.cpu_count()) as several:
            list(several.map(lambda source: compile_kernels(source.text, source.kernels), sources))
        yield cupy
    finally:
        for name in [name for name in sys.modules if ours.match(name)]:
            del sys.modules[name]
        sys.modules.update(modules)
        kernels.TABLE.clear()
        kernels.TABLE.update(table)
        vars(kernels).pop("cupy", None)
        vars(kernels).update({key: value for key, value in attributes.items() if key == "cupy"})
        vars(backend).clear()
        vars(backend).update(state)
        kernels.fast_path.cache_clear()
