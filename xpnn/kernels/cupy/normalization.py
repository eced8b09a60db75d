"""Normalization of each example by itself on the device, each way in one launch."""

import math
from typing import Any

import cupy

from xpnn.kernels import kernel
from xpnn.kernels.cupy.batchnorm import gradient_sums
from xpnn.kernels.cupy.blocks import of_one_type, of_teams
from xpnn.kernels.cupy.source import C_TYPES, FLAGS, Source, accumulation, of_each_type

NORMALIZATION = Source(
    "normalization.cu",
    of_each_type(
        *(
            f"normalization{way}<T, {warps}, {centered}>"
            for way in ("", "_grad")
            for warps in ("true", "false")
            for centered in ("true", "false")
        )
    ),
)


@kernel("layers.normalization.layernorm", "cupy")
def layernorm(x: Any, gamma: Any, beta: Any, eps: float) -> tuple[Any, Any, Any]:
    return _forward(x, gamma, beta, eps, _of_rows(x), (*x.shape[:-1], 1))


@kernel("layers.normalization.layernorm_grad", "cupy")
def layernorm_grad(dout: Any, x_hat: Any, inv_std: Any, gamma: Any) -> Any:
    return _backward(dout, x_hat, inv_std, gamma, _of_rows(dout), centered=True)


@kernel("layers.normalization.groupnorm", "cupy")
def groupnorm(x: Any, gamma: Any, beta: Any, eps: float) -> tuple[Any, Any, Any]:
    return _forward(x, gamma, beta, eps, x.shape, (x.shape[0], 1, x.shape[2], 1))


@kernel("layers.normalization.groupnorm_grad", "cupy")
def groupnorm_grad(dout: Any, x_hat: Any, inv_std: Any, gamma: Any) -> Any:
    return _backward(dout, x_hat, inv_std, gamma, dout.shape, centered=True)


@kernel("layers.normalization.rmsnorm", "cupy")
def rmsnorm(x: Any, gamma: Any, eps: float) -> tuple[Any, Any, Any]:
    return _forward(x, gamma, None, eps, _of_rows(x), (*x.shape[:-1], 1))


@kernel("layers.normalization.rmsnorm_grad", "cupy")
def rmsnorm_grad(dout: Any, x_hat: Any, inv_rms: Any, gamma: Any) -> Any:
    return _backward(dout, x_hat, inv_rms, gamma, _of_rows(dout), centered=False)


@kernel("layers.normalization.param_grads", "cupy")
def param_grads(dout: Any, x_hat: Any, has_beta: bool) -> tuple[Any, Any]:
    """By batch norm's kernel: one launch, or two where rows are many."""
    dtype = cupy.result_type(dout, x_hat)
    dgamma, dbeta, _, _ = gradient_sums(dout, x_hat, [None] * 4)
    return dgamma.astype(dtype, copy=False), dbeta.astype(dout.dtype, copy=False) if has_beta else None


def _of_rows(x: Any) -> tuple[int, ...]:
    """The sizes of rows as normalization.cu takes them: n, pixels, groups, width."""
    return math.prod(x.shape[:-1]), 1, 1, x.shape[-1]


def _forward(x: Any, gamma: Any, beta: Any, eps: float, sizes: tuple[int, ...], statistics: tuple[int, ...]) -> Any:
    x, gamma, beta = of_one_type(x, gamma, beta)
    results = cupy.empty_like(x), cupy.empty_like(x), cupy.empty(statistics, dtype=x.dtype)
    _launch("normalization", beta is not None, sizes, (x, gamma, beta, accumulation(x)(eps)), results)
    return results


def _backward(dout: Any, x_hat: Any, inv_std: Any, gamma: Any, sizes: tuple[int, ...], centered: bool) -> Any:
    dout, x_hat, inv_std, gamma = of_one_type(dout, x_hat, inv_std, gamma)
    dx = cupy.empty_like(dout)
    _launch("normalization_grad", centered, sizes, (dout, x_hat, inv_std, gamma), (dx,))
    return dx


def _launch(
    name: str, centered: bool, sizes: tuple[int, ...], inputs: tuple[Any, ...], results: tuple[Any, ...]
) -> None:
    n, pixels, groups, width = sizes
    if n:
        warps, grid, block = of_teams(n * groups, pixels * width)
        kernel_name = f"{name}<{C_TYPES[inputs[0].dtype.char]}, {FLAGS[warps]}, {FLAGS[centered]}>"
        NORMALIZATION.launch(kernel_name, grid, block, (*inputs, *sizes, *results))
