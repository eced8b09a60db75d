"""Multiplication by a fixed number."""

import numpy as np
import pytest

from oracles import normals
from xpnn.layers import Affine, Scale, Sequential, scale_forward
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
    with pytest.raises(ValueError, match="^scale: expected a finite factor; received"):
        scale_forward(np.ones(2), factor)


def test_a_numpy_scalar_as_the_factor_does_not_promote_float32(kind):
    out, _ = scale_forward(kind([3.0], "float32"), np.float64(0.5))
    kind.assert_close(kind.check(out, "float32"), [1.5])


def test_integers_are_refused(kind):
    with pytest.raises(TypeError, match="^scale: expected x of a floating-point dtype; received int64"):
        scale_forward(kind([1, 2], "int64"), 0.5)
