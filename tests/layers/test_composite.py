"""The course's combinations are what their parts give one after the other."""

import numpy as np
import pytest

from oracles import normals
from xpnn import layers, losses


@pytest.fixture
def arrays(kind, dtype):
    shapes = {"x": (5, 2, 3), "w": (6, 4), "b": (4,), "gamma": (4,), "beta": (4,), "dout": (5, 4)}
    return {name: kind(normals(shape, seed), dtype) for seed, (name, shape) in enumerate(shapes.items())}


def assert_same(kind, received, expected):
    for a, b in zip(received, expected, strict=True):
        kind.assert_close(a, kind.to_numpy(b))


def test_affine_relu(kind, arrays):
    x, w, b, dout = (arrays[name] for name in ("x", "w", "b", "dout"))
    out, cache = layers.affine_relu_forward(x, w, b)
    a, affine_cache = layers.affine_forward(x, w, b)
    expected, relu_cache = layers.relu_forward(a)
    assert_same(kind, [out], [expected])
    parts = layers.affine_backward(layers.relu_backward(dout, relu_cache), affine_cache)
    assert_same(kind, layers.affine_relu_backward(dout, cache), parts)


@pytest.mark.parametrize("mode", ["train", "test"])
def test_affine_batchnorm_relu(kind, arrays, mode):
    x, w, b, gamma, beta, dout = (arrays[name] for name in ("x", "w", "b", "gamma", "beta", "dout"))
    bn_param, bn_param_of_parts = {"mode": mode}, {"mode": mode}
    out, cache = layers.affine_batchnorm_relu_forward(x, w, b, gamma, beta, bn_param)
    a, affine_cache = layers.affine_forward(x, w, b)
    normalized, bn_cache = layers.batchnorm_forward(a, gamma, beta, bn_param_of_parts)
    expected, relu_cache = layers.relu_forward(normalized)
    assert_same(kind, [out], [expected])
    for key in ("running_mean", "running_var"):
        assert_same(kind, [bn_param[key]], [bn_param_of_parts[key]])
    da, dgamma, dbeta = layers.batchnorm_backward(layers.relu_backward(dout, relu_cache), bn_cache)
    parts = (*layers.affine_backward(da, affine_cache), dgamma, dbeta)
    assert_same(kind, layers.affine_batchnorm_relu_backward(dout, cache), parts)


def test_the_loss_functions_are_among_the_layers_as_in_the_course():
    assert layers.softmax_loss is losses.softmax_loss
    assert layers.svm_loss is losses.svm_loss


def test_affine_relu_by_hand():
    out, cache = layers.affine_relu_forward(np.array([[1.0, 2.0]]), np.array([[1.0, -1.0], [1.0, -1.0]]), np.zeros(2))
    np.testing.assert_array_equal(out, [[3.0, 0.0]])
    dx, dw, db = layers.affine_relu_backward(np.array([[5.0, 7.0]]), cache)
    np.testing.assert_array_equal(dx, [[5.0, 5.0]])
    np.testing.assert_array_equal(dw, [[5.0, 0.0], [10.0, 0.0]])
    np.testing.assert_array_equal(db, [5.0, 0.0])
