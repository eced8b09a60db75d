"""Layer normalization on the device, each way in one launch."""

import math
from typing import Any

import cupy

from xpnn.kernels import kernel
from xpnn.kernels.cupy.blocks import of_one_type, of_teams
from xpnn.kernels.cupy.source import C_TYPES, FLAGS, Source, accumulation, of_each_type

LAYERNORM = Source(
    "layernorm.cu",
    of_each_type("layernorm<T, true>", "layernorm<T, false>", "layernorm_grad<T, true>", "layernorm_grad<T, false>"),
)


@kernel("layers.normalization.layernorm", "cupy")
def layernorm(x: Any, gamma: Any, beta: Any, eps: float) -> tuple[Any, Any, Any]:
    x, gamma, beta = of_one_type(x, gamma, beta)
    out, x_hat = cupy.empty_like(x), cupy.empty_like(x)
    inv_std = cupy.empty((*x.shape[:-1], 1), dtype=x.dtype)
    _launch("layernorm", x, (x, gamma, beta, accumulation(x)(eps)), (out, x_hat, inv_std))
    return out, x_hat, inv_std


@kernel("layers.normalization.layernorm_grad", "cupy")
def layernorm_grad(dout: Any, x_hat: Any, inv_std: Any, gamma: Any) -> Any:
    dout, x_hat, inv_std, gamma = of_one_type(dout, x_hat, inv_std, gamma)
    dx = cupy.empty_like(dout)
    _launch("layernorm_grad", dout, (dout, x_hat, inv_std, gamma), (dx,))
    return dx


def _launch(name: str, x: Any, inputs: tuple[Any, ...], results: tuple[Any, ...]) -> None:
    n, d = math.prod(x.shape[:-1]), x.shape[-1]
    if n:
        warps, grid, block = of_teams(n, d)
        LAYERNORM.launch(f"{name}<{C_TYPES[x.dtype.char]}, {FLAGS[warps]}>", grid, block, (*inputs, n, d, *results))
