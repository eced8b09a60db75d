"""The small vision transformer."""

import numpy as np
import pytest

from oracles import EPS, normals
from xpnn.gradient_check import eval_numerical_gradient
from xpnn.models import VisionTransformer


def small_net(kind, dtype="float64", **options):
    settings = {"patch": 2, "dim": 4, "depth": 2, "heads": 2, "num_classes": 3, "input_dim": (2, 4, 6)} | options
    return VisionTransformer(**settings, dtype=dtype, backend=kind.backend, rng=0)


def test_parameters_are_counted_by_hand():
    d, m = 128, 512
    patches, positions = 3 * 4 * 4 * d + d, 64 * d
    attention, mlp, norm = 4 * d * d + 4 * d, 2 * d * m + m + d, 2 * d
    head = d * 10 + 10
    expected = patches + positions + 6 * (attention + mlp + 2 * norm) + norm + head
    assert VisionTransformer(rng=0).params.size == expected == 1_205_642


def test_the_names_of_a_blocks_parameters(kind):
    block = [name.removeprefix("block1.") for name in small_net(kind).params if name.startswith("block1.")]
    assert block == [
        "attention.norm1.gamma",
        "attention.norm1.beta",
        "attention.attn.W_qkv",
        "attention.attn.b_qkv",
        "attention.attn.W_out",
        "attention.attn.b_out",
        "mlp.norm2.gamma",
        "mlp.norm2.beta",
        "mlp.fc1.W",
        "mlp.fc1.b",
        "mlp.fc2.W",
        "mlp.fc2.b",
    ]


def test_the_hidden_layer_of_the_mlp_has_four_times_as_many_units(kind):
    assert tuple(small_net(kind).params["block1.mlp.fc1.W"].shape) == (4, 16)
    assert tuple(small_net(kind, mlp_dim=5).params["block1.mlp.fc1.W"].shape) == (4, 5)


def test_shapes_on_the_way():
    model = VisionTransformer(8, 12, 1, 3, num_classes=7, input_dim=(3, 32, 16), rng=0)
    shapes = {layer.path: layer.output_shape(shape) for layer, shape in model.net.walk(model.input_shape)}
    assert shapes["patches"] == (8, 12)
    assert shapes["block1.mlp.gelu1"] == (8, 48)
    assert shapes["tokenmean1"] == shapes["norm"] == (12,)
    assert model.output_shape == (7,)


@pytest.mark.parametrize(
    ("options", "layer"), [({"patch": 3}, "patches"), ({"heads": 3}, "attn")], ids=["patches", "heads"]
)
def test_what_does_not_divide_is_refused_when_the_net_is_built(options, layer):
    with pytest.raises(ValueError, match=rf"{layer}: expected"):
        VisionTransformer(**{"patch": 2, "dim": 4, "depth": 1, "heads": 2, "input_dim": (2, 4, 4)} | options)


def test_the_order_of_patches_matters_by_their_positions_alone(kind, dtype):
    model = small_net(kind, dtype)
    model.params.flat[...] = kind(normals((model.params.size,), 1), dtype)
    x = normals((3, 2, 4, 6))
    exchanged = np.concatenate([x[..., 4:], x[..., 2:4], x[..., :2]], axis=3)
    before, after = (kind.to_numpy(model.loss(kind(images, dtype))) for images in (x, exchanged))
    assert np.abs(after - before).max() > 0.01
    model.params["positions.W"] = np.zeros((6, 4))
    before, after = (kind.to_numpy(model.loss(kind(images, dtype))) for images in (x, exchanged))
    # six tokens added in another order, in two blocks and at the end, of scores below ten
    np.testing.assert_allclose(after, before, rtol=0, atol=200 * EPS[dtype] * 10)


@pytest.mark.parametrize("reg", [0.0, 0.7])
def test_gradients_agree_with_numerical_ones(kind, reg):
    model = small_net(kind, depth=1, reg=reg)
    model.params.flat[...] = kind(normals((model.params.size,), 1))
    x, y = kind(normals((3, 2, 4, 6))), kind([0, 2, 1])
    _, grads = model.loss(x, y)
    largest = np.abs(kind.to_numpy(grads.flat)).max()
    for name, w in model.params.items():
        numerical = kind.to_numpy(eval_numerical_gradient(lambda _: model.loss(x, y)[0], w, verbose=False))
        # relative to the largest of all: the bias of the keys has no effect
        assert np.abs(kind.to_numpy(grads[name]) - numerical).max() < 1e-7 * largest, name


def test_a_float32_net_stays_float32_everywhere(kind):
    model = small_net(kind, "float32", standardize=(120.0, 60.0))
    x = kind(np.random.default_rng(0).integers(0, 256, (3, 2, 4, 6)), "uint8")
    loss, grads = model.loss(x, kind([0, 2, 1]))
    for array in (loss, model.loss(x), *model.state_dict().values(), *grads.values()):
        kind.check(array, "float32")


def test_biases_scales_and_positions_are_not_penalized(kind):
    model, penalized = (small_net(kind, reg=reg) for reg in (0.0, 1.0))
    x, y = kind(normals((3, 2, 4, 6))), kind([0, 2, 1])
    (_, grads), (_, others) = model.loss(x, y), penalized.loss(x, y)
    changed = {name for name in grads if (kind.to_numpy(grads[name]) != kind.to_numpy(others[name])).any()}
    matrices = [f"block{i}.{name}" for i in (1, 2) for name in ("attention.attn.W_qkv", "attention.attn.W_out")]
    matrices += [f"block{i}.mlp.{name}.W" for i in (1, 2) for name in ("fc1", "fc2")]
    assert changed == {"patches.W", *matrices, "head.W"}
