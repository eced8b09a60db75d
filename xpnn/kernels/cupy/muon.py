"""Muon on the device: three launches, and the products of Newton-Schulz."""

import math
from typing import Any

import cupy

from xpnn.backend import get
from xpnn.kernels import kernel, updates
from xpnn.kernels.cupy import source
from xpnn.kernels.cupy.products import gemm, matmul
from xpnn.kernels.cupy.source import (
    ACCUMULATION,
    C_TYPES,
    THREADS,
    Source,
    accumulation,
    given,
    in_accumulation,
    of_each_type,
)
from xpnn.recording import varying

PRODUCTS = ("T", C_TYPES["e"], C_TYPES["E"])  # the types that products may be in: the weights' own, and half types

MUON = Source(
    "muon.cu",
    of_each_type(
        "momentum<T>", *(f"normalized<Acc, {of}>" for of in PRODUCTS), *(f"updated<T, {of}>" for of in PRODUCTS)
    ),
)


@kernel("optim.in_place.muon", "cupy")
def muon(w: Any, dw: Any, config: dict, where: Any | None = None, factor: Any | None = None) -> tuple[Any, ...]:
    computed = accumulation(w)
    numbers = given(varying(lambda: updates.muon(config, w.shape), 3, computed.__name__), computed)
    dw, factor = cupy.ascontiguousarray(dw, dtype=w.dtype), in_accumulation(factor, w)
    config["velocity"] = velocity = cupy.ascontiguousarray(config["velocity"])
    if w.size == 0:
        return w, velocity
    of, in_ = C_TYPES[w.dtype.char], ACCUMULATION[w.dtype.char]
    blocks = min(-(-w.nbytes // (16 * THREADS)), THREADS, source.BLOCKS)  # a thread takes 16 bytes at a time
    step, step_squares = cupy.empty(w.shape, dtype=computed), cupy.empty(blocks, dtype=computed)
    w_squares = cupy.empty(blocks, dtype=computed) if config["normalize_weights"] else None
    args = w.size, w, dw, where, factor, velocity, step, step_squares, w_squares, *numbers[:2]
    MUON.launch(f"momentum<{of}>", (blocks,), (THREADS,), args)
    half = config["newton_schulz_dtype"]
    x = cupy.empty((w.shape[0], math.prod(w.shape[1:])), dtype=get("cupy").dtype(half) if half else w.dtype)
    products = C_TYPES[x.dtype.char]
    MUON.each(f"normalized<{in_}, {products}>", w.size, step, step_squares, blocks, x)
    update = updates.orthogonalized(x, config["newton_schulz_steps"], matmul, gemm)
    _, outputs = updates.fans(w.shape)
    args = w, update, where, w_squares, blocks, computed(math.sqrt(outputs)), *numbers
    MUON.each(f"updated<{of}, {products}>", w.size, *args)
    return w, velocity
