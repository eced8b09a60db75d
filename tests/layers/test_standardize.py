"""Standardize."""

import numpy as np
import pytest

from xpnn.backend import dtype_name, to_numpy
from xpnn.layers import ReLU, Residual, Sequential, Standardize
from xpnn.models import Model


def test_standardize_subtracts_the_mean_and_divides_by_the_deviation(kind, dtype):
    net = Standardize(mean=[1.0, 2.0], std=4.0)
    model = Model(net, (2,), dtype=dtype, backend=kind.backend, rng=0)
    kind.check(model.loss(kind([[5.0, 0.0]], dtype)), dtype)
    kind.assert_close(model.loss(kind([[5.0, 0.0]], dtype)), [[1.0, -0.5]])
    kind.assert_close(net.backward(kind([[8.0, 4.0]], dtype), None)[0], [[2.0, 1.0]])


def test_bytes_are_standardized_as_numbers_of_the_models_dtype_are(kind, dtype):
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 4, 5), dtype=np.uint8)
    model = Model(Sequential(Standardize(100.0, 60.0), ReLU()), (2, 4, 5), dtype=dtype, backend=kind.backend, rng=0)
    scores = model.loss(kind(images, "uint8"))
    kind.check(scores, dtype)
    expected = np.maximum((images.astype(dtype) - np.dtype(dtype).type(100)) / np.dtype(dtype).type(60), 0)
    np.testing.assert_array_equal(to_numpy(scores), expected)
    np.testing.assert_array_equal(to_numpy(scores), to_numpy(model.loss(kind(images.astype(dtype)))))


def test_bytes_that_go_another_way_too_are_cast(kind, dtype):
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 4, 5), dtype=np.uint8)
    net = Residual(Standardize(100.0, 64.0))
    model = Model(net, (2, 4, 5), dtype=dtype, backend=kind.backend, rng=0)
    scores = model.loss(kind(images, "uint8"))
    kind.check(scores, dtype)
    kind.assert_close(scores, images + (images - 100.0) / 64.0)


class Shifted(Standardize):
    """Without a care for what its input is."""

    def forward(self, x, train=False):
        return x * 2 - self.state["mean"], None


def test_a_subclass_is_given_numbers_of_the_models_dtype(kind, dtype):
    images = np.full((1, 2), 200, np.uint8)
    model = Model(Sequential(Shifted(100.0)), (2,), dtype=dtype, backend=kind.backend, rng=0)
    kind.assert_close(model.loss(kind(images, "uint8")), [[300.0, 300.0]])


@pytest.mark.parametrize("where", ["layer", "net"])
def test_a_forward_that_was_set_is_given_numbers_of_the_models_dtype(kind, where):
    layer, dtypes = Standardize(100.0, 50.0), []
    net = Sequential(layer, ReLU())
    changed = layer if where == "layer" else net
    forward = changed.forward
    changed.forward = lambda x, train=False: dtypes.append(dtype_name(x.dtype)) or forward(x, train)
    model = Model(net, (3,), backend=kind.backend, rng=0)
    model.loss(kind(np.ones((4, 3)), "uint8"), kind([0, 1, 2, 0], "int64"))
    assert dtypes == ["float32"]


def test_standardize_is_saved_with_the_model(kind):
    model = Model(Standardize(mean=[1.0, 2.0], std=4.0), (2,), backend=kind.backend, rng=0)
    kind.assert_close(model.state_dict()["mean"], [1.0, 2.0])
    kind.assert_close(model.state_dict()["std"], [4.0, 4.0])


def test_standardize_takes_a_statistic_for_each_channel(kind, dtype):
    model = Model(Standardize(mean=[[[1.0]], [[2.0]]]), (2, 1, 3), dtype=dtype, backend=kind.backend, rng=0)
    kind.assert_close(model.loss(kind(np.full((1, 2, 1, 3), 5.0), dtype)), [[[[4.0] * 3], [[3.0] * 3]]])


@pytest.mark.parametrize("statistics", [{"mean": [1.0, 2.0, 3.0]}, {"std": np.ones((1, 2))}])
def test_statistics_of_another_shape_are_reported_when_the_net_is_built(statistics):
    key, value = *statistics, np.shape(*statistics.values())
    with pytest.raises(ValueError, match=rf"^standardize1: expected {key} to broadcast to the input's \(2,\)") as error:
        Model(Sequential(Standardize(**statistics)), (2,), rng=0)
    assert f"received {value}" in str(error.value)
