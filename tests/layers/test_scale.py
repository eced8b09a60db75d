"""Multiplication by a fixed number."""

import numpy as np
import pytest

from oracles import normals
from xpnn.gradient_check import eval_numerical_gradient_array, rel_error
from xpnn.layers import Affine, Scale, Sequential
from xpnn.models import Model


def test_out_is_factor_times_x_and_dx_factor_times_dout(kind, dtype):
    layer = Scale(0.25)
    out, cache = layer.forward(kind([[4.0, -8.0]], dtype))
    kind.check(out, dtype, (1, 2))
    kind.assert_close(out, [[1.0, -2.0]])
    dx, grads = layer.backward(kind([[1.0, 2.0]], dtype), cache)
    kind.check(dx, dtype, (1, 2))
    kind.assert_close(dx, [[0.25, 0.5]])
    assert grads == {}


def test_the_gradient_agrees_with_the_numerical_one(kind):
    layer, x, dout = Scale(-0.7), kind.writable(normals((3, 4))), kind(normals((3, 4), 1))
    dx, _ = layer.backward(dout, layer.forward(x)[1])
    assert rel_error(dx, eval_numerical_gradient_array(lambda x: layer.forward(x)[0], x, dout)) < 1e-7


def test_the_factor_is_neither_parameter_nor_state():
    model = Model(Sequential(Affine(3), Scale(1 / 256)), (2,))
    assert model.output_shape == (3,)
    assert [name for name in model.state_dict() if "scale" in name] == []


def test_a_model_with_scaled_scores_has_scaled_scores(kind):
    net = Sequential(Affine(3), Scale(1 / 256))
    model = Model(net, (2,), dtype="float64", backend=kind.backend, rng=0)
    plain = Model(Sequential(Affine(3)), (2,), dtype="float64", backend=kind.backend, rng=0)
    x = kind(normals((5, 2)))
    kind.assert_close(model.loss(x), kind.to_numpy(plain.loss(x)) / 256)  # a power of two: exactly


@pytest.mark.parametrize("factor", [np.inf, np.nan])
def test_a_factor_that_is_not_finite_is_refused(factor):
    with pytest.raises(ValueError, match="^logits: expected a finite factor; received"):
        Scale(factor, name="logits")
