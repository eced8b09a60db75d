"""Loops that kernels run on: compiled where numba is installed (the extra `fast`), else NumPy's in blocks."""

from importlib.util import find_spec

if find_spec("numba"):
    from xpnn.kernels.numpy import compiled as loops
else:
    from xpnn.kernels.numpy import blockwise as loops  # type: ignore[no-redef]

__all__ = ["loops"]
