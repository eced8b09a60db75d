"""Settings, and what they build."""

import dataclasses

import numpy as np
import pytest

from xpnn import data
from xpnn.data import AlternatingFlip, ColorJitter, Cutout, Mixup, RandomCrop, RandomFlip
from xpnn.errors import SettingError
from xpnn.optim import EMA
from xpnn.training.run import build_model, build_solver, predictions
from xpnn.training.settings import Settings, transforms


@pytest.fixture(scope="module")
def digits():
    return data.load_digits().take(64)


def solver(digits, **given):
    settings = Settings.of("digits", **{"backend": "numpy", "hidden": (6,), **given})
    return build_solver(settings, build_model(settings, digits), digits)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", []),
        ("flip", [RandomFlip()]),
        ("alternating-flip,crop:2", [AlternatingFlip(), RandomCrop(2, "reflect")]),
        ("crop:4:zero, flip", [RandomCrop(4, "zero"), RandomFlip()]),
        ("cutout:8", [Cutout(8, 7.0)]),
        ("jitter:0.2:0.3,mixup:0.4", [ColorJitter(0.2, 0.3), Mixup(0.4)]),
    ],
)
def test_a_text_names_transforms(text, expected):
    assert transforms(text, fill=7.0) == expected


@pytest.mark.parametrize("text", ["", "flop", "crop", "crop:a", "crop:4:zero:1", "flip:1", "jitter:1", "flip,,flip"])
def test_a_text_that_names_none_is_refused(text):
    with pytest.raises(
        SettingError, match=r"--augment: expected none, or some of flip, alternating-flip, .*; received"
    ):
        transforms(text)


def test_an_argument_out_of_range_is_named():
    with pytest.raises(SettingError, match=r"--augment crop:0: RandomCrop: expected padding to be a whole number"):
        transforms("flip,crop:0")


def test_what_is_cut_out_gets_the_mean_color(digits):
    fill = float(np.rint(digits.X_train.mean()))
    assert repr(solver(digits, augment="cutout:2").augment) == repr([Cutout(2, (fill,))])


def test_augmentation_that_the_images_are_too_small_for_is_refused(digits):
    with pytest.raises(SettingError, match=r"--augment: RandomCrop: expected images of more than 8 rows and columns"):
        solver(digits, augment="crop:8")


def test_settings_reach_the_solver(digits):
    given = {"clip_norm": 2.0, "accumulate": 3, "drop_last": False, "sampling": "sequential", "tta": "mirror"}
    made = solver(digits, **given, ema=0.9, schedule="one-cycle:peak=0.2", optimizer="adamw", weight_decay=0.3)
    assert {name: getattr(made, name) for name in given if name != "clip_norm"} == {
        name: value for name, value in given.items() if name != "clip_norm"
    }
    assert made.optimizer.clip_norm == 2.0
    assert isinstance(made.average, EMA)
    assert made.average.decay == 0.9
    assert made.schedule(0.2) == 1.0
    assert made.optimizer.groups["flat"]["weight_decay"] == 0.3


def test_label_smoothing_reaches_the_loss(digits):
    x, y = digits.X_train[:4], digits.y_train[:4]
    losses = []
    for smoothing in (0.0, 0.5):
        settings = Settings.of("digits", backend="numpy", hidden=(6,), label_smoothing=smoothing, dtype="float64")
        model = build_model(settings, digits)
        scores = model.loss(x)
        log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        expected = -((1 - smoothing) * log_p[np.arange(4), y] + smoothing * log_p.mean(axis=1)).mean()
        losses.append((float(model.loss(x, y)[0]), expected))
    for loss, expected in losses:
        assert loss == pytest.approx(expected, rel=1e-12)


def test_predictions_average_the_views(digits):
    model = build_model(Settings.of("digits", model="convnet", backend="numpy"), digits)
    plain = predictions(model, digits.X_val, batch_size=100)
    np.testing.assert_array_equal(plain, model.predict(digits.X_val))
    views = predictions(model, digits.X_val, "mirror")
    scores = model.loss(digits.X_val) + model.loss(digits.X_val[..., ::-1])
    np.testing.assert_array_equal(views, scores.argmax(axis=1))


def test_a_setting_of_another_net_is_refused():
    with pytest.raises(SettingError, match=r"--batchnorm: expected --model fc or convnet; received resnet20"):
        Settings.of("cifar10", model="resnet20", batchnorm=False)


def test_a_setting_that_the_net_needs_is_missed():
    settings = Settings.of("digits")
    with pytest.raises(SettingError, match=r"--hidden: expected a value for --model fc; received none"):
        dataclasses.replace(settings, hidden=None)
