"""Loops that kernels run on: compiled where numba is installed (the extra `fast`), else NumPy's in blocks."""

try:
    from xpnn.kernels.numpy import compiled as loops

    COMPILED = True
except ImportError:  # no numba, or one that does not know this NumPy yet
    from xpnn.kernels.numpy import blockwise as loops  # type: ignore[no-redef]

    COMPILED = False

__all__ = ["COMPILED", "loops"]
