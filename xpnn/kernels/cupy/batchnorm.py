"""Batch normalization on the device."""

from typing import Any

import cupy

from xpnn.kernels import kernel
from xpnn.kernels.cupy.blocks import in_chunks, of_one_type, over_rows, packed
from xpnn.kernels.cupy.source import C_TYPES, FLAGS, Source, accumulation, of_each_type

BATCHNORM = Source(
    "batchnorm.cu",
    of_each_type(
        *("moments<T>", "merge_moments<T>", "gradient_sums<T, false>", "gradient_sums<T, true>", "add_sums<T>"),
        *("running_moments<T>", "scales<T>", "means<T>"),
        *(
            f"{name}<T, {packed}, {relu}>"
            for name in ("normalize", "input_gradient")
            for packed in ("true", "false")
            for relu in ("true", "false")
        ),
    ),
)


@kernel("layers.batchnorm.moments", "cupy")
def moments(x: Any) -> tuple[Any, Any]:
    """One launch that reads x once; where rows are many, one more for the moments of all chunks together."""
    n, d = x.shape
    x, mean, var = cupy.ascontiguousarray(x), cupy.empty(d, dtype=x.dtype), cupy.empty(d, dtype=x.dtype)
    if d:
        grid, block, rows, chunks = _in_chunks(x)
        of = C_TYPES[x.dtype.char]
        BATCHNORM.launch(f"moments<{of}>", grid, block, (x, n, d, rows, chunks, mean, var))
        if grid[1] > 1:
            args = (x, n, d, rows, chunks, grid[1], mean, var)
            BATCHNORM.launch(f"merge_moments<{of}>", grid[:1], block, args)
    return mean, var


@kernel("layers.batchnorm.gradient_sums", "cupy")
def gradient_sums(dout: Any, x: Any, mean: Any) -> tuple[Any, Any]:
    """One launch, or two as for the moments. A mean of None is one of 0."""
    return _gradient_sums(dout, x, mean)


@kernel("layers.batchnorm.gradient_sums_relu", "cupy")
def gradient_sums_relu(dout: Any, x: Any, mean: Any, scale: Any, beta: Any) -> tuple[Any, Any]:
    return _gradient_sums(dout, x, mean, scale, beta)


def _gradient_sums(dout: Any, x: Any, mean: Any, scale: Any = None, beta: Any = None) -> tuple[Any, Any]:
    own, relu = dout.dtype, FLAGS[beta is not None]
    dout, x, mean, scale, beta = of_one_type(dout, x, mean, scale, beta)
    n, d = x.shape
    if not x.size:
        return cupy.zeros(d, dtype=own), cupy.zeros(d, dtype=x.dtype)
    sums, products = cupy.empty(d, dtype=x.dtype), cupy.empty(d, dtype=x.dtype)
    grid, block, rows, chunks = _in_chunks(x)
    of = C_TYPES[x.dtype.char]
    args = (dout, x, mean, scale, beta, n, d, rows, chunks, sums, products)
    BATCHNORM.launch(f"gradient_sums<{of}, {relu}>", grid, block, args)
    if grid[1] > 1:
        BATCHNORM.launch(f"add_sums<{of}>", grid[:1], block, (d, chunks, grid[1], sums, products))
    return sums.astype(own, copy=False), products


@kernel("layers.batchnorm.normalize", "cupy")
def normalize(x: Any, mean: Any, scale: Any, beta: Any) -> Any:
    return _each_number("normalize", [x], [mean, scale, beta], relu=False)


@kernel("layers.batchnorm.normalize_relu", "cupy")
def normalize_relu(x: Any, mean: Any, scale: Any, beta: Any) -> Any:
    return _each_number("normalize", [x], [mean, scale, beta], relu=True)


@kernel("layers.batchnorm.input_gradient", "cupy")
def input_gradient(dout: Any, x: Any, mean: Any, scale: Any, shift: Any, slope: Any) -> Any:
    return _each_number("input_gradient", [dout, x], [mean, scale, None, shift, slope], relu=False)


@kernel("layers.batchnorm.input_gradient_relu", "cupy")
def input_gradient_relu(dout: Any, x: Any, mean: Any, scale: Any, beta: Any, shift: Any, slope: Any) -> Any:
    return _each_number("input_gradient", [dout, x], [mean, scale, beta, shift, slope], relu=True)


@kernel("layers.batchnorm.running_moments", "cupy")
def running_moments(
    running_mean: Any, running_var: Any, mean: Any, var: Any, momentum: float, correction: float
) -> tuple[Any, Any]:
    return _each_column("running_moments", [running_mean, running_var, mean, var], momentum, correction)


@kernel("layers.batchnorm.scales", "cupy")
def scales(var: Any, gamma: Any, eps: float) -> tuple[Any, Any]:
    return _each_column("scales", [var, gamma], eps)


@kernel("layers.batchnorm.means", "cupy")
def means(dbeta: Any, dgamma: Any, inv_std: Any, n: int) -> tuple[Any, Any]:
    return _each_column("means", [dbeta, dgamma, inv_std], 1 / n)


def _each_column(name: str, vectors: list[Any], *scalars: float) -> tuple[Any, Any]:
    """Call a kernel for vectors (D,); return the two that it gives."""
    vectors = of_one_type(*vectors)
    results = cupy.empty_like(vectors[0]), cupy.empty_like(vectors[0])
    accumulated = map(accumulation(vectors[0]), scalars)
    of = C_TYPES[vectors[0].dtype.char]
    BATCHNORM.each(f"{name}<{of}>", vectors[0].size, *vectors, *accumulated, *results)
    return results


def _each_number(name: str, rows: list[Any], vectors: list[Any], relu: bool) -> Any:
    """Call a kernel for arrays (N, D) and vectors (D,); return what it gives, an array (N, D)."""
    arrays = of_one_type(*rows, *vectors)
    x = arrays[0]
    n, d = x.shape
    out = cupy.empty_like(x)
    if x.size:
        pack = packed(d, *arrays[: len(rows)])
        grid, block = over_rows(n, d * x.dtype.itemsize // 16 if pack else d)
        kernel_name = f"{name}<{C_TYPES[x.dtype.char]}, {FLAGS[pack]}, {FLAGS[relu]}>"
        BATCHNORM.launch(kernel_name, grid, block, (n, d, *arrays, out))
    return out


def _in_chunks(x: Any) -> tuple[tuple[int, ...], tuple[int, ...], int, Any]:
    """Return grid and block for sums over x (N, D), the rows of a chunk, and memory for two sums of each chunk."""
    grid, block, rows = in_chunks(*x.shape)
    return grid, block, rows, cupy.empty((2, grid[1], x.shape[1]), dtype=accumulation(x))
