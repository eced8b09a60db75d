"""Whether loss and gradients are numbers, and what a scaled loss needs, on the device: nobody waits for the answers."""

from typing import Any

import cupy
import numpy as np

from xpnn.kernels import kernel
from xpnn.kernels.cupy.blocks import over_all
from xpnn.kernels.cupy.source import C_TYPES, THREADS, Source, accumulation, in_one_order, of_each_type

FINITE = Source(
    "finite.cu",
    [
        *of_each_type("nan_unless_finite<T>", "note_finite<T>", "unscale<T, T>", "unscale<T, Acc>", "are_finite<T>"),
        "adjust",
    ],
)


@kernel("models.model.nan_unless_finite", "cupy")
def nan_unless_finite(loss: Any, grads: Any) -> Any:
    if loss.dtype != grads.dtype:
        return cupy.where(cupy.isfinite(grads).all(), loss, float("nan") * loss)
    FINITE.each(f"nan_unless_finite<{C_TYPES[grads.dtype.char]}>", grads.size, *in_one_order(grads), loss)
    return loss


@kernel("training.solver.note_finite", "cupy")
def note_finite(finite: Any, loss: Any) -> Any:
    if loss.dtype.char not in C_TYPES:  # of whole numbers, say
        finite &= cupy.isfinite(loss)
        return finite
    FINITE.launch(f"note_finite<{C_TYPES[loss.dtype.char]}>", (1,), (1,), (finite, loss))
    return finite


@kernel("models.model.unscale", "cupy")
def unscale(grads: Any, scale: Any) -> Any:
    if scale.dtype not in (grads.dtype, accumulation(grads)):
        scale = scale.astype(grads.dtype)
    FINITE.each(f"unscale<{C_TYPES[grads.dtype.char]}, {C_TYPES[scale.dtype.char]}>", grads.size, grads, scale)
    return grads


@kernel("training.loss_scale.adjust", "cupy")
def adjust(grads: Any, scale: Any, steps: Any, grows_after: int) -> Any:
    """One launch looks at the gradients, and the other does the rest."""
    blocks = over_all(grads)
    answers, fits = cupy.empty(blocks, dtype="bool"), cupy.empty((), dtype="bool")
    FINITE.launch(f"are_finite<{C_TYPES[grads.dtype.char]}>", (blocks,), (THREADS,), (grads.size, grads, answers))
    FINITE.launch("adjust", (1,), (THREADS,), (blocks, answers, scale, steps, np.float32(grows_after), fits))
    return fits
