"""CUDA sources: compiled a kernel at a time, when it is first called, and launched.

CuPy has CUDA's compiler take float32 below 1e-38 for 0, and the compiler fuses products with sums, so last bits differ
from those on a CPU. What has to be equal to the bit on every backend is computed in integers.
"""

import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

import cupy
import numpy as np

THREADS, WARP = 256, 32  # of a block, and of them those that go in step
BLOCKS = 4096  # of an elementwise grid, at most: more than run at once on any device; threads then loop

# By dtype.char, which is the quickest to ask for: the type in memory, and the one that is computed in.
C_TYPES = {"f": "float", "e": "__half", "E": "__nv_bfloat16", "d": "double"}
ACCUMULATION = {"f": "float", "e": "float", "E": "float", "d": "double"}
FLAGS = {True: "true", False: "false"}

SOURCES: dict[str, "Source"] = {}  # all of them: so that each kernel of each is compiled by a test


class Source:
    """A CUDA source beside this file.

    Parameters
    ----------
    file : str
        Its name.
    kernels : iterable of str
        The kernels in it that are called, templates with their arguments: ``"positive_part<float>"``.
    """

    def __init__(self, file: str, kernels: Iterable[str]) -> None:
        self.text = text_of(file)
        self.kernels = tuple(dict.fromkeys(kernels))
        self._compiled: dict[str, Any] = {}
        SOURCES[file] = self

    def launch(self, kernel: str, grid: Sequence[int], block: Sequence[int], args: tuple, shared_mem: int = 0) -> None:
        """Launch a kernel; no size in `grid` may be 0. Scalars among `args` are of the kernel's own types."""
        function = self._compiled.get(kernel) or self._compile(kernel)
        function(tuple(grid), tuple(block), args, shared_mem=shared_mem)

    def each(self, kernel: str, n: int, *args: Any) -> None:
        """Launch a kernel that goes through `n` places by `each` of common.cuh, its first argument being n."""
        if n:
            widest = max(x.dtype.itemsize for x in args if isinstance(x, cupy.ndarray))
            blocks = -(-n * widest // (16 * THREADS))  # a thread takes 16 bytes at a time
            self.launch(kernel, (min(blocks, BLOCKS),), (THREADS,), (n, *args))

    def _compile(self, kernel: str) -> Any:
        if kernel not in self.kernels:
            raise LookupError(f"{kernel} is not among the kernels that its Source names")
        module = cupy.RawModule(code=self.text, options=("--std=c++17",), name_expressions=(kernel,))
        function = self._compiled[kernel] = module.get_function(kernel)
        return function


def of_each_type(*templates: str) -> list[str]:
    """Return kernels for every floating-point type: T in the templates is it, Acc what it is computed in."""
    return [
        re.sub(r"\bAcc\b", ACCUMULATION[char], re.sub(r"\bT\b", name, template))
        for template in templates
        for char, name in C_TYPES.items()
    ]


def given(numbers: Any, dtype: Any) -> tuple:
    """Return what a kernel that knows `look_up` takes for numbers: where they are, or None; the numbers themselves."""
    if isinstance(numbers, cupy.ndarray):
        return numbers, *(numbers.size * [dtype(0)])
    return None, *map(dtype, numbers if isinstance(numbers, tuple) else (numbers,))


def accumulation(x: Any) -> type[np.floating]:
    """Return the type that numbers of the array are computed in."""
    return np.float64 if x.dtype.char == "d" else np.float32


def in_accumulation(number: Any, x: Any) -> Any:
    """Return an array () in the type that numbers of x are computed in. None stays None."""
    return None if number is None else number.astype(accumulation(x), copy=False)


def fits(out: Any, x: Any) -> bool:
    """Return whether kernels write what they compute of x into `out`: it has its type, or the one computed in."""
    return out.dtype in (x.dtype, accumulation(x))


def in_one_order(*arrays: Any) -> list[Any]:
    """Return the arrays without gaps in memory and with their numbers in one order, that of the first if it has none.

    So an elementwise kernel takes images with the channels last as it takes any others. Copies what does not fit.
    """
    first = arrays[0] if _is_dense(arrays[0]) else cupy.ascontiguousarray(arrays[0])
    return [first, *(x if _same_order(x, first) else _laid_out(x, first) for x in arrays[1:])]


def _is_dense(x: Any) -> bool:
    if x.flags.c_contiguous:
        return True
    return x.transpose(sorted(range(x.ndim), key=lambda axis: -x.strides[axis])).flags.c_contiguous


def _same_order(x: Any, y: Any) -> bool:
    """Whether x has the order of the dense y."""
    if x.flags.c_contiguous and y.flags.c_contiguous:  # axes of length 1 may have any strides
        return True
    return x.dtype.itemsize == y.dtype.itemsize and x.strides == y.strides


def _laid_out(x: Any, like: Any) -> Any:
    copy = cupy.empty_like(like, dtype=x.dtype)
    copy[...] = x
    return copy


def text_of(file: str, included: set[str] | None = None) -> str:
    """Return a source with the files beside it that it includes, each once.

    CuPy keeps what it has compiled under the text, and would not see a change in an included file.
    """
    included = set() if included is None else included

    def include(line: re.Match) -> str:
        if line[1] in included:
            return ""
        included.add(line[1])
        return text_of(line[1], included)

    return re.sub(r'^#include "(.+)"$', include, files(__package__).joinpath(file).read_text(), flags=re.MULTILINE)
