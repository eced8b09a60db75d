"""The sum of several batches' gradients, and their mean."""

import numpy as np
import pytest

from xpnn.parameters import Parameters
from xpnn.training.accumulation import GradientSum

SHAPES = {"W": (2, 3), "b": (3,)}


def grads_of(kind, value, shared):
    if not shared:
        return {name: kind(np.full(shape, value), "float32") for name, shape in SHAPES.items()}
    grads = Parameters(SHAPES, kind.backend)
    grads.update({name: np.full(shape, value, "float32") for name, shape in SHAPES.items()})
    return grads


@pytest.mark.parametrize("shared", [True, False])
def test_the_mean_is_over_the_batches_since_the_first(kind, shared):
    total = GradientSum(grads_of(kind, 0.0, shared))
    for value, is_first in ((100.0, True), (1.0, True), (2.0, False), (6.0, False)):
        total.add(grads_of(kind, value, shared), is_first)
    out = total.divided(3)
    for name, shape in SHAPES.items():
        kind.assert_close(kind.check(out[name], "float32", shape), np.full(shape, 3.0))


@pytest.mark.parametrize("shared", [True, False])
def test_a_batch_counts_by_its_weight(kind, shared):
    total = GradientSum(grads_of(kind, 0.0, shared))
    for value, weight in ((2.0, 1.0), (6.0, 0.5)):
        total.add(grads_of(kind, value, shared), is_first=value == 2.0, weight=weight)
    for name, shape in SHAPES.items():
        kind.assert_close(kind.check(total.sum[name], "float32", shape), np.full(shape, 5.0))
    kind.assert_close(total.divided(1.25)["W"], np.full((2, 3), 4.0))


@pytest.mark.parametrize("shared", [True, False])
def test_gradients_are_copied(kind, shared):
    total = GradientSum(grads_of(kind, 0.0, shared))
    given = Parameters(SHAPES, kind.backend)
    given.update({name: np.ones(shape, "float32") for name, shape in SHAPES.items()})
    total.add(given, is_first=True)
    given.flat[...] = 7.0
    kind.assert_close(total.divided(1)["W"], np.ones((2, 3)))


def test_a_buffer_takes_gradients_made_one_by_one(kind):
    total = GradientSum(Parameters(SHAPES, kind.backend))
    total.add(grads_of(kind, 1.0, shared=False), is_first=True)
    total.add(grads_of(kind, 2.0, shared=False), is_first=False)
    kind.assert_close(total.divided(2).flat, np.full(9, 1.5))


@pytest.mark.parametrize("shared", [True, False])
def test_a_sum_is_loaded_cleared_and_moved(kind, shared):
    from xpnn import backend

    total = GradientSum(grads_of(kind, 0.0, shared))
    total.load(grads_of(kind, 4.0, shared))
    total.move(backend.get("numpy"))
    assert total.sum["b"].tolist() == [4.0, 4.0, 4.0]
    total.clear()
    assert not total.sum["b"].any()
