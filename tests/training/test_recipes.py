"""What each model trains with, and by which rule its parameters go."""

import numpy as np
import pytest

from xpnn import data
from xpnn.data import Dataset
from xpnn.errors import SettingError
from xpnn.optim import RULES, Optimizer
from xpnn.training.recipes import RECIPES
from xpnn.training.run import build_model, build_solver
from xpnn.training.settings import Settings

NETS = {
    "fc": {"hidden": (6, 6)},
    "two-layer": {"hidden": (6,)},
    "convnet": {"filters": 2, "filter_size": 3, "hidden": (6,)},
    "resnet20": {"widths": (2, 2, 2)},
    "resnet56": {"widths": (2, 2, 2)},
    "resnet9": {"widths": (2,)},
    "airbench": {"widths": (4, 4, 4)},
    "vit": {"patch": 8, "dim": 8, "depth": 1, "heads": 2},
}


@pytest.fixture(scope="module")
def images():
    """Noise in the shape of CIFAR-10, each channel with a mean and a spread of its own."""
    rng = np.random.default_rng(0)
    splits = {}
    for split, n in (("train", 40), ("val", 10), ("test", 10)):
        X = rng.normal([[[[60]], [[120]], [[180]]]], [[[[5]], [[10]], [[20]]]], (n, 3, 32, 32))
        splits |= {f"X_{split}": X.round().clip(0, 255).astype(np.uint8), f"y_{split}": np.arange(n) % 10}
    return Dataset("noise", **splits, class_names=tuple("0123456789"))


def settings(model, **given):
    return Settings.of("cifar10", **{"model": model, "backend": "numpy", **NETS[model], **given})


def optimizer(model, images, **given):
    """The model and its optimizer, as the Solver makes it."""
    chosen = settings(model, **given)
    net = build_model(chosen, images)
    config, groups = RECIPES[model].optimizer(chosen, net)
    return net, Optimizer(net.params, chosen.optimizer, groups=groups, **config)


def test_every_model_has_a_recipe_that_builds_it(images):
    assert NETS.keys() == RECIPES.keys()
    for name in RECIPES:
        assert build_model(settings(name), images).output_shape == (10,)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("digits", {"hidden": (128, 128), "epochs": 30, "batch_size": 32, "schedule": "cosine", "lr_decay": 1.0}),
        (
            "cifar10",
            {"hidden": (500,) * 4, "epochs": 10, "batch_size": 100, "lr_decay": 0.9, "preprocess": "center"}
            | {"weight_scale": 1e-2, "schedule": "constant"},
        ),
    ],
)
def test_the_fully_connected_net_trains_as_ever(dataset, expected):
    chosen = Settings.of(dataset)
    assert {name: getattr(chosen, name) for name in expected} == expected
    assert (chosen.model, chosen.optimizer, chosen.lr) == ("fc", "adam", 1e-3)
    assert (chosen.augment, chosen.label_smoothing, chosen.weight_decay) == ("none", 0.0, None)


def test_the_two_layer_net_takes_the_first_size():
    assert Settings.of("digits", model="two-layer").hidden == (128,)
    assert Settings.of("cifar10", model="two-layer").hidden == (500,)


def test_another_optimizer_comes_with_its_own_rate_momentum_and_decay():
    own = Settings.of("cifar10", model="resnet20", optimizer="nesterov")
    assert (own.lr, own.momentum, own.weight_decay) == (0.1, 0.9, 5e-4)
    other = Settings.of("cifar10", model="resnet20", optimizer="lion")
    assert (other.lr, other.momentum, other.weight_decay) == (1e-4, None, None)


def test_rules_but_rmsprop_have_their_default_rate():
    assert {rule: Settings.of("digits", optimizer=rule).lr for rule in RULES} == {
        "sgd": 1e-2,
        "sgd_momentum": 1e-2,
        "sgd_nesterov_momentum": 1e-2,
        "nesterov": 1e-2,
        "rmsprop": 2e-4,
        "adam": 1e-3,
        "adamw": 1e-3,
        "lion": 1e-4,
        "muon": 2e-2,
    }


def test_the_net_of_images_is_standardized_by_channel(images):
    mean, std = RECIPES["convnet"].statistics(images, "standardize")
    x = images.X_train.astype(np.float64)
    np.testing.assert_allclose(mean, x.mean(axis=(0, 2, 3), keepdims=True)[0], rtol=1e-12)
    # a variance near 25 is the difference of numbers near 60² + 25, each rounded 40 x 1,024 times at most
    np.testing.assert_allclose(std, x.std(axis=(0, 2, 3), keepdims=True)[0], rtol=1e-9)
    mean, std = RECIPES["convnet"].statistics(images, "center")
    np.testing.assert_allclose(mean, x.mean(axis=0), rtol=1e-12)
    assert std is None


def test_weight_decay_spares_the_transformers_biases_norms_and_positions(images):
    net, opt = optimizer("vit", images)
    decayed = {name for name, config in opt.configs().items() if config["weight_decay"] == 0.05}
    spared = {name for name, config in opt.configs().items() if config["weight_decay"] == 0.0}
    assert decayed | spared == set(net.params)
    assert decayed == {
        "patches.W",
        "block1.attention.attn.W_qkv",
        "block1.attention.attn.W_out",
        "block1.mlp.fc1.W",
        "block1.mlp.fc2.W",
        "head.W",
    }


@pytest.mark.parametrize(
    ("model", "hidden"),
    [
        ("fc", {"W2"}),
        ("convnet", {"W2"}),
        ("vit", {f"block1.{w}" for w in ("attention.attn.W_qkv", "attention.attn.W_out", "mlp.fc1.W", "mlp.fc2.W")}),
    ],
)
def test_muon_by_hand_takes_hidden_weights_and_adamw_the_rest(images, model, hidden):
    net, opt = optimizer(model, images, optimizer="muon")
    configs = opt.configs()
    assert {name for name, config in configs.items() if "newton_schulz_steps" in config} == hidden
    assert {name for name, config in configs.items() if "beta1" in config} == set(net.params) - hidden
    assert opt.learning_rate == 0.02


def test_muon_without_hidden_weights_is_refused(images):
    with pytest.raises(SettingError, match=r"--optimizer: expected another than muon, as two-layer has one hidden"):
        optimizer("two-layer", images, optimizer="muon")


class TestAirbench:
    """The recipe of airbench94_muon.py, with numbers copied from that script."""

    def test_trains_as_published(self, images):
        chosen = Settings.of("cifar10", model="airbench")
        assert (chosen.batch_size, chosen.epochs, chosen.lr, chosen.momentum) == (2000, 8, 0.24, 0.6)
        assert (chosen.schedule, chosen.label_smoothing, chosen.tta) == ("linear", 0.2, "mirror-translate")
        assert (chosen.augment, chosen.sampling, chosen.drop_last) == ("alternating-flip,crop:2", "shuffle", True)
        assert chosen.weight_decay == 2e-6 * 2000
        loss = build_model(settings("airbench"), images).loss_function
        assert loss.keywords == {"label_smoothing": 0.2, "reduction": "sum"}

    def test_each_parameter_has_its_rule(self, images):
        configs = optimizer("airbench", images)[1].configs()
        for name, config in configs.items():
            if ".conv" in name:
                assert config["normalize_weights"] == 1
                assert config["newton_schulz_steps"] == 3
                assert config["newton_schulz_dtype"] == ""
                assert (config["learning_rate"], config["momentum"]) == (0.24, 0.6)
            else:
                rate = 0.67 if name == "head.W" else 0.053
                assert (config["learning_rate"], config["momentum"]) == (rate, 0.85)
                assert config["weight_decay"] == pytest.approx(2e-6 * 2000 / rate, rel=1e-15)

    def test_products_of_muon_are_in_half_precision_where_the_net_is(self, images):
        configs = optimizer("airbench", images, dtype="float16")[1].configs()
        assert {c.get("newton_schulz_dtype") for name, c in configs.items() if ".conv" in name} == {"float16"}

    def test_rates_fall_to_zero_the_first_bias_within_three_epochs_of_eight(self, images):
        _, opt = optimizer("airbench", images)
        for step, rates in (
            (0, (0.24, 0.053, 0.67)),
            (60, (0.24 * 0.7, 0.053 * (1 - 60 / 75), 0.67 * 0.7)),
            (75, (0.24 * (1 - 75 / 200), 0.0, 0.67 * (1 - 75 / 200))),
            (199, (0.24 / 200, 0.0, 0.67 / 200)),
        ):
            opt.set_progress(step / 200, "linear")
            configs = opt.configs()
            names = ("block1.conv1.W", "whiten.b", "head.W")
            assert [configs[name]["learning_rate"] for name in names] == pytest.approx(rates, abs=1e-15)

    def test_a_smaller_batch_keeps_the_rates_per_image(self, images):
        chosen = Settings.of("cifar10", model="airbench", batch_size=500)
        assert (chosen.lr, chosen.weight_decay) == (0.12, 2e-6 * 500)
        configs = optimizer("airbench", images, batch_size=500)[1].configs()
        assert configs["head.W"]["learning_rate"] == 0.67

    def test_batches_of_a_step_count_together(self, images):
        """Four sums over 500 images, added up, take the step of one sum over 2,000."""
        small, large = ({"batch_size": 500, "accumulate": 4}, {"batch_size": 2000})
        configs = [optimizer("airbench", images, **given)[1].configs() for given in (small, large)]
        for name, config in configs[1].items():
            rates = {key: value for key, value in config.items() if isinstance(value, float)}
            assert {key: configs[0][name][key] for key in rates} == rates
        chosen = settings("airbench", **small)
        assert build_solver(chosen, build_model(chosen, images), images).reduction == "sum"

    def test_what_is_given_holds(self):
        chosen = Settings.of("cifar10", model="airbench", batch_size=500, lr=0.1, weight_decay=0.5)
        assert (chosen.lr, chosen.weight_decay) == (0.1, 0.5)

    def test_another_optimizer_takes_all_parameters_and_a_mean(self, images):
        net, opt = optimizer("airbench", images, optimizer="adam")
        assert list(opt.groups) == ["flat"]
        assert net.loss_function.keywords["reduction"] == "mean"

    def test_the_first_filters_whiten_the_training_images(self, images):
        net = build_model(settings("airbench"), images)
        other = build_model(settings("airbench", seed=1), images)
        np.testing.assert_array_equal(net.state["whiten.W"], other.state["whiten.W"])


@pytest.mark.parametrize("model", ["resnet9", "airbench"])
def test_nets_for_images_of_32_pixels_refuse_others(model):
    chosen = Settings.of("digits", model=model, backend="numpy", **NETS[model])
    with pytest.raises(SettingError, match=f"--model: expected another than {model}, whose images are 32 x 32 pixels"):
        build_model(chosen, data.load_digits())


@pytest.mark.parametrize("model", ["fc", "two-layer", "convnet", "resnet20", "resnet56", "vit"])
def test_the_other_nets_take_digits(model):
    digits = data.load_digits()
    assert build_model(Settings.of("digits", model=model, backend="numpy"), digits).output_shape == (10,)
