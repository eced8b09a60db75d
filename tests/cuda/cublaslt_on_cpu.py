"""cuBLASLt on the CPU: a stand-in for nvmath.bindings.cublasLt that does what a call describes, on memory.

It knows what NVIDIA's documentation says of the calls that we make: matrices lie by columns, `ld` numbers apart;
attributes have sizes; an algorithm is for the description, the layouts and the alignments that it was asked for. What
the library would refuse is an error.
"""

import ctypes
import enum
import math
import sys
import types
from typing import NamedTuple

import numpy as np
import stand_in
from numpy.lib.stride_tricks import as_strided
from stand_in import deferred

WORKSPACE = 512  # bytes that every algorithm says it wants
MORE = 16  # and what it takes besides for an epilogue


class MatmulDescAttribute(enum.IntEnum):
    TRANSA = 3
    TRANSB = 4
    EPILOGUE = 7
    BIAS_POINTER = 8
    BIAS_BATCH_STRIDE = 10
    EPILOGUE_AUX_POINTER = 11
    EPILOGUE_AUX_LD = 12


class MatrixLayoutAttribute(enum.IntEnum):
    BATCH_COUNT = 5
    STRIDED_BATCH_OFFSET = 6


class MatmulPreferenceAttribute(enum.IntEnum):
    MAX_WORKSPACE_BYTES = 1
    REDUCTION_SCHEME_MASK = 3
    MIN_ALIGNMENT_A_BYTES = 5
    MIN_ALIGNMENT_B_BYTES = 6
    MIN_ALIGNMENT_C_BYTES = 7
    MIN_ALIGNMENT_D_BYTES = 8


class Epilogue(enum.IntEnum):
    DEFAULT = 1
    RELU = 2
    BIAS = 4
    RELU_BIAS = 6
    GELU_AUX = 160
    GELU_AUX_BIAS = 164
    DGELU_BGRAD = 208
    BGRADA = 256


class ReductionScheme(enum.IntEnum):
    COMPUTE_TYPE = 2


class ComputeType(enum.IntEnum):  # of nvmath.bindings.cublas
    COMPUTE_32F = 68
    COMPUTE_32F_FAST_TF32 = 77
    COMPUTE_64F = 70


DTYPES = {
    MatmulDescAttribute: {3: "int32", 4: "int32", 7: "uint32", 8: "int64", 10: "int64", 11: "int64", 12: "int64"},
    MatrixLayoutAttribute: {5: "int32", 6: "int64"},
    MatmulPreferenceAttribute: {1: "uint64", 3: "uint32", 5: "uint32", 6: "uint32", 7: "uint32", 8: "uint32"},
}
DEFAULTS = {
    "TRANSA": 0,
    "TRANSB": 0,
    "EPILOGUE": 1,
    "BIAS_BATCH_STRIDE": 0,
    "BIAS_POINTER": 0,
    "EPILOGUE_AUX_POINTER": 0,
    "EPILOGUE_AUX_LD": 0,
    "BATCH_COUNT": 1,
    "STRIDED_BATCH_OFFSET": 0,
}
POINTERS = "BIAS_POINTER", "EPILOGUE_AUX_POINTER"
matmul_algo_dtype = np.dtype([("data_", "<u8", (8,))])
matmul_heuristic_result_dtype = np.dtype(
    [
        ("algo", matmul_algo_dtype),
        ("workspace_size", "<u8"),
        ("state", "<i4"),
        ("waves_count", "<f4"),
        ("reserved", "<i4", (4,)),
    ]
)
CUDA_TYPES = {0: "float32", 1: "float64", 2: "float16", 14: "bfloat16"}
# What is computed in which type, and scaled by which, for which factors and results.
SUPPORTED = {
    *((compute, 0, t, t) for compute in (68, 77) for t in ("float32", "float16", "bfloat16")),
    *((68, 0, t, "float32") for t in ("float16", "bfloat16")),
    (70, 1, "float64", "float64"),
}


class cuBLASLtError(Exception):
    pass


class Call(NamedTuple):
    """A product as it was computed: of cuBLASLt's m, n and k, for so many matrices."""

    m: int
    n: int
    k: int
    count: int
    compute: int
    epilogue: int
    beta: float
    alpha: float = 1.0


calls: list[Call] = []
searches: list[int] = []  # for algorithms
_objects: dict[int, dict] = {}
_algorithms: dict[int, tuple] = {}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise cuBLASLtError(message)


def _new(**values) -> int:
    handle = 1000 + len(_objects)
    _objects[handle] = {**DEFAULTS, **values}
    return handle


def get_version() -> int:
    return 130500


def create() -> int:
    return _new()


def matmul_desc_create(compute_type: int, scale_type: int) -> int:
    return _new(compute=int(compute_type), scale=int(scale_type))


def matrix_layout_create(type: int, rows: int, cols: int, ld: int) -> int:
    _require(min(rows, cols) > 0 and ld >= rows, f"{rows} rows cannot lie {ld} apart")
    return _new(type=CUDA_TYPES[type], rows=rows, cols=cols, ld=ld)


def matmul_preference_create() -> int:
    return _new()


def matmul_preference_destroy(pref: int) -> None:
    _objects[pref] = {}


def _dtype_of(names):
    return lambda attr: np.dtype(DTYPES[names][attr]).type


get_matmul_desc_attribute_dtype = _dtype_of(MatmulDescAttribute)
get_matrix_layout_attribute_dtype = _dtype_of(MatrixLayoutAttribute)
get_matmul_preference_attribute_dtype = _dtype_of(MatmulPreferenceAttribute)


def _set_attribute(names):
    def set_attribute(handle: int, attr: int, buf: int, size_in_bytes: int) -> None:
        dtype = np.dtype(DTYPES[names][attr])
        _require(size_in_bytes == dtype.itemsize, f"{names(attr).name} has {dtype.itemsize} bytes")
        _objects[handle][names(attr).name] = _memory(buf, dtype, 1)[0].item()

    return set_attribute


matmul_desc_set_attribute = _set_attribute(MatmulDescAttribute)
matrix_layout_set_attribute = _set_attribute(MatrixLayoutAttribute)
matmul_preference_set_attribute = _set_attribute(MatmulPreferenceAttribute)


def matmul_algo_get_heuristic(
    light_handle: int,
    operation_desc: int,
    adesc: int,
    bdesc: int,
    cdesc: int,
    ddesc: int,
    preference: int,
    requested_algo_count: int,
    heuristic_results_array: int,
    return_algo_count: int,
) -> None:
    wishes, operation = _objects[preference], _objects[operation_desc]
    m, _, k, count = _shape(operation, adesc, bdesc, cdesc, ddesc)
    _require(wishes["MAX_WORKSPACE_BYTES"] >= WORKSPACE and requested_algo_count == 1, "no algorithm")
    _require(wishes["REDUCTION_SCHEME_MASK"] == ReductionScheme.COMPUTE_TYPE, "sums would be rounded on the way")
    name = Epilogue(operation["EPILOGUE"]).name
    _require(name in ("DEFAULT", "RELU", "GELU_AUX") or operation["BIAS_POINTER"] != 0, "no bias")
    _require(k > 1 or "BGRAD" not in name, "gradients with k = 1")
    if name.endswith(("_AUX", "_AUX_BIAS", "ELU_BGRAD")):
        apart = operation["EPILOGUE_AUX_LD"]
        _require(operation["EPILOGUE_AUX_POINTER"] % 16 == 0 != operation["EPILOGUE_AUX_POINTER"], "no aux")
        _require(apart % 8 == 0 and apart >= m and count == 1, f"aux {apart} apart")
    _require(operation["EPILOGUE"] != Epilogue.BGRADA or not operation["TRANSA"], "sums of a transposed A")
    searches.append(operation_desc)
    aligned = [wishes[f"MIN_ALIGNMENT_{x}_BYTES"] for x in "ABCD"] + [math.gcd(operation[x], 16) for x in POINTERS]
    _algorithms[len(searches)] = operation_desc, adesc, bdesc, cdesc, ddesc, aligned
    answer = _memory(heuristic_results_array, matmul_heuristic_result_dtype, 1)
    answer["algo"]["data_"] = len(searches)
    answer["workspace_size"] = WORKSPACE
    _memory(return_algo_count, np.dtype("int32"), 1)[0] = 1


def matmul(
    light_handle: int,
    compute_desc: int,
    alpha: int,
    a: int,
    adesc: int,
    b: int,
    bdesc: int,
    beta: int,
    c: int,
    cdesc: int,
    d: int,
    ddesc: int,
    algo: int,
    workspace: int,
    workspace_size_in_bytes: int,
    stream: int,
) -> None:
    operation = {**_objects[compute_desc]}  # as it is now
    m, n, k, count = _shape(operation, adesc, bdesc, cdesc, ddesc)
    *described, aligned = _algorithms[int(_memory(algo, matmul_algo_dtype, 1)["data_"][0, 0])]
    _require(described == [compute_desc, adesc, bdesc, cdesc, ddesc], "an algorithm for another product")
    pointers = a, b, c, d, *(operation[x] for x in POINTERS)  # the last two as they were when it was asked for
    _require(all(x % least == 0 for x, least in zip(pointers, aligned, strict=True)), "not aligned as promised")
    _require(c != d or cdesc == ddesc, "a result in the place of C that lies otherwise")
    wanted = WORKSPACE + MORE * (operation["EPILOGUE"] != Epilogue.DEFAULT)
    _require(workspace != 0 and workspace_size_in_bytes >= wanted, "the algorithm wants a workspace")
    _require(stream == stand_in.streams[-1].ptr, "another stream than CuPy's")
    computed = np.dtype("float64" if operation["compute"] == ComputeType.COMPUTE_64F else "float32")
    scale = np.dtype(CUDA_TYPES[operation["scale"]])
    alpha, beta = (_memory(pointer, scale, 1)[0] for pointer in (alpha, beta))

    def compute() -> None:
        first = _matrices(a, adesc, operation["TRANSA"]).astype(computed)
        second = _matrices(b, bdesc, operation["TRANSB"]).astype(computed)
        result = _matrices(d, ddesc, 0)
        values = alpha * np.matmul(first, second)
        if beta != 0:
            values = values + beta * _matrices(c, cdesc, 0).astype(computed)
        name = Epilogue(operation["EPILOGUE"]).name
        if name.endswith("BIAS"):  # of D's type, a number for each row, the same in all columns
            stride = operation["BIAS_BATCH_STRIDE"]
            bias = _memory(operation["BIAS_POINTER"], result.dtype, (count - 1) * stride + m)
            values = values + as_strided(bias, (count, m, 1), (stride * bias.itemsize, bias.itemsize, 0)).astype(
                computed
            )
        if "ELU" in name:
            values = _activated(name, values, operation, result.dtype)
        if name.endswith("_BGRAD"):  # of D's type, the sum over the columns for each row of D
            _memory(operation["BIAS_POINTER"], result.dtype, m)[...] = values[0].sum(axis=1).astype(result.dtype)
        if operation["EPILOGUE"] == Epilogue.BGRADA:  # of D's type, the sum over k for each row of A
            sums = np.ascontiguousarray(first[0]).sum(axis=1)
            _memory(operation["BIAS_POINTER"], result.dtype, m)[...] = sums.astype(result.dtype)
        result[...] = values.astype(result.dtype)

    deferred(compute)
    calls.append(Call(m, n, k, count, operation["compute"], operation["EPILOGUE"], float(beta), float(alpha)))


def _activated(name: str, values: np.ndarray, operation: dict, dtype: np.dtype) -> np.ndarray:
    """An activation of the matrix; or its gradient, by what the one leaves for the other in the auxiliary buffer.

    ReLU's maximum makes 0 of what is no number. GELU, which is that by tanh, leaves its input in D's type.
    """
    if "RELU" in name:
        return np.fmax(values, 0)
    _, m, n = values.shape
    pointer, apart = operation["EPILOGUE_AUX_POINTER"], operation["EPILOGUE_AUX_LD"]
    inputs = as_strided(_memory(pointer, dtype, (n - 1) * apart + m), (m, n), (dtype.itemsize, apart * dtype.itemsize))
    x = inputs.astype(values.dtype) if name.startswith("D") else values[0]
    inner = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    if name.startswith("D"):
        slope = (1 - inner**2) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
        return values * (0.5 * (1 + inner) + 0.5 * x * slope)
    inputs[...] = x.astype(dtype)
    return (0.5 * x * (1 + inner))[np.newaxis]


def _shape(operation: dict, *layouts: int) -> tuple[int, int, int, int]:
    a, b, c, d = (_objects[layout] for layout in layouts)
    (m, k), (inner, n) = (
        (x["cols"], x["rows"]) if operation[t] else (x["rows"], x["cols"]) for x, t in ((a, "TRANSA"), (b, "TRANSB"))
    )
    _require(k == inner and all((x["rows"], x["cols"]) == (m, n) for x in (c, d)), "shapes that do not fit")
    _require(len({x["BATCH_COUNT"] for x in (a, b, c, d)}) == 1, "stacks of different lengths")
    kinds = operation["compute"], operation["scale"], a["type"], d["type"]
    _require(a["type"] == b["type"] and c["type"] == d["type"] and kinds in SUPPORTED, f"types {kinds}")
    return m, n, k, d["BATCH_COUNT"]


def _matrices(pointer: int, layout: int, transposed: int) -> np.ndarray:
    x = _objects[layout]
    dtype, (rows, cols, ld) = np.dtype(x["type"]), (x["rows"], x["cols"], x["ld"])
    count, apart = x["BATCH_COUNT"], x["STRIDED_BATCH_OFFSET"]
    numbers = _memory(pointer, dtype, (count - 1) * apart + (cols - 1) * ld + rows)
    size = dtype.itemsize
    matrices = as_strided(numbers, (count, rows, cols), (apart * size, size, ld * size))
    return matrices.transpose(0, 2, 1) if transposed else matrices


def _memory(pointer: int, dtype: np.dtype, count: int) -> np.ndarray:
    size = count * dtype.itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(pointer), dtype, count)


def install() -> None:
    """Put it where nvmath is imported from, for as long as the stand-in for CuPy is installed."""
    cublas = types.ModuleType("nvmath.bindings.cublas")
    cublas.ComputeType = ComputeType
    sys.modules.update({"nvmath.bindings.cublasLt": sys.modules[__name__], cublas.__name__: cublas})
    calls.clear()
    searches.clear()
