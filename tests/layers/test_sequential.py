"""A batch norm with a ReLU behind it, which a `Sequential` has computed in one where there is a kernel for both."""

import functools

import numpy as np
import pytest

from containers import OneByOne
from xpnn import Model
from xpnn.layers import Affine, BatchNorm, ReLU, Sequential


class OwnForward(Sequential):
    def forward(self, x, train=False):
        caches = []
        for layer in self.layers.values():
            x, cache = layer.forward(x, train)
            caches.append(cache)
        return x, caches


class WrappedBackward(Sequential):
    backward = functools.wraps(Sequential.backward)(lambda *args, **options: OneByOne.backward(*args, **options))


def model(kind, net=Sequential):
    return Model(net(Affine(5), BatchNorm(), ReLU(), ReLU(), Affine(3)), (4,), rng=0, backend=kind.backend)


def batch(kind):
    rng = np.random.default_rng(0)
    return kind(rng.standard_normal((7, 4)).astype("float32")), kind(rng.integers(0, 3, 7))


def assert_same_loss(kind, received, expected):
    (loss, grads), (true_loss, true_grads) = received, expected
    np.testing.assert_allclose(kind.to_numpy(loss), kind.to_numpy(true_loss), rtol=1e-6)
    for name, grad in true_grads.items():
        np.testing.assert_allclose(kind.to_numpy(grads[name]), kind.to_numpy(grad), atol=1e-6, err_msg=name)


@pytest.mark.parametrize("net", [OwnForward, OneByOne, WrappedBackward])
def test_a_subclass_may_go_through_the_layers_itself(kind, net):
    assert_same_loss(kind, model(kind, net).loss(*batch(kind)), model(kind).loss(*batch(kind)))


@pytest.mark.parametrize("name", ["batchnorm1", "relu1"])
@pytest.mark.parametrize("method", ["forward", "backward", "infer"])
def test_a_method_set_on_a_layer_is_called(kind, name, method):
    net, calls = model(kind), []
    layer = net.net.layers[name]
    real = getattr(layer, method)
    setattr(layer, method, lambda *args, **options: calls.append(1) or real(*args, **options))
    assert_same_loss(kind, net.loss(*batch(kind)), model(kind).loss(*batch(kind)))
    net.loss(batch(kind)[0])
    assert calls


def test_a_backward_that_is_set_on_the_container_may_go_through_the_layers_itself(kind):
    net = model(kind)
    net.net.backward = OneByOne.backward.__get__(net.net)
    assert_same_loss(kind, net.loss(*batch(kind)), model(kind).loss(*batch(kind)))


def test_what_passed_does_not_depend_on_later_parameters(kind):
    gradients = []
    for later in (None, -5.0):
        net = model(kind)
        out, cache = net.net.forward(batch(kind)[0], train=True)
        if later is not None:
            net.params["batchnorm1.beta"][...] = later
        gradients.append(net.net.backward(out, cache)[1]["batchnorm1.gamma"])
    assert np.abs(kind.to_numpy(gradients[0])).max() > 0
    np.testing.assert_array_equal(*map(kind.to_numpy, gradients))
