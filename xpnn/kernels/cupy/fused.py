"""Affine layers with the activation behind them: a product where cuBLASLt has that, or else a product and a launch."""

from typing import Any, NamedTuple

import cupy

from xpnn.backend import written
from xpnn.kernels import kernel
from xpnn.kernels.cupy import cublaslt
from xpnn.kernels.cupy.blocks import in_chunks, of_one_type, over_rows, packed
from xpnn.kernels.cupy.products import matmul
from xpnn.kernels.cupy.rows import add_into
from xpnn.kernels.cupy.source import C_TYPES, FLAGS, Source, accumulation, fits, of_each_type

# What cuBLASLt has. Its gradient of a ReLU is none of ours: where an output is exactly 0 it lets the gradient pass.
FORWARD = {"relu": "RELU", "gelu_tanh": "GELU_AUX"}

FUSED = Source(
    "fused.cu",
    of_each_type(
        *(
            f"{kernel}, {activation}>"
            for kernel in ("add_and_activate<T, true", "add_and_activate<T, false", "grad<T, T", "grad<T, Acc")
            for activation in ("relu", "gelu_none", "gelu_tanh")
        )
    ),
)


class Kept(NamedTuple):
    """The input of a GELU by tanh, and the memory that cuBLASLt has left it in."""

    numbers: Any
    aux: Any


@kernel("layers.fused.activated", "cupy")
def activated(rows: Any, w: Any, b: Any, activation: str) -> tuple[Any, Any]:
    """By cuBLASLt one launch, and its ReLU makes 0 of what is no number, other than the definition's."""
    rows, w, b = of_one_type(rows, w, b)
    epilogue = FORWARD.get(activation)
    if epilogue and 0 not in (*rows.shape, *w.shape):
        out, bias = cupy.empty((len(rows), w.shape[1]), dtype=w.dtype), None if b is None else b[None]
        aux = cublaslt.aux_for(out) if activation == "gelu_tanh" else None
        with_bias = epilogue if b is None else f"{epilogue}_BIAS"
        if cublaslt.multiply(rows[None], w[None], out[None], bias, False, with_bias, aux):
            return out, out if aux is None else Kept(aux[:, : w.shape[1]], aux)
    return add_and_activate(matmul(rows, w), b, activation)


def add_and_activate(x: Any, b: Any, activation: str) -> tuple[Any, Any]:
    """Add a bias to rows, in their place, unless it is None; return what an activation makes of them, and the rows."""
    out = x if activation == "relu" else cupy.empty_like(x)
    if x.size:
        n, d = x.shape
        pack = packed(d, x, out)
        grid, block = over_rows(n, d * x.itemsize // 16 if pack else d)
        name = f"add_and_activate<{C_TYPES[x.dtype.char]}, {FLAGS[pack]}, {activation}>"
        FUSED.launch(name, grid, block, (n, d, b, x, out))
    return out, x


@kernel("layers.fused.activated_grad", "cupy")
def activated_grad(dout: Any, kept: Any, activation: str, db: Any = None) -> tuple[Any, Any]:
    """One launch; where rows are many, one more for the sums of all chunks together."""
    x = kept.numbers if isinstance(kept, Kept) else cupy.ascontiguousarray(kept)
    dout, (n, d), char = cupy.ascontiguousarray(dout, dtype=x.dtype), x.shape, x.dtype.char
    dx, lent = cupy.empty_like(dout), db
    db = lent if lent is not None and fits(lent, x) else cupy.empty(d, dtype=x.dtype)
    if not dx.size:
        db[...] = 0
        return dx, written(db, lent)
    grid, block, rows = in_chunks(n, d)
    chunked = grid[1] > 1
    sums = cupy.empty((grid[1], d), dtype=accumulation(x)) if chunked else db
    name = f"grad<{C_TYPES[char]}, {C_TYPES[sums.dtype.char]}, {activation}>"
    apart = x.strides[0] // x.itemsize if n > 1 else d
    FUSED.launch(name, grid, block, (dout, x, n, d, apart, rows, dx, sums))
    if chunked:
        add_into(sums, db)
    return dx, written(db, lent)


@kernel("layers.fused.activated_input_grad", "cupy")
def activated_input_grad(douts: Any, w: Any, kept: Any, activation: str, db: Any = None) -> tuple[Any, Any]:
    """By cuBLASLt one launch, where it has left the input of a GELU."""
    if isinstance(kept, Kept) and 0 not in douts.shape and douts.dtype == w.dtype == kept.numbers.dtype:
        dx = cupy.empty(kept.numbers.shape, dtype=w.dtype)
        sums = db if db is not None and db.dtype == w.dtype else cupy.empty(len(w), dtype=w.dtype)
        if cublaslt.multiply(douts[None], w.T[None], dx[None], sums[None], False, "DGELU_BGRAD", kept.aux):
            return dx, written(sums, db)
    return activated_grad(matmul(douts, w.T), kept, activation, db)
