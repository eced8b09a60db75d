"""Numbers chosen by a mask."""

import numpy as np


def keep(values: np.ndarray, where: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Return the values where a bool array says so, elsewhere zero: ``np.where(where, values, 0)``.

    All bits of a value or none, by a mask of ones or zeros, is several times faster than a choice by bool.
    """
    integer = np.dtype(f"i{values.dtype.itemsize}")
    mask = np.negative(where.view(np.int8)).astype(integer)
    bits = np.bitwise_and(values.view(integer), mask, out=mask if out is None else out.view(integer))
    return bits.view(values.dtype)
