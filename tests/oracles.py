"""Straightforward float64 NumPy formulas that the tests compare with, and the course's published values."""

import json
from pathlib import Path

import numpy as np
from hypothesis import settings

COURSE = json.loads(Path(__file__).with_name("course_values.json").read_text(encoding="utf-8"))

# Published arrays have 8 decimals, so they are at most half a unit of the eighth away from the truth.
HALF_OF_THE_EIGHTH_DECIMAL = 5e-9

EPS = {"float64": 2.0**-52, "float32": 2.0**-23}

few_examples = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def course_array(spec):
    """The input that course_values.json describes by its end points and shape."""
    return np.linspace(spec["start"], spec["stop"], spec["num"]).reshape(spec["shape"])


def course_case(name):
    """The inputs and expected arrays of a published test, as NumPy arrays by name."""
    test = COURSE["tests"][name]
    inputs = {key: course_array(spec) for key, spec in test["inputs"].items()}
    return inputs, {key: np.array(value) for key, value in test["expected"].items()}


def course_tolerance(expected, dtype):
    """Absolute: the published rounding, and four roundings of the largest number in the computation's dtype."""
    return HALF_OF_THE_EIGHTH_DECIMAL + 4 * EPS[dtype] * np.max(np.abs(expected))


def normals(shape, seed=0, dtype="float64"):
    """Seeded N(0, 1), rounded to `dtype` but held in float64, so that an oracle starts from the same numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype).astype("float64")


def affine(x, w, b):
    out = np.zeros((len(x), len(b)))
    for n in range(len(x)):
        for m in range(len(b)):
            out[n, m] = sum(x[n].ravel() * w[:, m]) + b[m]
    return out


def affine_grads(dout, x, w):
    dx, dw, db = np.zeros_like(x), np.zeros_like(w), np.zeros(w.shape[1])
    for n in range(len(x)):
        for m in range(w.shape[1]):
            dx[n] += (dout[n, m] * w[:, m]).reshape(x[n].shape)
            dw[:, m] += dout[n, m] * x[n].ravel()
            db[m] += dout[n, m]
    return dx, dw, db


def relu(x):
    return np.where(x > 0, x, 0.0)


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


def conv_windows(x, w, stride, pad, dilation, groups):
    """For each number of the output: its index, and the index of the numbers of x, zeros around it, that it sees."""
    (sh, sw), (ph, pw), (dh, dw) = pair(stride), pair(pad), pair(dilation)
    f, c, kh, kw = w.shape
    height = 1 + (x.shape[2] + 2 * ph - dh * (kh - 1) - 1) // sh
    width = 1 + (x.shape[3] + 2 * pw - dw * (kw - 1) - 1) // sw
    for i in range(f):
        first = i // (f // groups) * c
        for y in range(height):
            for z in range(width):
                rows = slice(sh * y, sh * y + dh * (kh - 1) + 1, dh)
                columns = slice(sw * z, sw * z + dw * (kw - 1) + 1, dw)
                yield (i, y, z), (slice(None), slice(first, first + c), rows, columns), (height, width)


def conv(x, w, b, stride, pad, dilation, groups):
    (ph, pw), out = pair(pad), None
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    for (i, y, z), seen, size in conv_windows(x, w, stride, pad, dilation, groups):
        out = np.zeros((len(x), len(w), *size)) if out is None else out
        out[:, i, y, z] = (padded[seen] * w[i]).sum(axis=(1, 2, 3)) + b[i]
    return out


def conv_grads(dout, x, w, stride, pad, dilation, groups):
    ph, pw = pair(pad)
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    dpadded, dw = np.zeros_like(padded), np.zeros_like(w)
    for (i, y, z), seen, _ in conv_windows(x, w, stride, pad, dilation, groups):
        d = dout[:, i, y, z][:, None, None, None]
        dpadded[seen] += d * w[i]
        dw[i] += (d * padded[seen]).sum(axis=0)
    return dpadded[:, :, ph : ph + x.shape[2], pw : pw + x.shape[3]], dw, dout.sum(axis=(0, 2, 3))


def batchnorm(x, gamma, beta, mean, var, eps=1e-5):
    return gamma * (x - mean) / np.sqrt(var + eps) + beta


def batchnorm_grads(dout, x, gamma, eps=1e-5):
    """By the chain rule through the mean and the variance, as in Ioffe and Szegedy (2015), section 3."""
    n, mean, var = len(x), x.mean(0), x.var(0)
    dx_hat = dout * gamma
    dvar = (dx_hat * (x - mean)).sum(0) * -0.5 * (var + eps) ** -1.5
    dmean = -dx_hat.sum(0) / np.sqrt(var + eps) + dvar * -2.0 * (x - mean).mean(0)
    dx = dx_hat / np.sqrt(var + eps) + dvar * 2.0 * (x - mean) / n + dmean / n
    return dx, (dout * (x - mean) / np.sqrt(var + eps)).sum(0), dout.sum(0)


def softmax_loss(x, y):
    loss, dx = 0.0, np.zeros_like(x)
    for i in range(len(x)):
        probabilities = np.exp(x[i] - x[i].max())
        probabilities /= probabilities.sum()
        loss -= np.log(probabilities[y[i]]) / len(x)
        dx[i] = probabilities / len(x)
        dx[i, y[i]] -= 1.0 / len(x)
    return loss, dx


def svm_loss(x, y):
    loss, dx = 0.0, np.zeros_like(x)
    for i in range(len(x)):
        for j in range(x.shape[1]):
            margin = x[i, j] - x[i, y[i]] + 1.0
            if j != y[i] and margin > 0:
                loss += margin / len(x)
                dx[i, j] += 1.0 / len(x)
                dx[i, y[i]] -= 1.0 / len(x)
    return loss, dx
