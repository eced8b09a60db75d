"""Kernels for CuPy: CUDA sources beside their call sites, compiled at first use."""

from xpnn.kernels.cupy import (
    activation,
    affine,
    batchnorm,
    convolution,
    dropout,
    graph,
    images,
    losses,
    normalization,
    norms,
    pooling,
    products,
    random,
    rows,
    rules,
    special,
)

__all__ = [
    "activation",
    "affine",
    "batchnorm",
    "convolution",
    "dropout",
    "graph",
    "images",
    "losses",
    "normalization",
    "norms",
    "pooling",
    "products",
    "random",
    "rows",
    "rules",
    "special",
]
