"""The self-check looks at what the tests look at."""

import json
from pathlib import Path

import pytest

from xpnn import backend as backends
from xpnn import check, layers

COURSE = json.loads((Path(__file__).parent / "course_values.json").read_text())["tests"]


def test_the_values_that_ship_are_the_published_ones():
    for name, case in check.reference_values().items():
        assert {key: COURSE[name][key] for key in case} == case


def test_all_published_values_are_checked():
    assert check.reference_values().keys() == COURSE.keys()


# Made of others
COMPOSED = {"affine_relu", "affine_batchnorm_relu", "conv_relu", "conv_relu_pool"}


def test_every_layer_and_every_loss_has_its_gradient_checked():
    gradients = {name.removeprefix("gradient of ") for name, _, _ in check._gradient_checks(backends.get("numpy"))}
    backward = {name.removesuffix("_backward") for name in layers.__all__ if name.endswith("_backward")}
    losses = {name for name in layers.__all__ if name.endswith("_loss")}
    assert gradients >= (backward - COMPOSED) | losses


def test_a_wrong_gradient_within_a_net_is_found(monkeypatch):
    right = layers.GELU.backward

    def wrong(self, dout, cache, input_grad=True):
        dx, grads = right(self, dout, cache, input_grad)
        return 1.001 * dx, grads

    monkeypatch.setattr(layers.GELU, "backward", wrong)
    measures = {name: measure for name, _, measure in check._gradient_checks(backends.get("numpy"))}
    for net in ("residual conv net", "vision transformer"):
        assert measures[f"gradient of {net}"]() > check.GRADIENT


def test_every_check_passes_on_every_kind(kind):
    for result in check.run(kind.backend):
        assert result.passed, result


@pytest.mark.parametrize(("error", "passed"), [(0.0, True), (1e-7, True), (2e-7, False), (float("nan"), False)])
def test_an_error_beyond_the_limit_or_no_number_fails(error, passed):
    assert check.Result("x", error, 1e-7).passed is passed
