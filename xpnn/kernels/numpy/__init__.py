"""Kernels for NumPy: the same arithmetic in blocks that stay in a core's cache, written into place."""

from xpnn.kernels.numpy import activation, batchnorm, convolution, pooling, special

__all__ = ["activation", "batchnorm", "convolution", "pooling", "special"]
