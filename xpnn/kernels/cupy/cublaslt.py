"""Matrix products by cuBLASLt, through nvmath-python's bindings; plans are kept.

It is asked for what CuPy has not: a bias added by the product itself or its gradient, a multiple of another matrix
added to one of the product, stacks of half-precision matrices, results in float32 of factors in half, and calls while a
CUDA graph is captured.

cuBLASLt knows matrices by columns. One that lies in memory by rows is to it the transposed one, so it is asked for the
transposed product, ``outᵀ = bᵀ aᵀ``. Its bias, a number for each row of outᵀ, is then one for each column of out.

What a product does with its results before it writes them, its epilogue, is one of:

- ``BIAS`` adds one; ``RELU_BIAS`` then applies the activation, and without ``_BIAS`` only that. ``GELU_AUX``, which is
  GELU by tanh, leaves its input in `aux`.
- ``DGELU_BGRAD`` multiplies by the derivative at what it reads in `aux`, and writes the sums of the rows of the result,
  which are the gradient of the bias there, into `bias`.
- ``BGRADA`` writes the sum of the rows of b into `bias`.
"""

import functools
import importlib
import math
import os
import threading
from typing import Any, NamedTuple

import cupy
import numpy as np

TF32 = os.environ.get("XPNN_TF32") == "1"  # whether float32 may be multiplied with 10 bits of fraction
WORKSPACE = 32 * 2**20  # bytes that a plan may ask for: as NVIDIA advises for its newer devices
ALIGNED = 256  # bytes: the most that an algorithm may rely on
BESIDE = 16  # bytes: the same, for a bias and for what an epilogue leaves
MORE = 16  # bytes: what an epilogue takes besides what is reported, as nvmath-python provides for

CUDA_TYPES = {"f": 0, "d": 1, "e": 2, "E": 14}  # of cudaDataType, by dtype.char


class Plan(NamedTuple):
    """What a product needs besides its arrays."""

    description: int
    layouts: tuple[int, int, int, int]  # of the first factor, of the second, of what is added, and of the result
    algorithm: np.ndarray
    workspace: int  # bytes


_plans: dict[tuple, Plan | None] = {}
_pointers: dict[int, tuple[int, int]] = {}  # where a description last had its bias and aux
_describing = threading.Lock()  # until a product is under way, its description is its thread's own


@functools.cache
def library() -> Any:
    """The bindings; None where there is an obstacle."""
    return None if obstacle() else importlib.import_module("nvmath.bindings.cublasLt")


@functools.cache
def obstacle() -> str:
    """Why products are not cuBLASLt's, and what helps, for people to read; "" where they are."""
    try:
        _handle(importlib.import_module("nvmath.bindings.cublasLt"))
    except ModuleNotFoundError as error:
        if (error.name or "nvmath").startswith("nvmath"):
            return "pip install nvmath-python"
        return f"nvmath-python lacks {error.name}, which the extras cuda13 and cuda12 bring"
    except Exception as error:  # of nvmath's own for libraries that are not found
        return f"nvmath-python does not load cuBLASLt ({in_short(error)})"
    return ""


def in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@functools.cache
def _handle(lt: Any) -> int:
    return lt.create()


def multiply(
    a: Any,
    b: Any,
    out: Any,
    bias: Any,
    add: bool,
    epilogue: str = "",
    aux: Any = None,
    *,
    c: Any = None,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> bool:
    """Do what `products.multiply` does, or return False: some products cuBLASLt has not.

    The epilogue, for one product without `add`, is ``"BIAS"`` where there is a bias and nothing else is asked for.
    Where there is a `c`, of the shape and dtype of out, what is written is alpha a b + beta c.
    """
    if library() is None or not by_rows(out):
        return False
    if c is None:
        c, beta = out, float(add)
    if "BGRAD" in epilogue and a.shape[2] == 1:  # gradients of one row or unit, which not every version has
        return False
    a, b = (x if by_rows(x) or by_rows(x.transpose(0, 2, 1)) else cupy.ascontiguousarray(x) for x in (a, b))
    c = c if by_rows(c) else cupy.ascontiguousarray(c)
    bias = None if bias is None else cupy.ascontiguousarray(bias)
    epilogue = epilogue or ("DEFAULT" if bias is None else "BIAS")
    pointers = b.data.ptr, a.data.ptr, c.data.ptr, out.data.ptr
    aligned = tuple(min(pointer & -pointer, ALIGNED) for pointer in pointers)
    aligned += tuple(math.gcd(pointer, BESIDE) for pointer in _pointers_of(bias, aux))
    after = epilogue, None if aux is None else aux.shape[1]
    results = c.strides, out.strides
    key = (a.shape, b.shape, a.strides, b.strides, results, a.dtype.char, out.dtype.char, after, aligned)
    if key not in _plans:
        _plans[key] = _plan(a, b, c, out, bias, aligned, epilogue, aux)
    plan = _plans[key]
    if plan is None:
        return False
    memory = cupy.empty(plan.workspace, dtype="uint8") if plan.workspace else None  # of the pool, so of this stream
    of_product, of_added = (x.ctypes.data for x in _scales(alpha, beta, out.dtype.char))
    first, second, added, result = plan.layouts
    stream = cupy.cuda.get_current_stream().ptr
    place = 0 if memory is None else memory.data.ptr
    with _describing:
        if _pointers[plan.description] != _pointers_of(bias, aux):
            _describe_pointers(plan.description, bias, aux)
        try:
            library().matmul(
                _handle(library()),
                plan.description,
                of_product,
                pointers[0],
                first,
                pointers[1],
                second,
                of_added,
                pointers[2],
                added,
                pointers[3],
                result,
                plan.algorithm.ctypes.data,
                place,
                plan.workspace,
                stream,
            )
        except library().cuBLASLtError:  # found, and refused all the same
            _plans[key] = None
            return False
    return True


@functools.cache
def _scales(alpha: float, beta: float, char: str) -> np.ndarray:
    """Return alpha and beta, each an array (1,), where the host keeps them."""
    return np.array([[alpha], [beta]], "float64" if char == "d" else "float32")


def by_rows(x: Any) -> bool:
    """Whether the rows of every matrix of the stack lie one behind the other, none with gaps."""
    (count, rows, columns), (apart, of_row, of_column), size = x.shape, x.strides, x.itemsize
    return (
        (columns == 1 or of_column == size)
        and (rows == 1 or (of_row >= columns * size and of_row % size == 0))
        and (count == 1 or (apart >= 0 and apart % size == 0))
    )


def aux_for(out: Any) -> Any:
    """Return memory for the inputs of results (N, M), in N rows."""
    n, m = out.shape
    return cupy.empty((n, 8 * math.ceil(m / 8)), dtype=out.dtype)


def _plan(*product: Any) -> Plan | None:
    """Return the plan of a product as `_find` takes it; None where the library has none, or not an attribute of it."""
    try:
        return _find(*product)
    except library().cuBLASLtError:
        return None


def _find(
    a: Any, b: Any, c: Any, out: Any, bias: Any, aligned: tuple[int, ...], epilogue: str, aux: Any
) -> Plan | None:
    lt, types = library(), importlib.import_module("nvmath.bindings.cublas").ComputeType
    if a.dtype.char == "d":
        compute, scale = types.COMPUTE_64F, CUDA_TYPES["d"]
    else:
        tf32 = TF32 and a.dtype.char == "f"
        compute, scale = types.COMPUTE_32F_FAST_TF32 if tf32 else types.COMPUTE_32F, CUDA_TYPES["f"]
    description = lt.matmul_desc_create(compute, scale)
    _describe(description, TRANSA=not by_rows(b), TRANSB=not by_rows(a))
    _describe(description, EPILOGUE=lt.Epilogue[epilogue])
    if bias is not None:
        _describe(description, BIAS_BATCH_STRIDE=bias.shape[1] if len(bias) > 1 else 0)
    if aux is not None:
        _describe(description, EPILOGUE_AUX_LD=aux.shape[1])
    _describe_pointers(description, bias, aux)
    result = _layout(out)
    layouts = _layout(b), _layout(a), result if c.strides == out.strides else _layout(c), result
    preference = lt.matmul_preference_create()
    # A bias, or its gradient, is moved as the result is.
    of_result = aligned[3] if aligned[4] == BESIDE else min(aligned[3:5])
    alignment = {f"MIN_ALIGNMENT_{x}_BYTES": size for x, size in zip("ABCD", (*aligned[:3], of_result), strict=True)}
    # Parts of a sum are added up as they were computed, not as half types.
    parts = lt.ReductionScheme.COMPUTE_TYPE
    answer, answers = np.zeros(1, lt.matmul_heuristic_result_dtype), np.zeros(1, "int32")
    try:
        _prefer(preference, MAX_WORKSPACE_BYTES=WORKSPACE, REDUCTION_SCHEME_MASK=parts, **alignment)
        lt.matmul_algo_get_heuristic(
            _handle(lt),
            description,
            *layouts,
            preference,
            1,
            answer.ctypes.data,
            answers.ctypes.data,
        )
    finally:
        lt.matmul_preference_destroy(preference)
    if answers[0] == 0 or answer["state"][0] != 0:
        return None
    workspace = int(answer["workspace_size"][0])
    workspace += MORE if workspace and epilogue != "DEFAULT" else 0
    return Plan(description, layouts, np.ascontiguousarray(answer["algo"]), workspace)


def _layout(x: Any) -> int:
    """Of the matrix as cuBLASLt sees it: its columns are the rows of x, or the columns where those lie in memory so."""
    lt = library()
    matrix = x if by_rows(x) else x.transpose(0, 2, 1)
    count, columns, length = matrix.shape
    apart = matrix.strides[1] // x.itemsize if columns > 1 else length
    layout = lt.matrix_layout_create(CUDA_TYPES[x.dtype.char], length, columns, apart)
    if count > 1:
        to = lt.matrix_layout_set_attribute, lt.get_matrix_layout_attribute_dtype, lt.MatrixLayoutAttribute
        _set(layout, *to, BATCH_COUNT=count, STRIDED_BATCH_OFFSET=x.strides[0] // x.itemsize)
    return layout


def _pointers_of(bias: Any, aux: Any) -> tuple[int, int]:
    return 0 if bias is None else bias.data.ptr, 0 if aux is None else aux.data.ptr


def _describe_pointers(description: int, bias: Any, aux: Any) -> None:
    pointers = _pointers_of(bias, aux)
    for name, pointer in zip(("BIAS_POINTER", "EPILOGUE_AUX_POINTER"), pointers, strict=True):
        if pointer:
            _describe(description, **{name: pointer})
    _pointers[description] = pointers


def _describe(description: int, **attributes: int) -> None:
    lt = library()
    to = lt.matmul_desc_set_attribute, lt.get_matmul_desc_attribute_dtype, lt.MatmulDescAttribute
    _set(description, *to, **attributes)


def _prefer(preference: int, **attributes: int) -> None:
    lt = library()
    to = lt.matmul_preference_set_attribute, lt.get_matmul_preference_attribute_dtype, lt.MatmulPreferenceAttribute
    _set(preference, *to, **attributes)


def _set(handle: int, setter: Any, dtype_of: Any, names: Any, **attributes: int) -> None:
    for name, value in attributes.items():
        memory = np.array([value], dtype_of(names[name]))
        setter(handle, names[name], memory.ctypes.data, memory.nbytes)
