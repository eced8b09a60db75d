"""Layouts in memory that an elementwise kernel for NumPy has to take: of the same numbers, or of some of them."""

import numpy as np

# More than one block, and no whole number of blocks.
MANY = (5, 3, 40, 70)

LAYOUTS = {
    "nchw": lambda x: x,
    "nhwc": lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
    "fortran": np.asfortranarray,
    "reversed": lambda x: x[::-1, :, :, ::-1],
    "gaps": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "one channel": lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)[:, :1],
    "one image": lambda x: x[:1],
    "broadcast": lambda x: np.broadcast_to(x[:, :1], x.shape),
    "none": lambda x: x[:0],
    "a number": lambda x: np.array(x[0, 0, 0, 0]),
}
