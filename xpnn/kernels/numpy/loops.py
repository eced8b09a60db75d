"""Loops that kernels run on: compiled where numba is installed (the extra `fast`), else NumPy's in blocks."""

try:
    import numba

    if numba.config.DISABLE_JIT:  # as Python runs them, they would take hundreds of times as long
        raise ImportError("NUMBA_DISABLE_JIT is set")
    from xpnn.kernels.numpy import compiled as loops

    COMPILED, REASON = True, ""
except ImportError as error:  # no numba, one that does not know this NumPy yet, or one that is not to compile
    from xpnn.kernels.numpy import blockwise as loops  # type: ignore[no-redef]

    COMPILED, REASON = False, "pip install numba" if error.name == "numba" else str(error)

__all__ = ["COMPILED", "REASON", "loops"]
