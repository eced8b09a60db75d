"""Batch normalization on the device, with an activation behind it. Rows may be of half precision, vectors are not."""

from typing import Any

import cupy

from xpnn.backend import written
from xpnn.kernels import kernel
from xpnn.kernels.cupy.blocks import in_chunks, of_one_type, over_rows, packed
from xpnn.kernels.cupy.source import C_TYPES, FLAGS, Source, accumulation, of_each_type

ACTIVATIONS = ("none", "relu", "gelu_none", "gelu_tanh")  # as in activation.cuh

BATCHNORM = Source(
    "batchnorm.cu",
    of_each_type(
        *("moments<T>", "merge_moments<T>", "scales<Acc>", "add_sums<Acc>"),
        *(f"gradient_sums<T, {activation}>" for activation in ACTIVATIONS),
        *(
            f"{name}<T, {packed}, {activation}>"
            for name in ("normalize", "input_grad")
            for packed in ("true", "false")
            for activation in ACTIVATIONS
        ),
    ),
)


@kernel("layers.batchnorm.batch_statistics", "cupy")
def batch_statistics(
    x: Any,
    running_mean: Any,
    running_var: Any,
    gamma: Any,
    beta: Any,
    momentum: float,
    correction: float,
    eps: float,
) -> tuple[Any, Any, Any, Any, Any, Any]:
    """One launch that reads x once; where rows are many, one more for the moments of all chunks together."""
    (x,), vectors = _typed([x], [running_mean, running_var, gamma, beta])
    (n, d), single = x.shape, accumulation(x)
    statistics, running = cupy.empty((4, d), dtype=single), cupy.empty((2, d), dtype=single)
    if d:
        grid, block, rows, chunks = _in_chunks(x)
        of, scalars = C_TYPES[x.dtype.char], map(single, (momentum, correction, eps))
        args = (*vectors, *scalars, statistics, running)
        BATCHNORM.launch(f"moments<{of}>", grid, block, (x, n, d, rows, chunks, *args))
        if grid[1] > 1:
            BATCHNORM.launch(f"merge_moments<{of}>", grid[:1], block, (x, n, d, rows, chunks, grid[1], *args))
    return (*statistics, *running.astype(running_mean.dtype, copy=False))


@kernel("layers.batchnorm.scales", "cupy")
def scales(var: Any, gamma: Any, beta: Any, eps: float) -> tuple[Any, Any, Any]:
    var, gamma, beta = of_one_type(var, gamma, beta)
    results = tuple(cupy.empty((3, var.size), dtype=var.dtype))
    BATCHNORM.each(f"scales<{C_TYPES[var.dtype.char]}>", var.size, var, gamma, beta, accumulation(var)(eps), *results)
    return results


@kernel("layers.batchnorm.normalize", "cupy")
def normalize(x: Any, mean: Any, scale: Any, beta: Any) -> Any:
    return _each_number("normalize", "none", [x], [mean, scale, beta])


@kernel("layers.batchnorm.normalize_relu", "cupy")
def normalize_relu(x: Any, mean: Any, scale: Any, beta: Any) -> Any:
    return _each_number("normalize", "relu", [x], [mean, scale, beta])


@kernel("layers.batchnorm.normalize_gelu", "cupy")
def normalize_gelu(x: Any, mean: Any, scale: Any, beta: Any, approximate: str) -> Any:
    return _each_number("normalize", f"gelu_{approximate}", [x], [mean, scale, beta])


@kernel("layers.batchnorm.param_grads", "cupy")
def param_grads(
    dout: Any,
    x: Any,
    mean: Any,
    scale: Any,
    beta: Any,
    activation: str,
    inv_std: Any,
    dgamma: Any = None,
    dbeta: Any = None,
) -> tuple[Any, Any, Any, Any]:
    grads = gradient_sums(dout, x, [mean, scale, beta, inv_std], activation or "none", dgamma, dbeta)
    return tuple(written(y, out) for y, out in zip(grads, (dgamma, dbeta, None, None), strict=True))


def gradient_sums(
    dout: Any,
    x: Any,
    vectors: list[Any],
    activation: str = "none",
    dgamma: Any = None,
    dbeta: Any = None,
) -> tuple[Any, Any, Any, Any]:
    """`param_grads`, in one launch, or two as for the moments. A mean of None is one of 0, an inv_std one of 1."""
    (dout, x), (mean, scale, beta, inv_std) = _typed([dout, x], vectors)
    (n, d), single = x.shape, accumulation(x)
    dgamma, dbeta = (_fitting(out, d, single) for out in (dgamma, dbeta))
    means = cupy.empty((2, d), dtype=single)
    if x.size:
        grid, block, rows, chunks = _in_chunks(x)
        finish = (inv_std, single(1 / n), dgamma, dbeta, means)
        args = (dout, x, mean, scale, beta, n, d, rows, chunks, *finish)
        BATCHNORM.launch(f"gradient_sums<{C_TYPES[x.dtype.char]}, {activation}>", grid, block, args)
        if grid[1] > 1:
            BATCHNORM.launch(f"add_sums<{C_TYPES[means.dtype.char]}>", grid[:1], block, (d, chunks, grid[1], *finish))
    else:
        for zeros in (dgamma, dbeta, means):
            zeros[...] = 0
    return dgamma, dbeta, *means


@kernel("layers.batchnorm.input_grad", "cupy")
def input_grad(dout: Any, x: Any, mean: Any, scale: Any, beta: Any, activation: str, shift: Any, slope: Any) -> Any:
    return _each_number("input_grad", activation or "none", [dout, x], [mean, scale, beta, shift, slope])


def _typed(rows: list[Any], vectors: list[Any]) -> tuple[list[Any], list[Any]]:
    """Return rows of one type, and vectors of the type that it is computed in: the widest of all but for halves."""
    rows = of_one_type(*rows)
    dtype = accumulation(rows[0])
    if any(vector is not None and vector.dtype != dtype for vector in vectors):
        widest = cupy.result_type(dtype, *(vector.dtype for vector in vectors if vector is not None))
        rows, dtype = rows if widest == dtype else [x.astype(widest) for x in rows], widest
    vectors = [None if vector is None else cupy.ascontiguousarray(vector, dtype=dtype) for vector in vectors]
    return rows, vectors


def _fitting(out: Any, d: int, dtype: Any) -> Any:
    return cupy.empty(d, dtype=dtype) if out is None or out.dtype != dtype else out


def _each_number(name: str, activation: str, rows: list[Any], vectors: list[Any]) -> Any:
    """Call a kernel for arrays (N, D) and vectors (D,); return what it gives, an array (N, D)."""
    rows, vectors = _typed(rows, vectors)
    x = rows[0]
    n, d = x.shape
    out = cupy.empty_like(x)
    if x.size:
        pack = packed(d, *rows)
        grid, block = over_rows(n, d * x.dtype.itemsize // 16 if pack else d)
        kernel_name = f"{name}<{C_TYPES[x.dtype.char]}, {FLAGS[pack]}, {activation}>"
        BATCHNORM.launch(kernel_name, grid, block, (n, d, *rows, *vectors, out))
    return out


def _in_chunks(x: Any) -> tuple[tuple[int, ...], tuple[int, ...], int, Any]:
    """Return grid and block for sums over x (N, D), the rows of a chunk, and memory for two sums of each chunk."""
    grid, block, rows = in_chunks(*x.shape)
    return grid, block, rows, cupy.empty((2, grid[1], x.shape[1]), dtype=accumulation(x))
