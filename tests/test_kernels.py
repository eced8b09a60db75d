"""Fast paths agree with their definitions; those for CuPy without a device, too, in test_cuda.py."""

import contextlib
import functools
import importlib
import inspect
import itertools
import os
import subprocess
import sys
import unittest.mock
from typing import NamedTuple

import numpy as np
import pytest

from xpnn import backend as backends
from xpnn import kernels, layers, random, threads
from xpnn.kernels.numpy import batchnorm, loops, winograd
from xpnn.layers.pooling import window_max
from xpnn.optim.rules import RULES
from xpnn.places import Mirrored, Shifted
from xpnn.products import product
from xpnn.recording import varying
from xpnn.windows import Window


def normals(*shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def channels_last(x):
    """The same images with the channels last in memory."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def ties(*shape, dtype="float32"):
    return np.random.default_rng(0).integers(0, 3, shape).astype(dtype)


# Windows and groups of a convolution, with images of 9 x 8 and 4 channels, 6 filters.
CONVOLUTIONS = [
    (Window((3, 3), pad=(1, 1)), 1),
    (Window((3, 3), pad=(2, 0)), 1),
    (Window((3, 2), (2, 1), (1, 2)), 2),
    (Window((2, 3), (1, 2), (0, 1), (2, 1)), 1),
    (Window((1, 3), (3, 3), (2, 0), (1, 3)), 2),
    (Window((1, 1)), 1),
]
POOLS = [Window((2, 2), (2, 2)), Window((3, 3), (2, 2)), Window((3, 2), (1, 3)), Window((1, 1), (2, 2))]
WITH_NAN = np.where(normals(2, 3, 7, 6) > 1, np.nan, normals(2, 3, 7, 6, seed=1))


def convolutions(dtype, layout):
    """x, w, b and dout for each convolution."""
    for window, groups in CONVOLUTIONS:
        x, w = layout(normals(5, 4, 9, 8, dtype=dtype)), normals(6, 4 // groups, *window.size, dtype=dtype, seed=1)
        dout = layout(normals(5, 6, *window.counts((9, 8)), dtype=dtype, seed=3))
        yield x, w, normals(6, dtype=dtype, seed=2), dout, window, groups


def few_filters(window, dtype):
    """Fewer than a group has channels."""
    return normals(2, 3, *window.size, dtype=dtype, seed=1)


DTYPES = ("float64", "float32")
FLOATS = [(dtype, layout) for dtype in ("float64", "float32") for layout in (np.asarray, channels_last)]
EACH_CONVOLUTION = [case for kind in FLOATS for case in convolutions(*kind)]
IMAGES = [layout(make(3, 5, 9, 8, dtype=dtype)) for make in (normals, ties) for dtype, layout in FLOATS]
ACTIVATIONS = [
    *IMAGES,
    np.linspace(-60, 60, 20_001, dtype="float32"),
    np.linspace(-8, 8, 20_001),
    normals(3, 4)[:, ::2],
]
# With means far from 0: sums of many numbers of one sign lose more of them.
ROWS = [
    3 + normals(*shape, dtype=dtype)
    for dtype in ("float64", "float32")
    for shape in ((5, 3), (4096, 24), (70_001, 3), (1, 2000))
]
# dout and x, and activations behind a batch norm.
ROW_GRADS = [(normals(*x.shape, dtype=x.dtype, seed=3), x) for x in ROWS]
BEHIND = ("", "relu", "gelu_none", "gelu_tanh")
NO_NUMBER = np.array([[np.nan], [1.0], [-1.0], [0.0]])

# Channels by the 16 bytes, and a window whose places take more than a byte.
WIDE_IMAGES = [layout(ties(2, 8, 20, 19, dtype=dtype)) for dtype, layout in FLOATS]
WIDE_POOLS = [*POOLS[:2], Window((17, 17), (3, 2))]
# Rows of 65 numbers, or of as many 16 bytes, in images or in what is pooled: blocks have threads to spare.
UNEVEN_IMAGES = [channels_last(ties(2, c, 2, width)) for c, width in ((13, 5), (13, 10), (4, 65), (4, 130))]

# Rows for a warp each and for a block each.
EXAMPLES = [
    3 + normals(*shape, dtype=dtype)
    for dtype in ("float64", "float32")
    for shape in ((7,), (3, 1), (2, 5, 33), (0, 4), (70, 100), (3, 1100))
]
# The pixels of images, in groups: for a warp each and for a block each; of more channels than the team has threads.
GROUPS = [
    3 + normals(*shape, dtype=dtype)
    for dtype in ("float64", "float32")
    for shape in ((2, 9, 3, 5), (1, 1, 1, 1), (0, 4, 2, 3), (3, 2, 2, 100), (2, 640, 3, 2), (2, 3, 2, 700))
]
SCORES = [
    4 * normals(*shape, dtype=dtype)
    for dtype in ("float64", "float32")
    for shape in ((1, 1), (5, 10), (129, 10), (300, 33), (1, 1100), (3, 2000))
]


def vectors(x, count):
    """Numbers for each column of the rows x."""
    return [normals(x.shape[-1], dtype=x.dtype, seed=seed) for seed in range(count)]


def normalized(x, statistics):
    """dout, x_hat, inv_std and gamma for gradients by normalized numbers x."""
    dout, inv_std = normals(*x.shape, dtype=x.dtype, seed=3), 1 + normals(*statistics, dtype=x.dtype, seed=4) ** 2
    return dout, x, inv_std, normals(*x.shape[2 if x.ndim == 4 else -1 :], dtype=x.dtype)


def steps(rule, **settings):
    """w, dw, config, condition and factor: the first step, and others on state that is there."""
    rule = RULES[rule]
    for dtype, n in itertools.product(("float64", "float32"), (0, 5, 100_003)):
        zeros = {key: np.zeros(n, dtype) for key in rule.state}
        full = {key: normals(n, dtype=dtype, seed=2) ** 2 for key in rule.state}
        begun = {**full, **({"t": 3} if "t" in rule.defaults else {})}
        factor, true, false = (np.array(value) for value in (np.dtype(dtype).type(0.3), True, False))
        for state, *more in ((zeros,), (begun,), (begun, true, factor), (begun, false), (begun, None, factor)):
            yield (
                normals(n, dtype=dtype),
                normals(n, dtype=dtype, seed=1),
                {**rule.defaults, **settings, **state},
                *more,
            )


def muon_steps():
    """w, dw, config, condition and factor: matrices and filters, wide and tall, under Muon's settings."""
    defaults = RULES["muon"].defaults
    airbench, decayed = {"normalize_weights": 1, "newton_schulz_steps": 3}, {"weight_decay": 0.5, "momentum": 0.0}
    for dtype, shape in itertools.product(DTYPES, ((5, 7), (7, 2, 1, 3), (40, 3, 5), (1, 1), (0, 3))):
        w, dw, velocity = (normals(*shape, dtype=dtype, seed=seed) for seed in range(3))
        factor, true, false = (np.array(value) for value in (np.dtype(dtype).type(0.3), True, False))
        for settings in ({}, airbench, decayed):
            yield w, dw, {**defaults, **settings, "velocity": np.zeros_like(w)}
            for more in ((true, factor), (false,), (None, factor)):
                yield w, dw, {**defaults, **settings, "velocity": velocity}, *more
    w, dw, velocity = (normals(300, 70, seed=seed) for seed in range(3))  # in more blocks than one
    yield w, dw, {**defaults, **airbench, "velocity": velocity}
    yield w, np.zeros_like(w), {**defaults, "velocity": np.zeros_like(w)}
    yield np.zeros_like(w), dw, {**defaults, **airbench, "velocity": velocity}


def picks():
    """Images and where to take others from: of every size of a number, with the channels last or not."""
    rng = np.random.default_rng(0)
    for dtype, layout in itertools.product(("uint8", "int16", "float32", "float64"), (np.asarray, channels_last)):
        x = layout(rng.integers(0, 99, (6, 3, 40, 30)).astype(dtype))
        indices, rows, columns = rng.integers(0, 6, 4), rng.integers(0, 40, (4, 42)), rng.integers(0, 30, (4, 29))
        shifts, coins = rng.integers(-4, 5, (2, 4)), rng.integers(0, 2, 4)
        down, right, flipped = Shifted(shifts[0]), Shifted(shifts[1]), Mirrored(coins)
        yield x, indices, (rows,), (columns,)
        yield x[:4, :, ::2, ::-1], None, (rows // 2,), (columns,)
        yield x[:4], None, (), (columns,)
        yield x[:, :1], indices, (rows[:, :1],), ()
        yield x, indices[:0], (rows[:0],), (columns[:0],)
        yield x, indices, (down,), (flipped, right)
        yield x, indices[::2], (Shifted(shifts[0, ::2]),), (Shifted(shifts[1, ::2]), Mirrored(coins[::2]))
        yield x[:4, :, ::2, ::-1], None, (), (flipped,)
        yield x[:4], None, (down, Shifted(shifts[1])), (right, flipped, right)
        into_zeros = [Shifted(shift, "zero") for shift in shifts]
        yield x, indices, (into_zeros[0],), (flipped, into_zeros[1])
        yield x[:4], None, (down,), (into_zeros[1], flipped)
        yield x, indices, (*into_zeros, rows), (into_zeros[1], right, flipped, columns)
        yield x, indices, (flipped, rows), (columns, Mirrored(coins))
        yield x[:, :, :1, :1], np.zeros(3, "int64"), (Shifted(np.zeros(3, "int64")),), (Mirrored(np.ones(3, "int64")),)


CORRELATIONS = [
    *((x, w, bias, window, groups) for x, w, b, _, window, groups in EACH_CONVOLUTION for bias in (b, None)),
    *(
        (normals(n, 4, 5, 8), normals(60, 4 // groups, *window.size, seed=1), bias, window, groups)
        for window, groups in CONVOLUTIONS
        for n in (0, 1, 2)
        for bias in (normals(60, seed=2), None)
    ),
]


class KeptBy(NamedTuple):
    """In place of an argument: what the function of the same library keeps for it, the last of its results."""

    function: str
    args: tuple

    def kept(self, backend=None):
        of = definition(self.function) if backend is None else kernels.TABLE[self.function, backend.name]
        return of(*copied(self.args, backend))[-1]


ACTIVATED = [
    (normals(n, d, dtype=dtype), normals(d, m, dtype=dtype, seed=1), bias, activation)
    for dtype in DTYPES
    for n, d, m in (
        (5, 4, 3),
        (1, 1, 1),
        (0, 4, 3),
        (5, 0, 3),
        (70, 100, 33),
        (2000, 5, 40),
        (3, 4, 200),
        (3, 4, 65),
        (3, 4, 260),
    )
    for bias in (normals(m, dtype=dtype, seed=2), None)
    for activation in ("relu", "gelu_none", "gelu_tanh")
]


def output(args):
    """Of `activated`: numbers of its dtype and shape."""
    rows, w, _, _ = args
    return normals(len(rows), w.shape[1], dtype=w.dtype, seed=3)


GRADIENTS = [normals(5), normals(100_003), normals(0), *(np.array([1.0, x, 3.0]) for x in (np.nan, np.inf))]

# For every registered function: calls that its kernel has to answer as the definition does.
CALLS = {
    "recording.record": [
        (lambda: varying(lambda: np.float32(3)),),
        (lambda: tuple(varying(lambda i=i: np.float32(i)) for i in range(40)),),
    ],
    "recording.overwrite": [
        ((), ()),
        ((normals(3, 4), normals(5), normals(0)), (normals(3, 4, seed=1), normals(5, seed=1), normals(0))),
        ((normals(70_001), normals(7, dtype="float64")), (normals(70_001, seed=1), normals(7))),
        (
            (normals(4, 6)[:, ::2], normals(3, dtype="float16"), normals(2, 3)),
            (normals(4, 3, seed=1), normals(3, dtype="float16", seed=1), normals(3, seed=1)),
        ),
        (tuple(np.zeros(n % 7, "int64") for n in range(161)), tuple(np.arange(n % 7) for n in range(161))),
    ],
    "recording.obstacle": [],  # the answer is a device's own
    "random.philox": [
        (0, 0, 0, 0),
        (0, 0, 0, 1),
        (1, 2, 3, 5),
        (2**64 - 1, 2**63, 2**32 - 1, 4096),
        (5, 0, 0, 100_003),
        (5, 6, 2**64 - 2, 12),
    ],
    "random.integers": [
        *((1, 2, 3, n, low, high) for n in (0, 1, 6, 20_001) for low, high in ((0, 2), (-4, 5), (7, 8))),
        (2**64 - 1, 2**63, 2**32 - 1, 4096, -(2**60), 2**53 - 1 - 2**60),
        (5, 6, 2**64 - 2, 12, 0, 10**9),
    ],
    "random.normals": [
        *((0, 1, 2, n, 0.0, 1.0, dtype) for n in (0, 1, 2, 3, 7, 2049, 20_001) for dtype in ("float64", "float32")),
        (2**64 - 1, 2**63, 2**32 - 1, 4099, 3.0, 0.5, "float32"),
        (5, 6, 2**64 - 2, 38, -1.0, 2.0, "float64"),
    ],
    "random.dropout_mask": [
        *((0, 1, 2, n, 0.5, dtype) for n in (0, 1, 8, 20_001) for dtype in ("float64", "float32", "float16")),
        (2**64 - 1, 2**63, 2**32 - 1, 4099, 0.3, "float32"),
        (5, 6, 2**64 - 2, 36, 0.9, "float32"),
        (5, 16, 0, 1000, 0.0, "float32"),
        (5, 16, 0, 1000, 1 - 2.0**-40, "float32"),
    ],
    "layers.elementwise.applied": [
        *((np.add, layout(normals(2, 3, 4, 5)), normals(2, 3, 4, 5, seed=1)) for layout in (np.array, channels_last)),
        (np.negative, normals(2, 3, 4, 5)[:, ::2]),
        (np.modf, channels_last(normals(2, 3, 4, 5))),
        (np.negative, normals()),
        (np.negative, channels_last(normals(2, 3, 4, 5))[::-1]),
    ],
    "layers.branches.joined": [
        (normals(2, 3), normals(2, 1), normals(2, 4, seed=1)),
        *((layout(normals(2, 3, 4, 5)), layout(normals(2, 1, 4, 5))) for layout in (np.array, channels_last)),
        (channels_last(normals(2, 3, 4, 5)), normals(2, 1, 4, 5)),
    ],
    "losses.cross_entropy": [
        *((x, np.random.default_rng(0).integers(0, x.shape[1], len(x)), 0.0, len(x)) for x in SCORES),
        *((x, np.random.default_rng(0).integers(-1, x.shape[1] + 1, len(x)), 0.1, 1) for x in SCORES),
        (np.array([[3e38, -3e38, 0.0]], "float32"), np.array([1]), 0.1, 1),
        (np.array([[1.0, 2.0, 3.0], [1e4, 0.0, -1e4]], "float32"), np.array([1, 2**62]), 1.0, 2),
    ],
    "losses.soft_cross_entropy": [
        *((x, normals(*x.shape, dtype=x.dtype, seed=1) ** 2, 0.0, len(x)) for x in SCORES),
        *((x, normals(*x.shape, dtype=x.dtype, seed=1) ** 2 / x.shape[1], 0.1, 1) for x in SCORES),
        (np.array([[3e38, -3e38, 0.0]], "float32"), np.array([[0.25, 0.0, 0.5]], "float32"), 0.1, 1),
        (np.array([[1e4, 0.0, -1e4]], "float32"), np.array([[0.0, 1.0, 0.0]], "float32"), 1.0, 2),
    ],
    **{
        f"optim.in_place.{rule}": [case for settings in choices for case in steps(rule, **settings)]
        for rule, choices in {
            "sgd": [{}],
            "sgd_momentum": [{}],
            "sgd_nesterov_momentum": [{}],
            "nesterov": [{"weight_decay": 0.0}, {"weight_decay": 0.1}],
            "rmsprop": [{}],
            "adam": [{}],
            "adamw": [{"weight_decay": 0.0}, {"weight_decay": 0.1}],
            "lion": [{"weight_decay": 0.0}, {"weight_decay": 0.1}],
        }.items()
    },
    "optim.in_place.muon": list(muon_steps()),
    "optim.norms.sum_of_squares": [
        (x,) for x in [*ROWS, *IMAGES, normals(9, 5)[:, ::2], normals(0), np.array(2.0), normals(1_000_003)]
    ],
    "optim.norms.clip_factor": [
        (arrays, most)
        for most in (1.5, 1e6)
        for arrays in [
            (normals(300, 40, dtype="float64"),),
            (normals(7), normals(9, 5, dtype="float32")[:, ::2], normals(0), channels_last(normals(2, 3, 4, 4))),
            tuple(normals(size, dtype="float32", seed=size) for size in (3, 100_003, 1, 5)),
            tuple(normals(3, seed=seed) for seed in range(500)),
        ]
    ],
    "models.model.nan_unless_finite": [
        (np.array(2.0, dtype), values.astype(dtype)) for dtype in DTYPES for values in GRADIENTS
    ],
    "models.model.unscale": [
        (values.astype(dtype), np.array(scale, of))
        for dtype in DTYPES
        for values in GRADIENTS
        for scale, of in ((2.0**16, "float32"), (3.0, dtype))
    ],
    "training.loss_scale.adjust": [
        (values.astype(dtype), np.array(2.0**16, "float32"), np.array(steps, "float32"), 4)
        for dtype in DTYPES
        for values in GRADIENTS
        for steps in (0, 2, 3)
    ],
    "training.solver.note_finite": [
        (np.array(so_far), np.array(loss, dtype))
        for dtype in DTYPES
        for so_far in (True, False)
        for loss in (0.0, -2.0, np.inf, np.nan)
    ]
    + [(np.array(True), np.array(3))],
    "data.images.pick": list(picks()),
    "data.images.taken": [
        (x, indices)
        for x in (
            *(x for x, *_ in picks()),
            *(np.arange(4 * n, dtype=dtype).reshape(4, n) for n in (1, 3, 10, 3072) for dtype in ("uint8", "int64")),
            *(normals(4), normals(4, 0), normals(4, 40, 30, dtype="float16")),
        )
        for indices in (np.array([3, 0, 3, 1, 2]), np.arange(4)[::2], np.zeros(0, "int64"))
    ],
    "data.images.pick_standardized": [
        (raw, normals(*shape, dtype=dtype), 1 + normals(*shape, dtype=dtype, seed=1) ** 2, dtype, *origin)
        for x, *origin in picks()
        if x.dtype in ("uint8", "int16")
        for dtype in DTYPES
        for raw in (x, x.astype(dtype))
        for shape in ((1, 1, 1), (x.shape[1], 1, 1))
    ],
    "layers.standardize.standardized": [
        (raw, mean, std, mean.dtype.name)
        for x in [*IMAGES, *WIDE_IMAGES, normals(5, 7), normals(0, 3), np.zeros((0, 3, 2, 2)), normals(3, 1, 40, 40)]
        for dtype in DTYPES
        for raw in (x.astype(dtype), (100 * np.abs(x)).astype("uint8"))
        for mean in (normals(*x.shape[1:], dtype=dtype, seed=1),)
        for std in (None, 1 + mean**2)
    ],
    "special.erf": [(x,) for x in ACTIVATIONS],
    "layers.activation.positive_part": [(x,) for x in [*ACTIVATIONS, WITH_NAN]],
    "layers.activation.where_positive": [
        *((np.flip(x, axis=0), x) for x in ACTIVATIONS),
        *((normals(*x.shape, dtype=x.dtype), x) for x in IMAGES),
        (np.array([np.inf, -np.inf, np.nan, 1.0, 2.0]), np.array([0.0, -1.0, 0.0, np.nan, np.inf])),
        (np.array(2.0), np.array(1.0)),
        (np.zeros((0, 3)), np.zeros((0, 3))),
        *((normals(7, dtype=a), normals(7, dtype=b, seed=1)) for a, b in itertools.permutations(DTYPES, 2)),
        (normals(7, dtype="float16"), normals(7, dtype="float16", seed=1)),
    ],
    "layers.activation.gelu_and_slope": [(x, form) for x in ACTIVATIONS for form in ("none", "tanh")],
    "layers.batchnorm.moments": [(x,) for x in ROWS],
    "layers.batchnorm.batch_statistics": [
        (x, *vectors(x, 4), 0.9, correction, 1e-5) for x in [*ROWS, normals(5, 0)] for correction in (1.0, 1.25)
    ],
    "layers.batchnorm.scales": [
        (vector**2, *vectors(vector, 2), 1e-5)
        for dtype in ("float64", "float32")
        for vector in (normals(d, dtype=dtype, seed=2) for d in (0, 3, 500))
    ],
    "layers.batchnorm.normalize": [(x, *vectors(x, 3)) for x in ROWS]
    + [(normals(9, 4), *vectors(normals(9, 4, dtype="float64"), 3))],
    "layers.batchnorm.normalize_relu": [(x, *vectors(x, 3)) for x in [*ROWS, NO_NUMBER]],
    "layers.batchnorm.normalize_gelu": [
        (x, *vectors(x, 3), form) for x in [*ROWS, NO_NUMBER] for form in ("none", "tanh")
    ],
    "layers.batchnorm.param_grads": [
        (dout, x, *vectors(x, 3), activation, vectors(x, 4)[3], *out)
        for dout, x in [*ROW_GRADS, (normals(0, 3), normals(0, 3, seed=1))]
        for activation in BEHIND
        for out in ((), (np.ones(x.shape[1], x.dtype), None), (None, np.ones(x.shape[1], "float16")))
    ],
    "layers.batchnorm.input_grad": [
        (dout, x, *vectors(x, 3), activation, *vectors(x, 5)[3:]) for dout, x in ROW_GRADS for activation in BEHIND
    ],
    "layers.batchnorm.gradient_sums_relu": [
        (normals(*x.shape, dtype=x.dtype, seed=3), x, *vectors(x, 3)) for x in ROWS
    ],
    "layers.batchnorm.input_gradient_relu": [
        (normals(*x.shape, dtype=x.dtype, seed=3), x, *vectors(x, 5)) for x in ROWS
    ],
    "layers.batchnorm.gradient_sums": [
        *((normals(*x.shape, dtype=x.dtype, seed=3), x, *vectors(x, 1)) for x in ROWS),
        (normals(9, 3), normals(9, 3, dtype="float64", seed=1), normals(3, dtype="float64")),
    ],
    "layers.batchnorm.input_gradient": [(normals(*x.shape, dtype=x.dtype, seed=3), x, *vectors(x, 4)) for x in ROWS],
    "layers.normalization.layernorm": [(x, *vectors(x, 2), 1e-5) for x in EXAMPLES],
    "layers.normalization.layernorm_grad": [normalized(x, (*x.shape[:-1], 1)) for x in EXAMPLES],
    "layers.normalization.rmsnorm": [(x, *vectors(x, 1), 1e-5) for x in EXAMPLES],
    "layers.normalization.rmsnorm_grad": [normalized(x, (*x.shape[:-1], 1)) for x in EXAMPLES],
    "layers.normalization.groupnorm": [
        (x, *(normals(*x.shape[2:], dtype=x.dtype, seed=seed) for seed in range(2)), 1e-5) for x in GROUPS
    ],
    "layers.normalization.groupnorm_grad": [normalized(x, (len(x), 1, x.shape[2], 1)) for x in GROUPS],
    "layers.normalization.param_grads": [
        *((normals(*x.shape, dtype=x.dtype, seed=3), x, has_beta) for x in ROWS for has_beta in (True, False)),
        (normals(0, 3), normals(0, 3), True),
        (normals(9, 3), normals(9, 3, dtype="float64", seed=1), True),
    ],
    "products.matmul": [
        (normals(*a, dtype=dtype), normals(*b, dtype=dtype, seed=1), out)
        for dtype in ("float64", "float32")
        for a, b in (
            *(((5, 4), (4, 3)), ((5, 4), (4, 40)), ((3, 5, 4), (3, 4, 2)), ((1, 5, 4), (3, 4, 2))),
            *(((0, 4), (4, 3)), ((5, 0), (0, 3)), ((5, 0), (0, 40))),
        )
        for out in (None, np.ones((*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1]), dtype))
    ],
    "products.matmul_bias": [
        (normals(*a, dtype=dtype), normals(*b, dtype=dtype, seed=1), normals(b[-1], dtype=dtype, seed=2))
        for dtype in ("float64", "float32")
        for a, b in (((5, 4), (4, 3)), ((0, 4), (4, 3)), ((5, 0), (0, 3)), ((70, 100), (100, 33)))
    ],
    "products.gemm": [
        (
            normals(m, k, dtype=dtype),
            order(normals(k, n, dtype=dtype, seed=1)),
            normals(m, n, dtype=dtype, seed=2),
            *scales,
        )
        for dtype in DTYPES
        for m, k, n in ((5, 4, 3), (5, 4, 40), (1, 1, 1), (0, 4, 3), (5, 0, 3), (70, 100, 33))
        for order in (np.asarray, np.asfortranarray)
        for scales in ((2.0315, -4.775), (1.0, 3.4445), (0.5, 0.0))
    ],
    "layers.affine.param_grads": [
        (normals(n, d, dtype=dtype), douts, *lent)
        for dtype in ("float64", "float32")
        for n, d, m in ((5, 4, 3), (1, 1, 1), (0, 4, 3), (5, 0, 3), (70, 100, 33), (2000, 5, 40))
        for douts in (normals(n, m, dtype=dtype, seed=1), normals(m, n, dtype=dtype, seed=1).T)
        for dw, db in ((np.ones((d, m), dtype), np.ones(m, dtype)),)
        for lent in ((), (dw, None), (None, db), (dw, db))
    ],
    "layers.fused.activated": [
        *ACTIVATED,
        (normals(4, 5).T, normals(3, 4).T, normals(6)[::2], "relu"),
        (20 * normals(9, 4), normals(4, 8), 40 * normals(8), "gelu_tanh"),
    ],
    "layers.fused.activated_grad": [
        *(
            (output(args), KeptBy("layers.fused.activated", args), args[-1], *lent)
            for args in ACTIVATED
            for lent in ((), (np.ones(args[1].shape[1], args[1].dtype),), (np.ones(args[1].shape[1], "float16"),))
        ),
        *((output(args).T.copy().T, output(args), args[-1]) for args in ACTIVATED),
        (normals(70_001, 3), normals(70_001, 3, seed=1), "relu"),
        (np.array([[np.inf, np.nan, 1.0, 2.0]]), np.array([[0.0, -1.0, np.nan, np.inf]]), "relu"),
    ],
    "layers.fused.activated_input_grad": [
        *(
            (output(args)[:, :1] * w[0], w, KeptBy("layers.fused.activated", args), args[-1], *lent)
            for args in ACTIVATED
            for lent in ((), (np.ones(args[1].shape[1], args[1].dtype),))
            for k in (1, 6)
            for w in (normals(args[1].shape[1], k, dtype=args[1].dtype, seed=5),)
        ),
        (normals(4, 0), normals(5, 0), normals(4, 5), "relu"),
    ],
    "layers.rows.add_rows": [
        (x, *out)
        for x in [*ROWS, normals(3, 60_000).T, normals(0, 3), normals(3, 0)]
        for out in ((), (np.ones(x.shape[1], x.dtype),))
    ],
    "layers.convolution.arranged": [
        *((w, w.dtype) for _, w, *_ in EACH_CONVOLUTION),
        *(
            (layout(normals(*shape, dtype=kept)), np.dtype(dtype))
            for kept in DTYPES
            for dtype in DTYPES
            for layout in (np.asarray, channels_last)
            for shape in ((3, 600, 3, 3), (2, 5, 70, 70), (4, 7, 1, 1), (2, 0, 3, 3))
        ),
    ],
    "layers.convolution.correlate": CORRELATIONS,
    "layers.convolution.correlate_activated": [
        *((*args, "relu") for args in CORRELATIONS),
        (*EACH_CONVOLUTION[-1][:2], normals(12)[::2], *EACH_CONVOLUTION[-1][4:], "relu"),
        *((*args, f"gelu_{form}") for form in ("none", "tanh") for args in CORRELATIONS[::5]),
    ],
    "layers.convolution.correlate_filter_grad": [
        (dout, x, window, groups, out)
        for x, w, _, dout, window, groups in EACH_CONVOLUTION
        for out in (None, np.ones(w.shape, w.dtype))
    ],
    "layers.convolution.correlate_input_grad": [
        *((dout, w, (9, 8), window, groups) for _, w, _, dout, window, groups in EACH_CONVOLUTION),
        *(
            (
                layout(normals(5, 2, *window.counts((9, 8)), dtype=dtype)),
                few_filters(window, dtype),
                (9, 8),
                window,
                groups,
            )
            for dtype, layout in FLOATS
            for window, groups in CONVOLUTIONS
        ),
    ],
    "layers.pooling.window_max": [
        *((x, window) for x in [*IMAGES, WITH_NAN] for window in POOLS),
        *((x, window) for x in WIDE_IMAGES for window in WIDE_POOLS),
        *((x, POOLS[0]) for x in UNEVEN_IMAGES),
    ],
    "layers.pooling.window_max_grad": [
        *(
            (layout(normals(3, 5, *window.counts((9, 8)), dtype=dtype)), window_max(x, window)[1], (9, 8), window)
            for dtype, layout in FLOATS
            for x in (IMAGES[0], IMAGES[4])  # without ties and with them
            for window in POOLS
        ),
        *(
            (normals(2, 8, *window.counts((20, 19)), dtype=dtype), layout(window_max(x, window)[1]), (20, 19), window)
            for (dtype, layout), x in zip(FLOATS, WIDE_IMAGES, strict=True)
            for window in WIDE_POOLS
        ),
        *(
            (
                channels_last(window_max(x, POOLS[0])[0]),
                channels_last(window_max(x, POOLS[0])[1]),
                x.shape[2:],
                POOLS[0],
            )
            for x in UNEVEN_IMAGES
        ),
    ],
}

NORMS = ("layernorm", "groupnorm", "rmsnorm")
# Of each number and of 1: both sides are a few roundings from the truth.
ELEMENTWISE = {"special.erf": 8, "layers.activation.gelu_and_slope": 8} | {
    f"optim.in_place.{rule}": 8 for rule in RULES if RULES[rule].elementwise
}
# Where tanh is nearly -1, the definition's slope has its rounding up to 130 times; CuPy's kernel is nearer the truth.
ELEMENTWISE["layers.activation.gelu_and_slope on cupy"] = 64
# Of a result's largest number: the convolutions add up to some hundred products, in another order. What is in neither
# table is equal to the bit.
ROUNDINGS = {
    "layers.fused.activated": 16,
    "layers.fused.activated_grad": 64,  # sums of 2,000 and more
    "layers.fused.activated_input_grad": 64,  # the same, behind a product
    "layers.affine.param_grads": 16,
    "layers.batchnorm.moments": 16,
    "layers.batchnorm.batch_statistics": 16,
    "layers.batchnorm.scales": 4,
    "layers.batchnorm.normalize": 0,
    "layers.batchnorm.gradient_sums": 16,
    "layers.batchnorm.gradient_sums_relu": 32,  # of 70,000 terms of both signs, a fiftieth of their sizes' sum
    "layers.batchnorm.param_grads": 16,
    **{f"layers.batchnorm.param_grads of {activation}": 32 for activation in ("relu", "gelu_none", "gelu_tanh")},
    "layers.batchnorm.input_gradient": 0,
    "layers.convolution.correlate": 16,
    "layers.convolution.correlate_activated": 16,
    "layers.convolution.correlate_filter_grad": 16,
    "layers.convolution.correlate_input_grad": 16,
    **{f"layers.normalization.{norm}{way}": 16 for norm in NORMS for way in ("", "_grad")},
    "layers.normalization.param_grads": 16,
    "layers.pooling.window_max_grad": 2,
    "layers.rows.add_rows": 16,
    "losses.cross_entropy": 16,
    "losses.soft_cross_entropy": 16,
    "random.normals": 8,  # of their largest: the angle is rounded, and then its sine
    "products.matmul": 4,
    "products.matmul_bias": 4,
    "products.gemm": 4,
    "optim.norms.sum_of_squares": 16,
    "optim.norms.clip_factor": 16,
    "optim.in_place.muon": 32,  # of the products of Newton-Schulz, each of which lifts those before; up to 3.4445**5
    # A device rounds a product and a sum once.
    "layers.batchnorm.normalize on cupy": 2,
    "layers.batchnorm.input_grad on cupy": 2,
    "layers.batchnorm.normalize_relu on cupy": 2,
    "layers.batchnorm.normalize_gelu on cupy": 4,
    "layers.batchnorm.input_grad of gelu_none on cupy": 4,
    "layers.batchnorm.input_grad of gelu_tanh on cupy": 16,  # the definition's slope, as above
}
FUSED = ("normalize", "gradient_sums", "input_gradient")
# What NumPy has no kernel for.
OF_DEVICES = {
    "recording.record",
    "recording.overwrite",
    "recording.obstacle",
    "random.philox",
    "random.integers",
    "random.normals",
    "layers.elementwise.applied",
    "layers.branches.joined",
    "products.matmul_bias",
    "products.gemm",
    "optim.in_place.muon",
    "layers.fused.activated",
    "layers.fused.activated_grad",
    "layers.fused.activated_input_grad",
    "layers.affine.param_grads",
    "layers.convolution.arranged",
    "layers.convolution.correlate_activated",
    "models.model.nan_unless_finite",
    "models.model.unscale",
    "training.loss_scale.adjust",
    "training.solver.note_finite",
    "layers.standardize.standardized",
    *(f"data.images.{name}" for name in ("pick", "taken", "pick_standardized")),
    "optim.norms.sum_of_squares",
    "optim.norms.clip_factor",
    "losses.cross_entropy",
    "losses.soft_cross_entropy",
    *(set() if loops.COMPILED else {f"layers.batchnorm.{name}_relu" for name in FUSED}),
    *(f"layers.batchnorm.{name}" for name in ("batch_statistics", "scales", "normalize_gelu")),
    *("layers.batchnorm.param_grads", "layers.batchnorm.input_grad"),
    *(f"layers.normalization.{norm}{way}" for norm in NORMS for way in ("", "_grad")),
    "layers.normalization.param_grads",
}


def registered():
    """The table with the kernels of every library that is installed here, whether or not it finds a device."""
    for name in backends.BACKENDS:
        with contextlib.suppress(ModuleNotFoundError):
            kernels.load(name)
    return sorted(kernels.TABLE.items())


def definition(function):
    """The function itself, which for the time of the call finds no kernels."""
    name, _, attribute = function.rpartition(".")
    module = importlib.import_module(f"xpnn.{name}")
    plain = getattr(module, attribute)

    @functools.wraps(plain)
    def call(*args):
        with unittest.mock.patch.object(module, "fast_path", create=True, return_value=None):
            return plain(*args)

    return call


def python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_kernel_has_the_signature_of_its_definition():
    if not registered():
        pytest.skip("no library with kernels is installed")
    for (function, library), fast in registered():
        received, expected = (
            [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]
            for f in (fast, definition(function))
        )
        assert received == expected, f"{function} on {library}"


def test_every_kernel_has_calls_to_compare():
    assert {function for (function, _), _ in registered()} <= CALLS.keys()


def test_every_function_that_is_compared_has_a_kernel():
    kernels.load("numpy")
    assert CALLS.keys() - OF_DEVICES == {function for function, library in kernels.TABLE if library == "numpy"}


@pytest.mark.parametrize("function", CALLS)
def test_every_kernel_gives_the_results_of_its_definition(function):
    kernels_here = [(library, fast) for (name, library), fast in registered() if name == function]
    usable = [(library, fast) for library, fast in kernels_here if backends.get(library).is_available()]
    if not usable:
        pytest.skip(f"no library with a kernel for {function} is available here")
    for library, fast in usable:
        for args in CALLS[function]:
            assert_same_results(function, library, fast, args)


def copied(args, backend=None):
    """The arguments with arrays of their own, on a backend: some functions write into them."""
    asarray = np.array if backend is None else functools.partial(backend.asarray, copy=True)

    def of(arg):
        if isinstance(arg, KeptBy):
            return arg.kept(backend)
        if isinstance(arg, tuple):
            return type(arg)._make(map(of, arg)) if hasattr(arg, "_make") else tuple(map(of, arg))
        if isinstance(arg, dict):
            return {key: asarray(value) if isinstance(value, np.ndarray) else value for key, value in arg.items()}
        return asarray(arg) if isinstance(arg, np.ndarray) else arg

    return [of(arg) for arg in args]


def allowed(table, function, library, args):
    """The roundings of a call by a table: of the activation that it names, if any, and the library, or in general."""
    names = [*(f"{function} of {arg}" for arg in args if isinstance(arg, str)), function]
    return next((table[key] for name in names for key in (f"{name} on {library}", name) if key in table), 0)


def assert_same_results(function, library, fast, args):
    backend = backends.get(library)
    expected = definition(function)(*copied(args))
    received = fast(*copied(args, backend))
    if callable(expected):
        expected, received = expected(), received()
    if not isinstance(expected, tuple):
        expected, received = (expected,), (received,)
    assert [result is None for result in received] == [truth is None for truth in expected]
    for truth, result in zip(expected, received, strict=True):
        if truth is None:
            continue
        result = getattr(result, "numbers", result)  # of what is kept with more beside it
        assert backends.library_of(result) == library
        result = backends.to_numpy(result)
        assert result.dtype == truth.dtype
        assert result.shape == truth.shape
        rtol = atol = 0.0
        if truth.dtype.kind == "f":
            eps = np.finfo(truth.dtype).eps
            rtol = allowed(ELEMENTWISE, function, library, args) * eps
            roundings = allowed(ROUNDINGS, function, library, args)
            atol = rtol + roundings * eps * np.max(np.abs(truth), initial=0.0, where=np.isfinite(truth))
        np.testing.assert_allclose(result, truth, rtol=rtol, atol=atol, err_msg=f"{function} on {library}")


def numpys_kernels():
    """The modules of NumPy's kernels."""
    kernels.load("numpy")
    return [module for name, module in list(sys.modules.items()) if name.startswith("xpnn.kernels.numpy.")]


@pytest.fixture
def small_parts(monkeypatch):
    """NumPy's kernels in blocks of few numbers and of one image, shared out among three threads."""
    sizes = {"BLOCK": 64, "WIDTH": 16, "WORTH_A_THREAD": 8, "STRIPS": 1, "SUMS": 1, "IMAGES": 1, "TILES": 1}
    sizes |= {"LEAST_PRODUCTS": 0}
    for module in numpys_kernels():
        for name in sizes.keys() & vars(module).keys():
            monkeypatch.setattr(module, name, sizes[name])
    monkeypatch.setattr(threads, "_thread_count", lambda: 3)
    with threads.steady():
        threads.share(lambda part: None, 3)
        yield


@pytest.mark.parametrize("loops", ["blockwise", "compiled"])
def test_kernels_give_the_same_results_by_either_loops(loops, monkeypatch):
    if loops == "compiled":
        pytest.importorskip("numba")
    loops = importlib.import_module(f"xpnn.kernels.numpy.{loops}")
    using = [module for module in numpys_kernels() if hasattr(module, "loops")]
    for module in using:
        monkeypatch.setattr(module, "loops", loops)
    monkeypatch.setattr(winograd, "LEAST_PRODUCTS", 0)
    for (function, library), fast in registered():
        if library == "numpy":
            for args in CALLS[function]:
                assert_same_results(function, library, fast, args)


def test_numpys_kernels_in_small_parts_give_the_same_results(small_parts, monkeypatch):
    shared = []
    monkeypatch.setattr(threads, "_pool", lambda pool=threads._pool: shared.append(1) or pool())
    for (function, library), fast in registered():
        if library == "numpy" and not function.startswith("optim."):  # a step is too short to be shared out
            shared.clear()
            for args in CALLS[function]:
                assert_same_results(function, library, fast, args)
            assert shared, f"{function} has shared out nothing"


@pytest.mark.parametrize("n", [7, 20])
def test_images_of_few_channels_are_convolved_by_matrices_that_blas_does_not_pack(n, monkeypatch):
    x, w, window = normals(n, 3, 14, 38, dtype="float32"), normals(32, 3, 7, 7, dtype="float32"), Window((7, 7))
    dout = normals(n, 32, 8, 32, dtype="float32", seed=1)
    multiplications, matmul = [], np.matmul

    def counted(a, b, out=None):
        multiplications.append(a.shape[-2] * a.shape[-1] * b.shape[-1])
        return matmul(a, b, out=out)

    for name, args in {"correlate": (x, w, None, window, 1), "correlate_filter_grad": (dout, x, window, 1)}.items():
        multiplications.clear()
        with monkeypatch.context() as patch:
            patch.setattr(np, "matmul", counted)
            kernels.TABLE[f"layers.convolution.{name}", "numpy"](*args)
        assert len(multiplications) > n // 7
        assert 10**5 < max(multiplications) <= 10**6
        assert_same_results(
            f"layers.convolution.{name}", "numpy", kernels.TABLE[f"layers.convolution.{name}", "numpy"], args
        )


def test_a_function_without_a_kernel_has_no_fast_path():
    assert kernels.fast_path("random.philox", "numpy") is None
    assert kernels.fast_path("no.such.function", "numpy") is None


def test_a_library_without_kernels_loads_nothing():
    before = dict(kernels.TABLE)
    kernels.load("array-api-strict")
    assert before == kernels.TABLE


REGISTER = """
from xpnn import kernels
@kernels.kernel("random.philox", "numpy")
def fast(seed, stream, counter, n): ...
print(kernels.fast_path("random.philox", "numpy") is fast)
"""


def test_a_registered_kernel_is_found():
    assert python(REGISTER, XPNN_FAST="1") == "True"


def test_xpnn_fast_0_switches_every_kernel_off():
    assert python(REGISTER, XPNN_FAST="0") == "False"


@pytest.mark.parametrize(
    ("function", "draw", "more"),
    [
        ("philox", lambda rng: rng.uniform(6, dtype="float64", backend="numpy"), ()),
        ("integers", lambda rng: rng.integers(0, 100, 6, backend="numpy"), (0, 100)),
        ("normals", lambda rng: rng.normal(6, std=2, backend="numpy"), (0.0, 2.0, "float32")),
    ],
)
def test_a_generator_draws_through_the_kernel(monkeypatch, function, draw, more):
    calls = []

    def fast(*args):
        calls.append(args)
        return getattr(random, function)(*args)

    monkeypatch.setattr(
        random, "fast_path", lambda name, library: {(f"random.{function}", "numpy"): fast}[name, library]
    )
    received = draw(random.Generator(1, 2, 3))
    assert calls == [(1, 2, 3, 6, *more)]
    monkeypatch.undo()
    np.testing.assert_array_equal(received, draw(random.Generator(1, 2, 3)))


HALVES = {
    "batchnorm": (lambda x: layers.spatial_batchnorm_forward(x, x[0, :, 0, 0], x[1, :, 0, 0], {"mode": "train"}), 0.02),
    "conv": (lambda x: layers.conv_forward(x, x[:, :, :3, :3], None, {"pad": 1}), 0.02),
    "gelu": (layers.gelu_forward, 0.002),
    "max_pool": (lambda x: layers.max_pool_forward(x, {"pool_height": 2, "pool_width": 2, "stride": 2}), 0.0),
    "relu": (layers.relu_forward, 0.0),
}


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("channels", [4, 32])
def test_half_precision_gives_what_single_does(name, channels):
    forward, tolerance = HALVES[name]
    backward = getattr(layers, {"batchnorm": "spatial_batchnorm"}.get(name, name) + "_backward")
    x = normals(channels, channels, 8, 8, dtype="float16")
    results = []
    for dtype in ("float16", "float32"):
        out, cache = forward(x.astype(dtype))
        grads = backward(normals(*out.shape, dtype="float16", seed=1).astype(dtype), cache)
        results.append([out, *(grads if isinstance(grads, tuple) else (grads,))])
    for half, single in zip(*results, strict=True):
        if half is not None:
            assert half.dtype == np.float16
            # Sums of some hundred products, each rounded to half of 2**-10.
            np.testing.assert_allclose(half, single, rtol=0, atol=tolerance * np.abs(single).max())


@pytest.mark.parametrize("shapes", [((50, 70), (70, 30)), ((3, 5, 7), (3, 7, 2)), ((2, 5, 7), (7, 2))])
def test_products_of_half_precision_are_rounded_once(shapes):
    a, b = (normals(*shape, dtype="float16", seed=seed) for seed, shape in enumerate(shapes))
    expected = np.matmul(a.astype("float64"), b.astype("float64"))
    out = np.empty(expected.shape, "float16")
    for result in (product(a, b), product(a, b, out)):
        assert result.dtype == np.float16
        np.testing.assert_allclose(result, expected, rtol=1.01 * 2.0**-11, atol=2.0**-18)  # what float32 adds up
    assert result is out


@pytest.mark.parametrize("loops", ["blockwise", "compiled"])
def test_a_variance_far_from_zero_is_exact_to_rounding(loops, monkeypatch):
    if loops == "compiled":
        pytest.importorskip("numba")
    monkeypatch.setattr(batchnorm, "loops", importlib.import_module(f"xpnn.kernels.numpy.{loops}"))
    x = normals(2000, 700) + np.float32(1e4)
    mean, var = batchnorm.moments(x)
    exact = x.astype("float64")
    np.testing.assert_allclose(mean, exact.mean(axis=0), rtol=np.finfo("float32").eps)
    np.testing.assert_allclose(var, exact.var(axis=0), rtol=8 * np.finfo("float32").eps)  # sums of 2,000 squares


@pytest.mark.parametrize("dtypes", [("float32", "float16"), ("float16", "float32"), (">f4", ">f4"), (">f8", "float32")])
def test_arrays_that_numba_does_not_know_are_taken_all_the_same(dtypes):
    x, w = normals(4, 32, 9, 8).astype(dtypes[0]), normals(32, 32, 3, 3, seed=1).astype(dtypes[1])
    gamma, bias = w[:, 0, 0, 0], w[:, 0, 0, 1]
    calls = {
        "conv": lambda: layers.conv_forward(x, w, bias, {"pad": 1})[0],
        "batchnorm": lambda: layers.spatial_batchnorm_forward(x, gamma, bias, {"mode": "train"})[0],
        "max_pool": lambda: layers.max_pool_forward(x, {"pool_height": 2, "pool_width": 2, "stride": 2})[0],
        "relu": lambda: layers.relu_backward(x, x),
        "gelu": lambda: layers.gelu_forward(x)[0],
    }
    for name, call in calls.items():
        received = call()
        with unittest.mock.patch.dict(os.environ, XPNN_FAST="0"):
            kernels.fast_path.cache_clear()
            expected = call()
        kernels.fast_path.cache_clear()
        assert received.dtype.newbyteorder("=") == expected.dtype.newbyteorder("="), name
        eps = np.finfo(x.dtype if name == "batchnorm" else received.dtype).eps  # statistics are in x's dtype
        np.testing.assert_allclose(received, expected, rtol=0, atol=64 * eps * np.abs(expected).max(), err_msg=name)


@pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if rule.elementwise])
def test_update_rules_take_half_precision(rule):
    w, dw = normals(100, dtype="float16"), normals(100, dtype="float16", seed=1)
    config = {**RULES[rule].defaults, "epsilon": 1e-3, **{key: np.ones(100, "float16") for key in RULES[rule].state}}
    assert_same_results(
        f"optim.in_place.{rule}", "numpy", kernels.fast_path(f"optim.in_place.{rule}", "numpy"), (w, dw, config)
    )


def test_loops_are_compiled_where_numba_can_write_nothing(monkeypatch):
    numba = pytest.importorskip("numba")
    from xpnn.kernels.numpy import compiled

    njit = numba.njit

    def without_a_folder(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function 'double': no locator available")
        return njit(**options)

    monkeypatch.setattr(numba, "njit", without_a_folder)
    assert compiled.compiled(lambda x: 2 * x)(3) == 6
