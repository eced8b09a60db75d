"""Kernels for NumPy: the same arithmetic in blocks that stay in a core's cache, written into place."""

from xpnn.kernels.numpy import activation, batchnorm, convolution, in_place, pooling, products, random, rows, special

__all__ = ["activation", "batchnorm", "convolution", "in_place", "pooling", "products", "random", "rows", "special"]
