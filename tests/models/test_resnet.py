"""Residual nets."""

import numpy as np
import pytest

from oracles import normals
from xpnn.errors import SettingError
from xpnn.models import ResNet, ResNet9


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]
)  # of the paper's table 6
def test_it_has_as_many_parameters_as_the_papers(depth, millions):
    # The paper's shortcuts have no parameters; ours have two convolutions of 1 x 1 and their batch norms, 2752 numbers.
    shortcuts = 16 * 32 + 32 * 64 + 2 * 32 + 2 * 64
    assert (ResNet(depth, rng=0).params.size - shortcuts) / 1e6 == pytest.approx(millions, abs=0.03)


def test_parameters_of_resnet_20_are_counted_by_hand():
    def block(channels, width):
        return channels * width * 9 + width * width * 9 + 4 * width  # two convolutions, two batch norms

    stem, head = 3 * 16 * 9 + 2 * 16, 64 * 10 + 10
    shortcuts = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    blocks = 3 * block(16, 16) + block(16, 32) + 2 * block(32, 32) + block(32, 64) + 2 * block(64, 64)
    assert ResNet(20, rng=0).params.size == stem + blocks + shortcuts + head == 272_474


@pytest.mark.parametrize("depth", [20, 56])
def test_the_depth_is_the_number_of_layers_with_weights(depth):
    model = ResNet(depth, rng=0)
    weights = [name for name in model.params if name.endswith(".W") and "shortcut" not in name]
    assert len(weights) == depth


@pytest.mark.parametrize("depth", [21, 18, 2, 0, -4])
def test_another_depth_is_refused(depth):
    with pytest.raises(
        SettingError, match=rf"ResNet: expected a depth of 6 n \+ 2, such as 20 or 56; received {depth}"
    ):
        ResNet(depth)


def test_each_stage_halves_the_image_and_doubles_the_channels():
    shapes = {layer.path: layer.output_shape(shape) for layer, shape in walked(ResNet(20, rng=0))}
    assert shapes["conv1"] == (16, 32, 32)
    assert shapes["layer1.block3.bn2"] == (16, 32, 32)
    assert shapes["layer2.block3.bn2"] == (32, 16, 16)
    assert shapes["layer3.block3.bn2"] == (64, 8, 8)
    assert shapes["fc"] == (10,)


def walked(model):
    return model.net.walk(model.input_shape)


def test_there_are_shortcuts_with_weights_only_where_the_shape_changes():
    shortcuts = {name for name in ResNet(20, rng=0).params if name.endswith("shortcut.conv.W")}
    assert shortcuts == {f"layer{stage}.block1.shortcut.conv.W" for stage in (2, 3)}


def test_convolutions_have_no_bias():
    assert [name for name in ResNet(20, rng=0).params if name.endswith(".b")] == ["fc.b"]


def test_a_block_whose_branch_is_zero_passes_on_what_it_gets(kind, dtype):
    model = ResNet(8, widths=(4,), input_dim=(3, 6, 6), dtype=dtype, backend=kind.backend, rng=0)
    scores = {}
    for scale in (0.0, 1.0):
        model.params["layer1.block1.bn2.gamma"] = np.full(4, scale)
        model.params["layer1.block1.conv1.W"] *= 2.0  # of no effect where the branch is zero
        scores[scale] = [kind.to_numpy(model.loss(kind(normals((2, 3, 6, 6)), dtype))).copy()]
        model.params["layer1.block1.conv1.W"] *= 2.0
        scores[scale] += [kind.to_numpy(model.loss(kind(normals((2, 3, 6, 6)), dtype))).copy()]
    assert (scores[0.0][0] == scores[0.0][1]).all()
    assert (scores[1.0][0] != scores[1.0][1]).any()


@pytest.mark.parametrize(
    "build",
    [
        lambda **o: ResNet(8, 7, widths=(4, 6), input_dim=(3, 9, 8), standardize=(120.0, 60.0), **o),
        lambda **o: ResNet9(7, width=2, input_dim=(3, 32, 32), standardize=(120.0, 60.0), **o),
    ],
    ids=["ResNet", "ResNet9"],
)
def test_scores_and_gradients_have_the_models_dtype_and_shapes(kind, dtype, build):
    model = build(dtype=dtype, backend=kind.backend, rng=0)
    x = np.random.default_rng(0).integers(0, 256, (4, *model.input_shape))
    kind.check(model.loss(kind(x, "uint8")), dtype, (4, 7))
    loss, grads = model.loss(kind(x, "uint8"), kind([0, 3, 6, 1]))
    kind.check(loss, dtype, ())
    for name, grad in grads.items():
        kind.check(grad, dtype, tuple(model.params[name].shape))
        assert kind.to_numpy(grad).any(), name
    for array in model.state.values():
        kind.check(array, dtype)


def test_scores_are_finite_before_training_and_after_a_step(kind):
    model = ResNet(32, widths=(4, 4, 4), input_dim=(3, 8, 8), backend=kind.backend, rng=0)
    x = kind(normals((4, 3, 8, 8), dtype="float32"), "float32")
    for _ in range(2):
        assert np.abs(kind.to_numpy(model.loss(x))).max() < 1e6
        model.loss(x, kind([0, 1, 2, 3]))


def test_the_running_variance_is_the_unbiased_one_as_in_pytorch(kind):
    model = ResNet(8, widths=(4,), input_dim=(3, 2, 2), dtype="float64", backend=kind.backend, rng=0)
    before = kind.to_numpy(model.state["bn1.running_var"]).copy()
    x = normals((2, 3, 2, 2))
    model.loss(kind(x), kind([0, 1]))
    out, _ = model.net.layers["conv1"].forward(kind(x))
    variance = kind.to_numpy(out).transpose(1, 0, 2, 3).reshape(4, -1).var(axis=1, ddof=1)
    # variances of size one from eight numbers
    kind.assert_close(model.state["bn1.running_var"], 0.9 * before + 0.1 * variance, atol=1e-14)


def test_resnet9_has_its_authors_number_of_parameters():
    assert ResNet9(rng=0).params.size == 6_573_120


def test_resnet9_ends_in_scores_times_an_eighth(kind):
    model = ResNet9(width=2, dtype="float64", backend=kind.backend, rng=0)
    x = kind(normals((2, 3, 32, 32)))
    model.loss(x, kind([0, 1]))  # for statistics of size one
    features = x
    for name, layer in model.net.layers.items():
        if name == "linear":
            break
        features, _ = layer.forward(features)
    expected = kind.to_numpy(features) @ kind.to_numpy(model.params["linear.W"]) / 8
    kind.assert_close(model.loss(x), expected, rtol=1e-13)  # sums of sixteen numbers
    assert list(model.params)[-1] == "linear.W"  # and no bias


def test_resnet9_halves_the_image_three_times():
    shapes = {layer.path: layer.output_shape(shape) for layer, shape in walked(ResNet9(rng=0))}
    assert shapes["prep.relu1"] == (64, 32, 32)
    assert shapes["layer1.residual.relu2"] == (128, 16, 16)
    assert shapes["layer2.maxpool1"] == (256, 8, 8)
    assert shapes["layer3.residual.relu2"] == (512, 4, 4)
    assert shapes["maxpool1"] == (512, 1, 1)


def test_an_image_too_small_for_resnet9_is_refused():
    with pytest.raises(ValueError, match="expected a window no larger than the padded image"):
        ResNet9(width=2, input_dim=(3, 16, 16))


def test_a_depth_may_be_numpys():
    assert ResNet(np.int64(8), rng=0).params.keys() == ResNet(8, rng=0).params.keys()
