"""Mixed precision: layers compute in half, parameters, statistics, loss and update stay in single."""

import copy

import numpy as np
import pytest

from xpnn import Model
from xpnn.backend import dtype_name
from xpnn.errors import SettingError
from xpnn.layers import Affine, BatchNorm, Conv, Flatten, LayerNorm, Linear, MaxPool, ReLU, Sequential, Standardize
from xpnn.layers.precision import HALVES

EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


@pytest.fixture(params=HALVES)
def half(request, kind):
    """A half dtype of the kind's library."""
    try:
        kind.backend.dtype(request.param)
    except SettingError:
        pytest.skip(f"{kind.backend} has no {request.param}")
    return request.param


def convolutional(backend, dtype):
    layers = (Conv(8, 3, pad="same"), BatchNorm(), ReLU(), MaxPool(2), Flatten(), Affine(16), LayerNorm(), Linear(4))
    net = Sequential(Standardize(mean=128.0, std=64.0), *layers)
    return Model(net, (3, 6, 6), dtype=dtype, backend=backend, rng=0)


def batch(kind, n=32):
    rng = np.random.default_rng(0)
    return kind(rng.integers(0, 256, (n, 3, 6, 6)), "uint8"), kind(rng.integers(0, 4, n))


def test_gradients_are_those_of_single_precision_to_the_accuracy_of_the_type(kind, half):
    x, y = batch(kind)
    results = []
    for dtype in ("float32", half):
        loss, grads = convolutional(kind.backend, dtype).loss(x, y)
        results.append((loss, grads.flat))
    for single, mixed in zip(*results, strict=True):
        expected = kind.to_numpy(single)
        # Some ten roundings one after the other, and a maximum or a ReLU here and there that is another.
        kind.assert_close(mixed, expected, atol=16 * EPS[half] * np.abs(expected).max())
        kind.check(mixed, "float32")


def test_only_what_layers_compute_with_is_half(kind, half):
    x, y = batch(kind)
    model = convolutional(kind.backend, half)
    seen = {}
    for layer in model._layers:
        forward = layer.forward
        layer.forward = lambda x, train=False, f=forward, name=layer.path: seen.setdefault(name, f(x, train))
    loss, grads = model.loss(x, y)
    assert {dtype_name(out.dtype) for out, _ in seen.values()} == {half}
    assert dtype_name(model.params["conv1.W"].dtype) == dtype_name(grads["conv1.W"].dtype) == "float32"
    assert {dtype_name(array.dtype) for array in model.state.values()} == {"float32"}
    assert dtype_name(loss.dtype) == "float32"
    assert {dtype_name(model.loss(x).dtype)} == {"float32"}
    assert dtype_name(model._layers[1].params["W"].dtype) == half
    assert dtype_name(model._layers[2].params["gamma"].dtype) == "float32"


def test_a_step_smaller_than_half_precision_counts(kind, half):
    model = convolutional(kind.backend, half)
    before = kind.to_numpy(model.params["linear1.W"]).copy()
    model.params["linear1.W"] = model.params["linear1.W"] * (1.0 + 2.0**-20)
    assert np.all(kind.to_numpy(model.params["linear1.W"]) != before)


def test_layers_see_parameters_as_they_are_now(kind, half):
    model, (x, _) = convolutional(kind.backend, half), batch(kind)
    model.params["linear1.W"] = model.params["linear1.W"] * 0.0
    kind.assert_close(model.loss(x), np.zeros((32, 4)))


def test_statistics_may_be_sums_beyond_half_precision(kind, half):
    model = Model(Sequential(BatchNorm(momentum=0.0)), (2,), dtype=half, backend=kind.backend)
    x = kind(np.tile([[1024.0, -512.0], [1536.0, -256.0]], (500, 1)), "float32")
    model.loss(x, kind(np.zeros(1000), "int64"))
    kind.assert_close(model.state["batchnorm1.running_mean"], [1280.0, -384.0])
    kind.assert_close(model.state["batchnorm1.running_var"], [65536.0, 16384.0])


def test_a_scale_keeps_small_gradients(kind):
    if dtype_name(kind.backend.dtype("float32")) != "float32" or kind.backend.name == "array-api-strict":
        pytest.skip("array-api-strict has no float16")
    model = Model(Sequential(Linear(2, bias=False)), (1,), dtype="float16", backend=kind.backend, rng=0)
    x, y = kind([[1.0]], "float32"), kind([0])
    model.params["linear1.W"] = model.params["linear1.W"] * 0.0
    tiny = lambda scores, labels: (scores[0, 0] * 0.0, scores * 0.0 + 2.0**-26)  # noqa: E731
    model.loss_function = tiny
    kind.assert_close(model.loss(x, y)[1]["linear1.W"], [[0.0, 0.0]])  # 2**-26 is nothing to float16
    kind.assert_close(model.loss(x, y, scale=1024.0)[1]["linear1.W"], [[2.0**-26, 2.0**-26]])


def test_a_scale_changes_no_gradient_of_single_precision(kind):
    x, y = batch(kind)
    (_, plain), (_, scaled) = (
        convolutional(kind.backend, "float32").loss(x, y, scale=scale) for scale in (None, 1024.0)
    )
    kind.assert_close(scaled.flat, kind.to_numpy(plain.flat), rtol=1e-6, atol=1e-9)


def test_a_copy_and_a_move_go_on_alike(kind, half):
    model, (x, y) = convolutional(kind.backend, half), batch(kind)
    twin = copy.deepcopy(model)
    twin.params["conv1.b"] = twin.params["conv1.b"] + 1.0
    loss = float(model.loss(x, y)[0])
    assert float(twin.loss(x, y)[0]) != loss
    if half == "float16":
        moved = convolutional(kind.backend, half).to("numpy")
        images, labels = (np.array(kind.to_numpy(array)) for array in (x, y))
        np.testing.assert_allclose(moved.loss(images, labels)[0], loss, rtol=4 * EPS[half])


def test_a_dtype_that_the_backend_has_not_is_refused():
    expected = "dtype: expected one that numpy has, such as 'float32'; received 'bfloat16'"
    with pytest.raises(SettingError, match=expected):
        Model(Sequential(Linear(2)), (1,), dtype="bfloat16", backend="numpy")
