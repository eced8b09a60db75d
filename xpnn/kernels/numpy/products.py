"""Matrix products on NumPy, shared out where BLAS keeps to one thread."""

import numpy as np

from xpnn.backend import written
from xpnn.kernels import kernel
from xpnn.threads import is_held, share

WORTH_A_THREAD = 2**21  # multiplications


@kernel("products.matmul", "numpy")
def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    if a.dtype == b.dtype == np.float16:  # which BLAS has not; sums are in single precision either way
        result = matmul(a.astype("float32"), b.astype("float32"))
        return result.astype("float16") if out is None else written(result, out)
    if not is_held() or (b.ndim > 2 and a.shape[:-2] != b.shape[:-2]):
        return np.matmul(a, b, out=out)
    result = np.empty((*a.shape[:-1], b.shape[-1]), dtype=np.result_type(a, b)) if out is None else out

    def fill_rows(part: slice) -> None:
        np.matmul(a[part], b if b.ndim == 2 else b[part], out=result[part])

    def fill_columns(part: slice) -> None:
        np.matmul(a, b[:, part], out=result[:, part])

    # Along the longer side: each thread then reads all of the smaller matrix, and a part of the larger.
    if result.ndim == 2 and result.shape[1] > result.shape[0]:
        share(fill_columns, result.shape[1], WORTH_A_THREAD // max(a.size, 1))
    else:
        share(fill_rows, len(a), WORTH_A_THREAD // max(result[:1].size * a.shape[-1], 1))
    return result
