"""Matrix products on the device: by cuBLASLt where it is there, or else by `cupy.matmul`."""

import os
from typing import Any

import cupy

from xpnn.kernels import kernel
from xpnn.kernels.cupy import cublaslt
from xpnn.kernels.cupy.rows import add_rows
from xpnn.kernels.cupy.source import fits

if cublaslt.TF32:
    os.environ.setdefault("CUPY_TF32", "1")  # which cupy.matmul asks for


@kernel("products.matmul", "cupy")
def matmul(a: Any, b: Any, out: Any = None) -> Any:
    return _product(a, b, None, out)


@kernel("products.matmul_bias", "cupy")
def matmul_bias(a: Any, b: Any, bias: Any) -> Any:
    return _product(a, b, bias, None)


@kernel("products.gemm", "cupy")
def gemm(a: Any, b: Any, c: Any, alpha: float, beta: float) -> Any:
    """One product, which also adds, where cuBLASLt has that."""
    if a.dtype == b.dtype == c.dtype and a.dtype.char in cublaslt.CUDA_TYPES and 0 not in (*a.shape, *b.shape):
        out = cupy.empty(c.shape, dtype=c.dtype)
        if cublaslt.multiply(a[None], b[None], out[None], None, False, c=c[None], alpha=alpha, beta=beta):
            return out
    product = matmul(a, b)
    if product.dtype.itemsize == 2:  # rounded once more, not at each operation
        return (alpha * product.astype("float32") + beta * c.astype("float32")).astype(c.dtype)
    return alpha * product + beta * c


@kernel("layers.affine.param_grads", "cupy")
def param_grads(rows: Any, douts: Any, dw: Any = None, db: Any = None) -> tuple[Any, Any]:
    """One product, which also adds up the douts that it reads, where cuBLASLt has that: for those that lie by rows."""
    if rows.dtype == douts.dtype and douts.dtype.char in cublaslt.CUDA_TYPES and 0 not in (*rows.shape, *douts.shape):
        product = cupy.empty((rows.shape[1], douts.shape[1]), dtype=douts.dtype) if dw is None else dw
        sums = cupy.empty(douts.shape[1], dtype=product.dtype) if db is None else db
        stacks = rows.T[None], douts[None], product[None], sums[None]
        may = fits(product, douts) and product.dtype == sums.dtype and cublaslt.by_rows(stacks[1])
        if may and cublaslt.multiply(*stacks, False, "BGRADA"):
            return product, sums
    return matmul(rows.T, douts, dw), add_rows(douts, db)


def _product(a: Any, b: Any, bias: Any, out: Any) -> Any:
    """Of two matrices, or of two stacks of them; everything else is CuPy's."""
    alike = len({x.dtype for x in (a, b, bias) if x is not None}) == 1 and (out is None or fits(out, a))
    if not alike or a.dtype.char not in cublaslt.CUDA_TYPES or a.ndim < 2 or a.shape[:-2] != b.shape[:-2]:
        result = cupy.matmul(a, b, out=out)
        if bias is not None:
            result += bias
        return result
    if out is None:
        out = cupy.empty((*a.shape[:-1], b.shape[-1]), dtype=a.dtype)
    if a.ndim == 3:
        multiply(a, b, out, None if bias is None else cupy.broadcast_to(bias, (len(a), *bias.shape)))
    elif a.ndim == 2:
        multiply(a[None], b[None], out[None], None if bias is None else bias[None])
    else:
        for left, right, result in zip(a, b, out, strict=True):
            _product(left, right, bias, result)
    return out


def multiply(a: Any, b: Any, out: Any, bias: Any = None, add: bool = False) -> None:
    """Write the products of a stack of matrices (S, M, K) and another (S, K, N) into `out`, or add them to it.

    bias (S, N) is added to their rows; a and b are of one dtype, and so are out and bias: the same, or float32 where
    it is a half type.
    """
    if 0 in out.shape:
        return
    if 0 in a.shape:
        if not add:
            out[...] = 0
        if bias is not None:
            out += bias[:, None]
    elif not cublaslt.multiply(a, b, out, bias, add):
        if bias is None or not cublaslt.multiply(a, b, out, None, add):
            _multiply(a, b, out, add)
        if bias is not None:
            out += bias[:, None]


def _multiply(a: Any, b: Any, out: Any, add: bool) -> None:
    if len(a) > 1 and a.dtype.itemsize > 2:
        _multiply_into(a, b, out, add)
    else:  # CuPy computes stacks of float16 in float32, and fails for those of bfloat16
        for left, right, result in zip(a, b, out, strict=True):
            _multiply_into(left, right, result, add)


def _multiply_into(a: Any, b: Any, out: Any, add: bool) -> None:
    if add:
        out += cupy.matmul(a, b)
    else:
        cupy.matmul(a, b, out=out)


def describe() -> str:
    """By what products are computed, for people to read."""
    lt, cupy_rounds = cublaslt.library(), os.environ.get("CUPY_TF32", "0") != "0"  # as CuPy reads it
    if lt is None:
        precision = "TF32" if cupy_rounds else "exact float32"
        return f"cupy.matmul, {precision}; faster by cuBLASLt: {cublaslt.obstacle()}"
    version = f"cuBLASLt {lt.get_version() // 10000}.{lt.get_version() // 100 % 100}"
    if cublaslt.TF32:
        return f"{version}, TF32"
    left = "; CUPY_TF32 lets cupy.matmul round factors of what is left to it"
    return f"{version}, exact float32" + left * cupy_rounds
