"""The mean of several batches' gradients."""

import numpy as np
import pytest

from xpnn.parameters import Parameters
from xpnn.training.accumulation import GradientMean

SHAPES = {"W": (2, 3), "b": (3,)}


def grads_of(kind, value, shared):
    if not shared:
        return {name: kind(np.full(shape, value), "float32") for name, shape in SHAPES.items()}
    grads = Parameters(SHAPES, kind.backend)
    grads.update({name: np.full(shape, value, "float32") for name, shape in SHAPES.items()})
    return grads


@pytest.mark.parametrize("shared", [True, False])
def test_the_mean_is_over_the_batches_since_the_first(kind, shared):
    mean = GradientMean(grads_of(kind, 0.0, shared))
    for value, is_first in ((100.0, True), (1.0, True), (2.0, False), (6.0, False)):
        mean.add(grads_of(kind, value, shared), is_first)
    out = mean.mean(3)
    for name, shape in SHAPES.items():
        kind.assert_close(kind.check(out[name], "float32", shape), np.full(shape, 3.0))


@pytest.mark.parametrize("shared", [True, False])
def test_gradients_are_copied(kind, shared):
    mean = GradientMean(grads_of(kind, 0.0, shared))
    given = Parameters(SHAPES, kind.backend)
    given.update({name: np.ones(shape, "float32") for name, shape in SHAPES.items()})
    mean.add(given, is_first=True)
    given.flat[...] = 7.0
    kind.assert_close(mean.mean(1)["W"], np.ones((2, 3)))


def test_a_buffer_takes_gradients_made_one_by_one(kind):
    mean = GradientMean(Parameters(SHAPES, kind.backend))
    mean.add(grads_of(kind, 1.0, shared=False), is_first=True)
    mean.add(grads_of(kind, 2.0, shared=False), is_first=False)
    kind.assert_close(mean.mean(2).flat, np.full(9, 1.5))


@pytest.mark.parametrize("shared", [True, False])
def test_a_sum_is_loaded_cleared_and_moved(kind, shared):
    from xpnn import backend

    mean = GradientMean(grads_of(kind, 0.0, shared))
    mean.load(grads_of(kind, 4.0, shared))
    mean.move(backend.get("numpy"))
    assert mean.sum["b"].tolist() == [4.0, 4.0, 4.0]
    mean.clear()
    assert not mean.sum["b"].any()
