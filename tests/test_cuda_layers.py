"""CuPy's kernels of layers and losses without a device: how often they launch, and what they take."""

import math

import numpy as np
import pytest
import stand_in

from test_kernels import channels_last, definition, normals, ties
from xpnn import Model, kernels, layers, losses, random
from xpnn import backend as backends
from xpnn.layers import GELU, Affine, BatchNorm, Conv, Dropout, ReLU, Sequential
from xpnn.layers.pooling import window_max
from xpnn.windows import Window

HALVES = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # a rounding, relative to the number


@pytest.fixture
def cupy():
    if stand_in.COMPILER is None:
        pytest.skip("no g++ was found")
    with stand_in.installed() as module:
        yield module


@pytest.fixture(params=HALVES)
def half(request):
    if request.param == "bfloat16":
        pytest.importorskip("ml_dtypes")
    return np.dtype(request.param)


def kernel(function):
    return kernels.TABLE[function, "cupy"]


def launched(function, *args):
    """The kernels, without their types, that a call launches."""
    stand_in.launches.clear()
    kernel(function)(*args)
    return names()


def names():
    """The kernels that were launched, without their types."""
    return [launch.kernel.partition("<")[0] for launch in stand_in.launches]


# ---- how often


FEW = (["moments", "normalize"], ["gradient_sums", "input_grad"])
MANY = (["moments", "merge_moments", "normalize"], ["gradient_sums", "add_sums", "input_grad"])
PASSES = {(100, 24): FEW, (20_000, 24): MANY, (6, 5, 4, 4): FEW, (100, 5, 16, 16): MANY}  # of a batch norm, by shape
BEHIND = {
    "none": lambda: [],
    "relu": lambda: [ReLU()],
    "gelu_none": lambda: [GELU()],
    "gelu_tanh": lambda: [GELU("tanh")],
}


@pytest.mark.parametrize("shape", PASSES)
@pytest.mark.parametrize(("kept", "of"), [("float32", "float"), ("float16", "__half")])
@pytest.mark.parametrize("activation", BEHIND)
def test_a_batchnorm_with_what_is_behind_it_launches_this_and_nothing_else(cupy, shape, kept, of, activation):
    net = Sequential(BatchNorm(), *BEHIND[activation]())
    Model(net, shape[1:], backend="cupy", dtype=kept)
    x = normals(*shape, dtype=kept)
    x = cupy.asarray(channels_last(x) if len(shape) == 4 else x)
    forward, backward = PASSES[shape]
    packed = "true" if shape[1] == 24 else "false"  # whether 16 bytes are moved at once
    stand_in.launches.clear()
    stand_in.computed.clear()
    out, cache = net.forward(x, train=True)
    assert names() == forward
    assert stand_in.launches[-1].kernel == f"normalize<{of}, {packed}, {activation}>"
    stand_in.launches.clear()
    net.backward(out, cache)
    assert names() == backward
    stand_in.launches.clear()
    net.infer(x)
    assert names() == ["scales", "normalize"]
    assert stand_in.computed == []


@pytest.mark.parametrize("kept", ["float64", "float32", "float16"])
@pytest.mark.parametrize("activation", BEHIND)
@pytest.mark.parametrize("shape", [(100, 24), (6, 5, 4, 4)])
def test_a_batchnorm_with_what_is_behind_it_gives_numpys_gradients(cupy, kept, activation, shape):
    results = []
    for backend in ("numpy", "cupy"):
        first = Affine(24) if len(shape) == 2 else Conv(8, 3, pad="same")
        net = Sequential(first, BatchNorm(), *BEHIND[activation](), Affine(3))
        model = Model(net, shape[1:], dtype=kept, backend=backend, rng=0)
        asarray = backends.get(backend).asarray
        for _ in range(2):
            loss, grads = model.loss(asarray(normals(*shape)), asarray(np.arange(shape[0]) % 3))
        state = model.state.values()
        results.append([*map(backends.to_numpy, (loss, grads.flat, model.loss(asarray(normals(*shape))), *state))])
    eps = np.finfo(kept).eps
    for host, device in zip(*results, strict=True):
        assert device.dtype == host.dtype
        np.testing.assert_allclose(device, host, rtol=0, atol=64 * eps * np.abs(host).max())


@pytest.mark.parametrize("n", [100, 20_000])
@pytest.mark.parametrize("kept", ["float32", "float16"])
def test_a_batchnorm_writes_its_gradients_where_they_belong_but_once(cupy, n, kept):
    layer, x = BatchNorm(), cupy.asarray(normals(n, 24, dtype=kept))
    Model(Sequential(layer), (24,), backend="cupy", dtype=kept)
    out, cache = layer.forward(x, train=True)
    expected = [grad.get() for grad in layer.backward(out, cache)[1].values()]
    lent = {key: cupy.zeros(24, "float32") for key in ("gamma", "beta")}
    layer.grads = dict(lent)
    _, grads = layer.backward(out, cache)
    _, again = layer.backward(out, cache)
    assert layer.grads == {}
    for key, truth in zip(("gamma", "beta"), expected, strict=True):
        assert grads[key] is lent[key]
        assert again[key] is not lent[key]
        assert lent[key].dtype == np.float32
        np.testing.assert_array_equal(lent[key].get(), truth)
        np.testing.assert_array_equal(again[key].get(), truth)


@pytest.mark.parametrize(("n", "sums"), [(100, []), (20_000, ["add_rows"])])
def test_an_activation_behind_an_affine_layer_is_one_launch_each_way(cupy, n, sums):
    """Beside the products, CuPy's own here: with the bias, and with its gradient."""
    for activation in (ReLU, GELU, lambda: GELU("tanh")):
        net = Sequential(Affine(24), activation(), Dropout(0.0), Affine(8), activation())
        Model(net, (6,), backend="cupy", rng=0)
        stand_in.launches.clear()
        out, cache = net.forward(cupy.asarray(normals(n, 6)), train=True)
        assert names() == ["add_and_activate"] * 2
        stand_in.launches.clear()
        net.backward(out, cache)
        assert names() == ["grad", *sums] * 2


class Doubled(BatchNorm):
    """A batch norm that gives twice as much."""

    def forward(self, x, train=False):
        out, cache = super().forward(x, train)
        return 2 * out, cache


def test_a_batchnorm_with_a_forward_of_its_own_is_heard(cupy):
    net = Sequential(Doubled(), ReLU())
    Model(net, (24,), backend="cupy")
    x = cupy.asarray(normals(100, 24))
    out, _ = net.forward(x, train=True)
    plain, _ = layers.batchnorm_forward(x, cupy.ones(24, "f"), cupy.zeros(24, "f"), {"mode": "train"})
    np.testing.assert_allclose(out.get(), np.maximum(2 * plain.get(), 0), atol=1e-6)


def test_pooling_is_one_launch_each_way(cupy):
    x, window = cupy.asarray(normals(3, 5, 8, 8)), Window((2, 2), (2, 2))
    out, place = kernel("layers.pooling.window_max")(x, window)
    assert launched("layers.pooling.window_max", x, window) == ["window_max"]
    assert launched("layers.pooling.window_max_grad", out, place, (8, 8), window) == ["window_max_grad"]


@pytest.mark.parametrize(("n", "c", "count"), [(100, 10, 1), (1000, 10, 2), (2, 5000, 2), (1, 5000, 1)])
def test_a_loss_is_one_launch_and_one_more_for_the_sum_of_several_blocks(cupy, n, c, count):
    x, y = cupy.asarray(normals(n, c)), cupy.zeros(n, "int64")
    assert launched("losses.cross_entropy", x, y, 0.1, n) == ["cross_entropy", "add_losses"][:count]
    assert launched("losses.soft_cross_entropy", x, x, 0.1, n) == ["cross_entropy", "add_losses"][:count]


def test_a_mask_is_one_launch(cupy):
    assert launched("random.dropout_mask", 0, 1, 2, 100_000, 0.5, "float32") == ["dropout_mask"]


def test_normals_are_one_launch(cupy):
    assert launched("random.normals", 0, 1, 2, 100_000, 0.0, 1.0, "float32") == ["normals"]


@pytest.mark.parametrize("d", [100, 5000])
def test_normalization_of_examples_is_one_launch_each_way(cupy, d):
    x, v, inv_std = cupy.asarray(normals(2, 3, d)), cupy.asarray(normals(d)), cupy.ones((2, 3, 1), "float32")
    pixels, vectors, group_std = x.reshape(2, 3, d // 5, 5), v.reshape(d // 5, 5), cupy.ones((2, 1, d // 5, 1), "f")
    of = "layers.normalization."
    assert launched(of + "layernorm", x, v, v, 1e-5) == ["normalization"]
    assert launched(of + "rmsnorm", x, v, 1e-5) == ["normalization"]
    assert launched(of + "groupnorm", pixels, vectors, vectors, 1e-5) == ["normalization"]
    assert launched(of + "layernorm_grad", x, x, inv_std, v) == ["normalization_grad"]
    assert launched(of + "rmsnorm_grad", x, x, inv_std, v) == ["normalization_grad"]
    assert launched(of + "groupnorm_grad", pixels, pixels, group_std, vectors) == ["normalization_grad"]


@pytest.mark.parametrize("norm", ["layernorm", "spatial_groupnorm", "rmsnorm"])
def test_a_layer_that_normalizes_examples_launches_three_kernels_in_all(cupy, norm):
    shape, channels = ((4, 6, 3, 3), 6) if norm == "spatial_groupnorm" else ((4, 6), 6)
    x = channels_last(normals(*shape)) if len(shape) == 4 else normals(*shape)
    vectors = [cupy.asarray(normals(channels)) for _ in range(1 if norm == "rmsnorm" else 2)]
    groups = (2,) if norm == "spatial_groupnorm" else ()
    out, cache = getattr(layers, f"{norm}_forward")(cupy.asarray(x), *vectors, *groups, {})
    grads = getattr(layers, f"{norm}_backward")(out, cache)
    assert len(grads) == 1 + len(vectors)
    assert sorted(names()) == ["gradient_sums", "normalization", "normalization_grad"]
    assert out.strides == x.strides


def test_nothing_is_launched_for_no_numbers(cupy):
    rows, none, vector = cupy.zeros((0, 3)), cupy.zeros((5, 0)), cupy.zeros(3)
    assert launched("layers.batchnorm.normalize", rows, vector, vector, vector) == []
    assert launched("layers.batchnorm.batch_statistics", none, *4 * [cupy.zeros(0)], 0.9, 1.0, 0.0) == []
    assert launched("layers.batchnorm.param_grads", rows, rows, vector, vector, vector, "relu", vector) == []
    assert launched("layers.pooling.window_max", cupy.zeros((0, 3, 4, 4)), Window((2, 2), (2, 2))) == []
    assert launched("layers.normalization.layernorm", rows, vector, vector, 0.0) == []
    assert launched("random.dropout_mask", 0, 1, 2, 0, 0.5, "float32") == []


# ---- what they take


@pytest.mark.parametrize("first", [1e4, 0.0, 3e4])
def test_a_variance_far_from_zero_is_exact_to_rounding(cupy, first):
    x = normals(20_000, 7) + np.float32(1e4)
    x[0] = first
    vectors = [cupy.zeros(7, "float32")] * 4
    *_, mean, var = kernel("layers.batchnorm.batch_statistics")(cupy.asarray(x), *vectors, 0.0, 1.0, 0.0)
    exact, eps = x.astype("float64"), np.finfo("float32").eps
    # The first number is the shift: where it is far from the others, their differences from it are rounded.
    np.testing.assert_allclose(mean.get(), exact.mean(axis=0), rtol=2 * eps)
    np.testing.assert_allclose(var.get(), exact.var(axis=0), rtol=16 * eps)


@pytest.mark.parametrize("layout", [np.asarray, channels_last])
def test_pooling_keeps_the_order_of_the_images_in_memory(cupy, layout):
    x, window = cupy.asarray(layout(ties(2, 8, 6, 6))), Window((3, 3), (2, 2))
    out, place = kernel("layers.pooling.window_max")(x, window)
    dx = kernel("layers.pooling.window_max_grad")(cupy.ones(out.shape, "float32"), place, (6, 6), window)
    for images in (out, place, dx):
        assert layout(images.get()).strides == images.strides


def test_rows_that_begin_anywhere_in_memory_are_taken(cupy):
    memory = cupy.asarray(normals(5 * 8 + 3))
    vectors = [cupy.asarray(v) for v in (normals(11)[k : k + 8] for k in range(3))]
    for start in range(4):
        x = memory[start : start + 40].reshape(5, 8)
        out = kernel("layers.batchnorm.normalize")(x, *vectors)
        expected = definition("layers.batchnorm.normalize")(x.get(), *(v.get() for v in vectors))
        np.testing.assert_allclose(out.get(), expected, rtol=0, atol=1e-6)


def test_a_label_out_of_range_is_no_class(cupy):
    x = normals(4, 3)
    loss, dx = losses.softmax_loss(cupy.asarray(x), cupy.asarray(np.array([0, -1, 3, 2**40])))
    exp = np.exp(x.astype("float64"))
    softmax = exp / exp.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(loss.get(), -np.log(softmax[0, 0]) / 4, rtol=1e-6)
    np.testing.assert_allclose(dx.get()[1:], softmax[1:] / 4, rtol=1e-6)


def test_what_is_no_number_spoils_its_own_row_and_the_loss(cupy):
    x = normals(3, 2000)
    x[1, 1999] = np.nan
    loss, dx = losses.softmax_loss(cupy.asarray(x), cupy.zeros(3, "int64"))
    assert np.isnan(loss.get())
    assert np.isnan(dx.get()).all(axis=1).tolist() == [False, True, False]
    assert np.isnan(dx.get()).any(axis=1).tolist() == [False, True, False]


def test_a_loss_is_finite_for_any_finite_scores(cupy, half):
    most = float(np.finfo("float16").max) if half == np.float16 else 3.3e38
    for dtype, top in ((half, most), ("float32", 3.4e38), ("float64", 1.7e308)):
        x = cupy.asarray(np.array([[top, -top, 0.0]]).astype(dtype))
        loss, dx = losses.softmax_loss(x, cupy.asarray(np.array([1])))
        assert math.isfinite(float(loss.get()))
        np.testing.assert_array_equal(dx.get().astype("float64"), [[1, -1, 0]])


@pytest.mark.parametrize("p", [0.1, 0.5, 0.999])
def test_a_device_drops_what_numpy_does(cupy, p):
    masks = []
    for backend in ("numpy", "cupy"):
        generator = random.Generator(1, 2, 2**64 - 3)
        first = generator.dropout_mask((3, 7), p, backend=backend)
        masks.append((backends.to_numpy(first), backends.to_numpy(generator.dropout_mask(50, p, backend=backend))))
    for host, device in zip(*masks, strict=True):
        np.testing.assert_array_equal(device, host)


ELEMENTWISE = {
    "relu": layers.ReLU,
    "leaky": layers.LeakyReLU,
    "gelu": layers.GELU,
    "silu": layers.SiLU,
    "sigmoid": layers.Sigmoid,
    "tanh": layers.Tanh,
    "scale": lambda: layers.Scale(0.125),
    "dropout": lambda: layers.Dropout(0.5),
    "residual": lambda: layers.Residual(layers.ReLU()),
    "parallel": lambda: layers.Parallel(layers.ReLU(), layers.Tanh()),
    "concat": lambda: layers.Concat(layers.ReLU(), layers.Tanh()),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_images_keep_their_channels_last(cupy, name):
    """Though what CuPy computes by itself lies in C order: a convolution would copy it back."""
    net = layers.Sequential(ELEMENTWISE[name]())
    Model(net, (3, 4, 5), backend="cupy", rng=0)
    x = cupy.array(channels_last(normals(2, 3, 4, 5)))
    out, cache = net.forward(x, train=True)
    dx, _ = net.backward(cupy.array(channels_last(normals(*out.shape, seed=1))), cache)
    for images in (out, net.infer(x), dx):
        assert images.transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize("name", [name for name in ELEMENTWISE if name not in ("dropout", "scale", "concat")])
def test_behind_a_pool_over_whole_images_a_gradient_has_its_channels_last_too(cupy, name):
    """Though what comes from there is one number for all of a channel."""
    net = layers.Sequential(ELEMENTWISE[name](), layers.GlobalAvgPool())
    Model(net, (3, 4, 5), backend="cupy", rng=0)
    out, cache = net.forward(cupy.array(channels_last(normals(2, 3, 4, 5))), train=True)
    dx, _ = net.backward(cupy.asarray(normals(*out.shape)), cache)
    assert dx.transpose(0, 2, 3, 1).flags.c_contiguous


# ---- half precision


def assert_rounded(result, truth, half):
    """That a result is float32's, rounded once; of what is near 0, a sum of larger numbers."""
    assert result.dtype == half
    atol = 1e-6 * np.abs(truth).max() + 2.0**-24  # and float16's smallest number
    np.testing.assert_allclose(result.get().astype("float64"), truth, 1.01 * HALVES[half.name], atol)


def assert_computed_in_float32(cupy, half, function, *args):
    """And that the results are half; with vectors in single among the arguments, vectors are that."""
    widened = (arg.astype("float64") if isinstance(arg, np.ndarray) and arg.dtype.kind != "i" else arg for arg in args)
    expected = definition(function)(*widened)
    received = kernel(function)(*(cupy.asarray(arg) if isinstance(arg, np.ndarray) else arg for arg in args))
    if not isinstance(expected, tuple):
        expected, received = (expected,), (received,)
    single = any(isinstance(arg, np.ndarray) and arg.dtype == np.float32 for arg in args)
    for result, truth in zip(received, expected, strict=True):
        if single and truth.ndim == 1:
            assert result.dtype == np.float32
            np.testing.assert_allclose(result.get(), truth, rtol=0, atol=32 * 2.0**-23 * np.abs(truth).max())
        else:
            assert_rounded(result, truth, half)


@pytest.mark.parametrize("d", [3, 24])
@pytest.mark.parametrize("activation", BEHIND)
def test_batchnorm_of_half_rows_computes_in_float32(cupy, half, d, activation):
    x, dout = (normals(5000, d, seed=seed).astype(half) for seed in range(2))
    a, b, c, e, f = (0.1 + normals(d, seed=seed) ** 2 for seed in range(5))
    name, *more = {"none": ("",), "relu": ("_relu",)}.get(activation, ("_gelu", activation.removeprefix("gelu_")))
    behind = "" if activation == "none" else activation
    for function, *args in [
        ("batch_statistics", x, a, b, c, e, 0.9, 1.25, 1e-5),
        (f"normalize{name}", x, a, b, c, *more),
        ("param_grads", dout, x, a, b, c, behind, e),
        ("input_grad", dout, x, a, b, c, behind, e, f),
    ]:
        assert_computed_in_float32(cupy, half, f"layers.batchnorm.{function}", *args)


def test_statistics_of_half_rows_are_those_of_the_same_numbers_in_float32(cupy, half):
    x, vectors = normals(20_000, 7).astype(half), [cupy.asarray(normals(7)) for _ in range(4)]
    statistics = kernel("layers.batchnorm.batch_statistics")
    received, expected = (statistics(cupy.asarray(rows), *vectors, 0.9, 1.0, 1e-5) for rows in (x, x.astype("float32")))
    for result, truth in zip(received, expected, strict=True):
        np.testing.assert_array_equal(result.get(), truth.get())


def test_batchnorms_functions_of_halves_alone_give_halves(cupy, half):
    x, dout, gamma, beta = (cupy.asarray(normals(*shape).astype(half)) for shape in ((40, 3), (40, 3), (3,), (3,)))
    bn_param = {"mode": "train"}
    out, cache = layers.batchnorm_forward(x, gamma, beta, bn_param)
    single, single_cache = layers.batchnorm_forward(*(a.astype("float32") for a in (x, gamma, beta)), {"mode": "train"})
    for result, truth in zip(
        (out, *layers.batchnorm_backward(dout, cache)),
        (single, *layers.batchnorm_backward(dout.astype("float32"), single_cache)),
        strict=True,
    ):
        assert_rounded(result, truth.get(), half)
    assert bn_param["running_mean"].dtype == bn_param["running_var"].dtype == np.float32


@pytest.mark.parametrize("activation", ["relu", "gelu_none", "gelu_tanh"])
@pytest.mark.parametrize(("n", "d"), [(40, 3), (40, 24), (5000, 16)])
def test_activations_with_a_bias_compute_in_float32(cupy, half, activation, n, d):
    x, dout, bias = (normals(*shape).astype(half) for shape in ((n, d), (n, d), (d,)))
    if n < 5000:  # and the product with ones on the diagonal is exact
        assert_computed_in_float32(cupy, half, "layers.fused.activated", x, np.eye(d, dtype=half), bias, activation)
    assert_computed_in_float32(cupy, half, "layers.fused.activated_grad", dout, x, activation)


@pytest.mark.parametrize("d", [10, 1500])
def test_normalization_and_the_loss_compute_in_float32(cupy, half, d):
    x, dout, gamma, beta = (normals(*shape).astype(half) for shape in ((40, d), (40, d), (d,), (d,)))
    inv_std, labels = np.abs(normals(40, 1)).astype(half), np.arange(40) % d
    assert_computed_in_float32(cupy, half, "layers.normalization.layernorm", x, gamma, beta, 1e-5)
    assert_computed_in_float32(cupy, half, "layers.normalization.layernorm_grad", dout, x, inv_std, gamma)
    assert_computed_in_float32(cupy, half, "layers.normalization.rmsnorm", x, gamma, 1e-5)
    assert_computed_in_float32(cupy, half, "layers.normalization.rmsnorm_grad", dout, x, inv_std, gamma)
    assert_computed_in_float32(cupy, half, "layers.normalization.param_grads", dout, x, True)
    pixels, pixel_grads = (rows.reshape(4, 10, d // 5, 5) for rows in (x, dout))
    by_group = gamma.reshape(d // 5, 5), beta.reshape(d // 5, 5)
    std = np.abs(normals(4, 1, d // 5, 1)).astype(half)
    assert_computed_in_float32(cupy, half, "layers.normalization.groupnorm", pixels, *by_group, 1e-5)
    assert_computed_in_float32(cupy, half, "layers.normalization.groupnorm_grad", pixel_grads, pixels, std, by_group[0])
    assert_computed_in_float32(cupy, half, "losses.cross_entropy", x, labels, 0.1, 40)
    assert_computed_in_float32(cupy, half, "losses.soft_cross_entropy", x, np.abs(dout), 0.1, 40)


@pytest.mark.parametrize("layout", [np.asarray, channels_last])
@pytest.mark.parametrize("size", [(3, 3), (17, 17)])
def test_pooling_takes_half_types(cupy, half, layout, size):
    window = Window(size, (2, 2))
    x = layout(normals(2, 8, 20, 19)).astype(half)
    out, place = kernel("layers.pooling.window_max")(cupy.asarray(x), window)
    expected, expected_place = window_max(x.astype("float32"), window)
    np.testing.assert_array_equal(out.get().astype("float32"), expected)
    np.testing.assert_array_equal(place.get(), expected_place)
    dx = kernel("layers.pooling.window_max_grad")(out, place, (20, 19), window)
    truth = definition("layers.pooling.window_max_grad")(expected, expected_place, (20, 19), window)
    assert_rounded(dx, truth, half)


def test_a_mask_in_half_precision_drops_the_same(cupy, half):
    mask = kernel("random.dropout_mask")(1, 2, 3, 1001, 0.3, half.name).get()
    expected = random.dropout_mask(1, 2, 3, 1001, 0.3, "float32")
    np.testing.assert_array_equal(mask, expected.astype(half))


def test_normals_in_half_precision_are_rounded_at_the_end(cupy, half):
    received = kernel("random.normals")(1, 2, 3, 1001, 0.5, 2.0, half.name)
    assert_rounded(received, random.normals(1, 2, 3, 1001, 0.5, 2.0, "float64"), half)


# ---- the layers


def test_layers_and_their_gradients_are_numpys(cupy):
    x, images, labels = normals(30, 12), channels_last(normals(4, 12, 6, 6)), np.arange(30) % 12
    results = []
    for asarray in (np.asarray, cupy.asarray):
        gamma, beta = asarray(normals(12, seed=1)), asarray(normals(12, seed=2))
        received = list(losses.softmax_loss(asarray(x), asarray(labels), label_smoothing=0.1))
        for forward, backward, of, more in [
            (layers.layernorm_forward, layers.layernorm_backward, x, ({},)),
            (layers.spatial_groupnorm_forward, layers.spatial_groupnorm_backward, images, (3, {})),
            (layers.batchnorm_forward, layers.batchnorm_backward, x, ({"mode": "train"},)),
            (layers.spatial_batchnorm_forward, layers.spatial_batchnorm_backward, images, ({"mode": "train"},)),
        ]:
            out, cache = forward(asarray(of), gamma, beta, *more)
            received += [out, *backward(asarray(np.flip(of, axis=0).copy()), cache)]
        pool = {"pool_height": 3, "pool_width": 3, "stride": 2}
        out, cache = layers.max_pool_forward(asarray(images), pool)
        received += [out, layers.max_pool_backward(out, cache)]
        results.append([backends.to_numpy(array) for array in received])
    for host, device in zip(*results, strict=True):
        assert device.dtype == host.dtype
        np.testing.assert_allclose(device, host, rtol=1e-5, atol=1e-5 * np.abs(host).max())


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        *((kind, (5,)) for kind in (layers.LeakyReLU, layers.Sigmoid, layers.Tanh, layers.SiLU)),
        (lambda: layers.Scale(0.3), (5,)),
        (lambda: layers.AvgPool(2), (3, 4, 4)),
        (layers.GlobalAvgPool, (3, 4, 4)),
        (lambda: layers.MultiHeadAttention(2), (5, 8)),
        (lambda: layers.MultiHeadAttention(2, causal=True), (5, 8)),
    ],
)
def test_layers_whose_numbers_are_pythons_return_halves_as_they_take_them(cupy, layer, shape, half):
    if half == "bfloat16":
        pytest.importorskip("ml_dtypes")
    layer = layer()
    Model(Sequential(layer), shape, dtype=half, backend="cupy", rng=0)
    x = cupy.asarray(normals(3, *shape).astype(half))
    out, cache = layer.forward(x, train=True)
    dx, _ = layer.backward(out, cache)
    assert out.dtype == layer.infer(x).dtype == dx.dtype == np.dtype(half)
