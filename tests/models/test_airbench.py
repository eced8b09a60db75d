"""The net of airbench94, and that a net with frozen weights is copied, moved and saved whole."""

import copy
import pickle

import numpy as np
import pytest

from oracles import EPS, normals
from xpnn import backend as backends
from xpnn.errors import SettingError
from xpnn.models import Airbench
from xpnn.models.airbench import CIFAR_MEAN, CIFAR_STD
from xpnn.optim import Optimizer

WIDTHS = (4, 6, 8)
Y = [1, 0, 3, 9]


def images(n=60, seed=0):
    """Bytes whose neighbors are alike, as in photographs."""
    rng = np.random.default_rng(seed)
    blobs = rng.integers(0, 200, (n, 3, 8, 8)).repeat(4, axis=2).repeat(4, axis=3)
    return (blobs + rng.integers(0, 56, (n, 3, 32, 32))).astype("uint8")


def small_net(kind, dtype="float64", x=None, **options):
    return Airbench(images() if x is None else x, widths=WIDTHS, dtype=dtype, backend=kind.backend, rng=0, **options)


def trained(kind, dtype="float64"):
    """A net after two steps."""
    model = small_net(kind, dtype)
    optimizer = Optimizer(model.params, "sgd_momentum", learning_rate=0.01)
    for _ in range(2):
        optimizer.step(model.loss(kind(images(4)), kind(Y))[1])
    return model


# The net


@pytest.mark.parametrize(("widths", "size"), [((4,), 32), ((4, 6), 32), ((4, 6, 8), 64)])
def test_larger_images_leave_the_head_more_inputs_to_divide_by(widths, size):
    model = Airbench(widths=widths, input_dim=(3, size, size), rng=0)
    (inputs, _), (*_, scale) = model.params.shapes["head.W"], model.net.layers.values()
    assert scale.factor == 1.0 / inputs


def test_it_has_the_originals_numbers():
    model = Airbench(rng=0)
    # 1.97 M in the paper: what learns, of which the whitening filters, 24 x 3 x 2 x 2, are no part
    assert model.params.size == 1_971_352
    assert model.state["whiten.W"].shape == (24, 3, 2, 2)
    flops = sum(layer.flops(shape) for layer, shape in model.net.walk(model.input_shape))
    assert flops == 236_294_720


def test_what_learns_is_filters_shifts_the_head_and_the_first_bias(kind):
    blocks = [f"block{i}.{name}" for i in (1, 2, 3) for name in ("conv1.W", "norm1.beta", "conv2.W", "norm2.beta")]
    assert list(small_net(kind).params) == ["whiten.b", *blocks, "head.W"]


def test_shapes_on_the_way():
    model = Airbench(rng=0)
    shapes = {layer.path: layer.output_shape(shape) for layer, shape in model.net.walk(model.input_shape)}
    assert shapes["whiten"] == (24, 31, 31)
    assert shapes["block1.gelu2"] == (64, 15, 15)
    assert shapes["block2.gelu2"] == (256, 7, 7)
    assert shapes["block3.gelu2"] == (256, 3, 3)
    assert shapes["maxpool1"] == (256, 1, 1)
    assert shapes["head"] == (10,)


def test_batch_norm_follows_fast_and_shifts_only(kind):
    norm = small_net(kind).net.layers["block1"].layers["norm1"]
    assert (norm.bn_param["momentum"], norm.bn_param["eps"], norm.bn_param["unbiased"]) == (0.6, 1e-12, True)
    kind.assert_close(norm.state["gamma"], np.ones(4))


@pytest.mark.parametrize("widths", [(4,), (4, 6, 8)])
def test_scores_are_divided_by_the_number_of_the_heads_inputs(kind, widths):
    size = 3 * 2 ** len(widths) + 1
    model = Airbench(
        widths=widths, input_dim=(3, size, size), dtype="float64", backend=kind.backend, rng=0, standardize=(0.0, 1.0)
    )
    x = kind(normals((2, 3, size, size)))
    model.loss(x, kind([0, 1]))  # for statistics of size one
    features = x
    for name, layer in model.net.layers.items():
        if name == "head":
            break
        features, _ = layer.forward(features)
    expected = kind.to_numpy(features) @ kind.to_numpy(model.params["head.W"]) / widths[-1]
    kind.assert_close(model.loss(x), expected, atol=1e-13)  # sums of eight numbers of size ten


# First values


def test_the_first_filters_are_dirac_the_others_pytorchs(kind):
    model = small_net(kind)
    w = kind.to_numpy(model.params["block2.conv1.W"])
    passing = np.zeros((4, 4, 3, 3))
    passing[range(4), range(4), 1, 1] = 1.0
    np.testing.assert_array_equal(w[:4], passing)
    assert (w[4:] != 0).all()
    assert np.abs(w[4:]).max() <= 1 / (4 * 9) ** 0.5
    # More inputs than filters: each filter passes a channel on.
    first = kind.to_numpy(model.params["block1.conv1.W"])
    np.testing.assert_array_equal(first, passing_of(4, 24))


def passing_of(filters, channels):
    w = np.zeros((filters, channels, 3, 3))
    w[range(filters), range(filters), 1, 1] = 1.0
    return w


def test_the_heads_weights_have_a_standard_deviation_of_one(kind, dtype):
    w = kind.to_numpy(small_net(kind, dtype).params["head.W"]).astype("float64")
    assert w.std(ddof=1) == pytest.approx(1.0, abs=80 * EPS[dtype])  # a sum of eighty squares


def patches_of(x):
    """The 2 x 2 patches (n, 12) of images, a channel after the other."""
    windows = np.lib.stride_tricks.sliding_window_view(x, (2, 2), axis=(2, 3))
    return windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 12)


def standardized(x):
    mean, std = (np.array(v).reshape(3, 1, 1) for v in (CIFAR_MEAN, CIFAR_STD))
    return (x - mean) / std


def test_whitened_patches_have_unit_covariance(kind):
    x = images()
    filters = kind.to_numpy(small_net(kind, x=x).state["whiten.W"]).reshape(24, 12)
    patches = patches_of(standardized(x))
    variances = np.linalg.eigvalsh(patches.T @ patches / len(patches))
    whitened = patches @ filters[:12].T
    # of each direction v / (v + 5e-4), where v is its variance; 60 x 31 x 31 products of numbers of size ten
    np.testing.assert_allclose(
        whitened.T @ whitened / len(patches), np.diag(variances / (variances + 5e-4)), rtol=0, atol=1e-11
    )
    assert (variances > 0.02).all()  # so that the diagonal is 1 to a few percent
    np.testing.assert_array_equal(filters[12:], -filters[:12])


def test_the_whitening_filters_are_state_and_do_not_move(kind, dtype):
    before = kind.to_numpy(small_net(kind, dtype).state["whiten.W"])
    model = trained(kind, dtype)
    kind.assert_close(model.state["whiten.W"], before)
    assert "whiten.W" not in model.params
    assert kind.to_numpy(model.loss(kind(images(4)), kind(Y))[1]["whiten.b"]).any()  # while their bias learns


def test_images_may_be_of_any_kind(kind):
    expected = kind.to_numpy(small_net(kind, x=images()).state["whiten.W"])
    kind.assert_close(small_net(kind, x=kind(images())).state["whiten.W"], expected)


def test_without_images_the_first_filters_are_random(kind):
    w = kind.to_numpy(small_net(kind, x=None).state["whiten.W"])
    random = kind.to_numpy(Airbench(widths=WIDTHS, dtype="float64", backend=kind.backend, rng=0).state["whiten.W"])
    assert (random != w).all()
    assert np.abs(random).max() <= 1 / 12**0.5


@pytest.mark.parametrize(
    ("x", "received"),
    [
        (images().reshape(60, 3072), r"numpy\.ndarray \(60, 3072\)"),
        (images()[:, :2], r"numpy\.ndarray \(60, 2, 32, 32\)"),
        (images().tolist(), r"list \(\)"),
    ],
    ids=["vectors", "two channels", "a list"],
)
def test_what_is_no_images_is_refused(x, received):
    with pytest.raises(ValueError, match=rf"Airbench: expected images \(N, 3, H, W\); received {received}"):
        Airbench(x)


def test_no_blocks_are_refused():
    with pytest.raises(SettingError, match=r"Airbench: expected widths, one whole number at least; received \(\)"):
        Airbench(widths=())


def test_an_image_too_small_for_three_blocks_is_refused():
    with pytest.raises(ValueError, match="expected a window no larger than the padded image"):
        Airbench(widths=WIDTHS, input_dim=(3, 16, 16))


# dtype, kind, saving and moving


def test_a_float32_net_stays_float32_everywhere(kind):
    model = trained(kind, "float32")
    loss, grads = model.loss(kind(images(4)), kind(Y))
    arrays = {"loss": loss, "scores": model.loss(kind(images(4))), **model.state_dict(), **grads}
    for array in arrays.values():
        kind.check(array, "float32")


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_whole_and_apart(kind, duplicate):
    model = trained(kind)
    twin = duplicate(model)
    x, y = kind(images(4)), kind(Y)
    assert twin.backend is model.backend
    expected = kind.to_numpy(model.loss(x)).copy()
    kind.assert_close(twin.loss(x), expected)
    kind.assert_close(twin.loss(x, y)[1].flat, kind.to_numpy(model.loss(x, y)[1].flat))
    expected = kind.to_numpy(model.loss(x)).copy()
    twin.params.flat[...] = kind(np.zeros(twin.params.size))
    twin.net.layers["whiten"].state["W"] = kind(np.zeros((24, 3, 2, 2)))
    kind.assert_close(model.loss(x), expected)
    kind.assert_close(twin.loss(x), np.zeros((4, 10)))


def test_a_copy_does_not_carry_the_images():
    few, many = (Airbench(images(n), widths=WIDTHS, backend="numpy", rng=0) for n in (10, 100))
    # but for the whitening filters they are the same
    assert abs(len(pickle.dumps(many)) - len(pickle.dumps(few))) < 100


def test_a_state_dict_makes_another_net_the_same(kind, dtype):
    model = trained(kind, dtype)
    other = Airbench(widths=WIDTHS, dtype=dtype, backend=kind.backend, rng=1)
    other.load_state_dict({name: kind.to_numpy(array) for name, array in model.state_dict().items()})
    x = kind(images(4, seed=1))
    kind.assert_close(other.loss(x), kind.to_numpy(model.loss(x)))
    assert list(other.state_dict()) == [*model.params, *model.state]


@pytest.mark.parametrize("there", ["numpy", "torch", "array-api-strict:device1"])
def test_to_another_backend_and_back_keeps_scores_and_gradients(kind, dtype, there):
    target = backends.get(there)
    if not target.is_available():
        pytest.skip(target.reason)
    model, x, y = trained(kind, dtype), images(4, seed=1), np.array(Y)
    expected = kind.to_numpy(model.loss(kind(x))).copy()
    assert model.to(there) is model
    for array in model.state_dict().values():
        assert backends.of(array) is target
        assert backends.dtype_name(array.dtype) == dtype
    # another library may add in another order: sums of up to 200 numbers in seven layers, of scores below ten
    atol = 7 * 200 * EPS[dtype]
    np.testing.assert_allclose(backends.to_numpy(model.loss(target.asarray(x))), expected, rtol=0, atol=atol)
    _, grads = model.loss(target.asarray(x), target.asarray(y))
    assert backends.of(grads.flat) is target
    model.to(kind.backend)
    kind.check(model.loss(kind(x)), dtype)
