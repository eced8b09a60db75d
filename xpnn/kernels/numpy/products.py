"""Matrix products on NumPy, shared out where BLAS keeps to one thread."""

import numpy as np

from xpnn.kernels import kernel
from xpnn.threads import is_held, share

WORTH_A_THREAD = 2**21  # multiplications


@kernel("products.matmul", "numpy")
def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if not is_held():
        return np.matmul(a, b)
    out = np.empty((*a.shape[:-1], b.shape[-1]), dtype=np.result_type(a, b))

    def fill(part: slice) -> None:
        np.matmul(a[part], b if b.ndim == 2 else b[part], out=out[part])

    multiplications = out[:1].size * a.shape[-1]
    share(fill, len(a), WORTH_A_THREAD // max(multiplications, 1))
    return out
