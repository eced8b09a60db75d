"""What a training step does around the model, by the kernels for CuPy without a device: the batch and the update."""

import cublaslt_on_cpu
import numpy as np
import pytest
import stand_in

import test_cuda
from test_kernels import channels_last, normals
from xpnn import Model
from xpnn import backend as backends
from xpnn.data.augmentation import AlternatingFlip, Batch, Compose, Normalize, RandomCrop, RandomFlip
from xpnn.kernels.updates import UPDATES
from xpnn.layers import Affine, BatchNorm, Flatten, ReLU, Sequential, Standardize, batchnorm_forward
from xpnn.optim import Optimizer, ParamGroup, newton_schulz
from xpnn.optim.norms import clip_factor
from xpnn.optim.rules import RULES
from xpnn.parameters import Parameters
from xpnn.random import Generator
from xpnn.training.loss_scale import LossScale

cupy, ours = test_cuda.cupy, test_cuda.ours  # the fixture, and the table's kernels

C_TYPES = {"float32": "float", "float64": "double", "float16": "__half", "bfloat16": "__nv_bfloat16"}
HALVES = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # half the spacing at 1


def launched():
    """The kernels of the launches since the last call."""
    names = [launch.kernel for launch in stand_in.launches]
    stand_in.launches.clear()
    return names


def of_half(name):
    if name == "bfloat16":
        pytest.importorskip("ml_dtypes")
    return np.dtype(name)


# ---- update rules


@pytest.mark.parametrize("rule", UPDATES)
def test_a_step_is_one_launch_with_its_condition_and_its_factor(cupy, rule):
    w, dw = cupy.ones(3000, "float32"), cupy.ones(3000, "float32")
    config = {**RULES[rule].defaults, **{key: cupy.zeros(3000, "float32") for key in RULES[rule].state}}
    ours()[f"optim.in_place.{rule}"](w, dw, config, cupy.array(True), cupy.array(0.5, dtype="float32"))
    assert launched() == [f"{UPDATES[rule].loop}<float>"]
    assert (w.get() < 1).all()


def test_a_step_that_the_condition_forbids_counts(cupy):
    state = {"v": cupy.ones(5), "a": cupy.ones(5)}
    w, config = cupy.ones(5), {**RULES["adam"].defaults, **state, "t": 2}
    ours()["optim.in_place.adam"](w, cupy.full(5, np.nan), config, cupy.array(False))
    assert config["t"] == 3
    assert w.get().tolist() == state["v"].get().tolist() == state["a"].get().tolist() == [1] * 5


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("rule", UPDATES)
def test_in_half_precision_a_step_only_rounds_its_results(cupy, rule, half):
    dtype, results = of_half(half), []
    arrays = [normals(1000, seed=seed).astype(dtype) for seed in range(2 + len(UPDATES[rule].state))]
    for computed in (dtype, np.dtype("float32")):
        w, dw, *state = (cupy.asarray(x.astype(computed)) for x in arrays)
        config = {**RULES[rule].defaults, "learning_rate": 0.1}
        config |= {key: abs(x) for key, x in zip(UPDATES[rule].state, state, strict=True)}
        results.append(ours()[f"optim.in_place.{rule}"](w, dw, config, None, cupy.array(0.3, dtype="float32")))
    for received, expected in zip(*results, strict=True):
        assert received.dtype == dtype
        np.testing.assert_allclose(
            received.get().astype("float32"), expected.get(), rtol=1.01 * HALVES[half], atol=2.0**-24
        )


@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("rule", ["nesterov", "adamw"])
def test_an_optimizer_steps_as_on_numpy(cupy, rule, clip_norm):
    shapes, results = {"a.W": (30, 40), "a.b": (40,), "b.W": (40, 3), "b.b": (3,)}, []
    size = 30 * 40 + 40 + 40 * 3 + 3
    for name in ("numpy", "cupy"):
        backend = backends.get(name)
        params = Parameters(shapes, backend)
        params.flat[...] = backend.asarray(normals(size))
        groups = [ParamGroup("*.b", learning_rate=0.5)]
        optimizer = Optimizer(params, rule, groups=groups, clip_norm=clip_norm, learning_rate=0.1)
        grads = params.like()
        for seed in (1, 2, 3):
            grads.flat[...] = backend.asarray(normals(size, seed=seed))
            optimizer.step(grads, where=backend.namespace.asarray(True))
        results.append(backend.to_numpy(params.flat))
    np.testing.assert_allclose(*results, rtol=0, atol=16 * 2.0**-23)  # three steps of a few roundings each
    launched()
    optimizer.step(grads, where=cupy.array(False))
    np.testing.assert_array_equal(params.flat.get(), results[1])
    clipping = [] if clip_norm is None else ["squares<float>", "clip_factor<float>"]
    assert launched() == [*clipping, f"{UPDATES[rule].loop}<float>"]


def of_many_groups(backend, rules, dtype="float32"):
    """Parameters of odd sizes with a group of their own for each of the rules, dealt out in turn."""
    shapes = {f"{i}.{i % len(rules)}": (1 + 7 * i % 61,) for i in range(100)}
    params = Parameters(shapes, backend, dtype)
    params.flat[...] = backend.asarray(normals(params.flat.shape[0]), dtype)
    groups = [ParamGroup(f"*.{i}", rule, learning_rate=0.1 / (i + 1)) for i, rule in enumerate(rules)]
    return Optimizer(params, "sgd", groups=groups, learning_rate=0.1)


@pytest.mark.parametrize(
    ("name", "rules", "launches"),
    [
        ("float16", 5 * ["nesterov"], ["nesterov", "nesterov"]),  # 100 segments, of which a launch has 72
        ("float32", ["adam", "adamw", "sgd"], ["adam", "sgd"]),  # 67 of one loop
        ("float64", ["adamw", "rmsprop"], ["adam", "rmsprop"]),
        ("float32", 12 * ["lion"], 2 * ["lion"]),  # a launch has eight groups
    ],
)
def test_groups_share_a_launch_whatever_their_settings(cupy, name, rules, launches):
    results = []
    for library in ("numpy", "cupy"):
        backend = backends.get(library)
        optimizer = of_many_groups(backend, rules, name)
        grads = optimizer.params.like()
        for seed in (1, 2):
            launched()
            grads.flat[...] = backend.asarray(normals(grads.flat.shape[0], seed=seed), name)
            optimizer.step(grads)
        results.append(backend.to_numpy(optimizer.params.flat))
    assert sorted(launched()) == [f"{launch}<{C_TYPES[name]}>" for launch in launches]
    eps = np.finfo(name).eps
    np.testing.assert_allclose(*results, rtol=16 * eps, atol=16 * eps)


def test_a_recorded_step_of_groups_takes_each_replays_numbers(cupy):
    results, condition = [], cupy.array(True)
    for recorded in (False, True):
        optimizer = of_many_groups(backends.get("cupy"), ["adam", "adamw", "sgd"])
        grads = optimizer.params.like()
        grads.flat[...] = cupy.asarray(normals(grads.flat.shape[0], seed=1))

        def step(optimizer=optimizer, grads=grads):
            return optimizer.step(grads, where=condition)

        step()
        graph = ours()["recording.record"](step) if recorded else step
        for rate in (0.5, 0.25, 0.125):
            optimizer.learning_rate = rate
            graph()
        results.append(optimizer.params.flat.get())
    np.testing.assert_array_equal(*results)


# ---- Muon


@pytest.fixture
def with_cublaslt(cupy):
    cublaslt_on_cpu.install()
    return cupy


def muon_config(velocity, **settings):
    return {**RULES["muon"].defaults, **settings, "velocity": velocity}


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (40, 5)])
@pytest.mark.parametrize("half", ["", "float16"])
def test_a_step_of_muon_is_three_launches_and_three_products_a_step(with_cublaslt, shape, half):
    cupy, settings = with_cublaslt, {"newton_schulz_steps": 3, "newton_schulz_dtype": half, "normalize_weights": 1}
    w, dw, velocity = (cupy.asarray(normals(*shape, seed=seed)) for seed in range(3))
    condition, factor = cupy.array(True), cupy.array(0.5, dtype="float32")
    stand_in.computed.clear()
    ours()["optim.in_place.muon"](w, dw, muon_config(velocity, **settings), condition, factor)
    products = "__half" if half else "float"
    assert launched() == ["momentum<float>", f"normalized<float, {products}>", f"updated<float, {products}>"]
    assert len(cublaslt_on_cpu.calls) == 3 * 3
    assert stand_in.computed == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("normalize", [0, 1])
def test_a_step_of_muon_that_the_condition_forbids_changes_nothing(with_cublaslt, value, normalize):
    cupy = with_cublaslt
    before = normals(12, 30), normals(12, 30, seed=1)
    w, velocity = map(cupy.asarray, before)
    dw = cupy.asarray(normals(12, 30, seed=2))
    dw[3, 4] = value
    config = muon_config(velocity, normalize_weights=normalize, weight_decay=0.5)
    for factor in (None, cupy.array(value, dtype="float32")):
        ours()["optim.in_place.muon"](w, dw, config, cupy.array(False), factor)
        for array, expected in zip((w, config["velocity"]), before, strict=True):
            np.testing.assert_array_equal(array.get(), expected)
    ours()["optim.in_place.muon"](w, dw, config, cupy.array(True))
    assert np.isnan(w.get()).all()


@pytest.mark.parametrize("kept", HALVES)
def test_in_half_precision_muon_only_rounds_its_results(with_cublaslt, kept):
    """Products in a dtype of their own, so that they are the same."""
    cupy, dtype, results = with_cublaslt, of_half(kept), []
    arrays = [(8 * normals(20, 33, seed=seed)).astype(dtype) for seed in range(3)]
    for computed in (dtype, np.dtype("float32")):
        w, dw, velocity = (cupy.asarray(x.astype(computed)) for x in arrays)
        config = muon_config(velocity, newton_schulz_dtype=kept, normalize_weights=1, learning_rate=0.1)
        results.append(ours()["optim.in_place.muon"](w, dw, config, None, cupy.array(0.3, dtype="float32")))
    for received, expected in zip(*results, strict=True):
        assert received.dtype == dtype
        np.testing.assert_allclose(
            received.get().astype("float32"), expected.get(), rtol=1.01 * HALVES[kept], atol=2.0**-24
        )


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("size", [0.0, 1e-20, 1.0, 1e15])
@pytest.mark.parametrize("shape", [(24, 60), (60, 24)])
def test_products_of_muon_in_half_precision_are_those_of_the_definition(with_cublaslt, half, size, shape):
    of_half(half)
    cupy, settings = with_cublaslt, {"learning_rate": 1.0, "momentum": 0.0, "newton_schulz_dtype": half}
    w, dw = cupy.zeros(shape, "float32"), size * normals(*shape)
    ours()["optim.in_place.muon"](w, cupy.asarray(dw), muon_config(cupy.zeros(shape, "float32"), **settings))
    scale = max(1, shape[1] / shape[0]) ** 0.5
    single = newton_schulz(dw)
    # Singular values differ by some roundings, which the slope at zero lifts; vectors do not.
    np.testing.assert_allclose(-w.get() / scale, single, rtol=0, atol=8 * HALVES[half])
    values = np.linalg.svd(w.get() / scale, compute_uv=False)
    if size >= 1:
        assert 0.68 - 2 * HALVES[half] < values.min() < values.max() < 1.2025 + 2 * HALVES[half]


def test_a_recorded_step_of_muon_takes_each_replays_numbers(with_cublaslt):
    cupy, results, condition = with_cublaslt, [], with_cublaslt.array(True)
    for recorded in (False, True):
        w, dw, velocity = (cupy.asarray(normals(12, 30, seed=seed)) for seed in range(3))
        config = muon_config(velocity, weight_decay=0.5, normalize_weights=1)

        def step(w=w, dw=dw, config=config):
            return ours()["optim.in_place.muon"](w, dw, config, condition)

        step()
        graph = ours()["recording.record"](step) if recorded else step
        for rate, momentum in ((0.5, 0.25), (0.25, 0.75)):
            config.update(learning_rate=rate, momentum=momentum)
            graph()
        results.append([x.get() for x in (w, velocity)])
    for once, again in zip(*results, strict=True):
        np.testing.assert_array_equal(once, again)


@pytest.mark.parametrize("by_cublaslt", [True, False])
def test_muon_can_be_recorded_as_far_as_products_can(cupy, by_cublaslt):
    if by_cublaslt:
        cublaslt_on_cpu.install()
    model = Model(Sequential(Flatten(), Affine(4), Affine(3)), (2, 3), backend="cupy")
    groups = [ParamGroup("*.b", "nesterov")]
    assert Optimizer(model.params, "muon", groups=groups).unrecordable is None
    assert (ours()["recording.obstacle"]() is None) == by_cublaslt


# ---- norms


def test_a_norm_is_two_launches_and_always_the_same(cupy):
    x = cupy.asarray(normals(300_000))
    first, second = (ours()["optim.norms.sum_of_squares"](x) for _ in range(2))
    assert launched() == 2 * ["squares<float>", "sum<float>"]
    assert first.shape == ()
    assert first.get() == second.get()


@pytest.mark.parametrize("half", HALVES)
def test_a_norm_of_half_precision_is_single_and_overflows_no_earlier(cupy, half):
    x = np.full(70_000, 300, of_half(half))
    out = ours()["optim.norms.sum_of_squares"](cupy.asarray(x))
    assert out.dtype == np.float32
    np.testing.assert_allclose(out.get(), 70_000 * float(x[0]) ** 2, rtol=16 * 2.0**-23)


def test_what_is_no_number_makes_the_factor_none(cupy):
    x = normals(100_000)
    x[77_777] = np.nan
    assert np.isnan(ours()["optim.norms.clip_factor"]([cupy.asarray(x)], 1.0).get())


def test_gradients_of_two_half_types_are_clipped_together(cupy):
    arrays = [cupy.asarray(normals(50).astype(of_half(half))) for half in HALVES]
    out = ours()["optim.norms.clip_factor"](arrays, 0.5)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out.get(), clip_factor([x.get().astype("float32") for x in arrays], 0.5), rtol=1e-6)


# ---- images


def batches(backend, indices):
    for epoch in range(2):
        rng = Generator(3).spawn(epoch)
        yield Batch(None, backend.asarray(indices), rng, epoch=epoch, num_examples=20)


@pytest.mark.parametrize("layout", [np.asarray, channels_last])
@pytest.mark.parametrize("flip", [RandomFlip(), AlternatingFlip()])
@pytest.mark.parametrize("then", [[], [Normalize((125.3, 123.0, 113.9), 62)]])
@pytest.mark.parametrize("crop", [RandomCrop(4), RandomCrop(4, "zero")])
@pytest.mark.parametrize("is_first", [True, False])
def test_gather_crop_flip_and_normalize_are_one_launch(cupy, layout, flip, then, crop, is_first):
    x = layout(np.random.default_rng(0).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8))
    moves = [flip, crop] if is_first else [crop, flip]
    indices, augment, results = np.random.default_rng(1).permutation(20)[:7], Compose(moves + then), []
    data = cupy.asarray(x)
    for batch in batches(backends.get("cupy"), indices):
        launched()
        stand_in.computed.clear()
        out = augment(data, batch, batch.indices)
        assert [name for name in launched() if name != "integers"] == [
            "pick<unsigned char, float, true>" if then else "pick<unsigned char, unsigned char, false>"
        ]
        assert max(stand_in.computed, default=0) <= len(indices)  # the coins of alternating flips
        assert out.strides == tuple(out.itemsize * stride for stride in x.strides)
        results.append(out.get())
    for out, batch in zip(results, batches(backends.get("numpy"), indices), strict=True):
        np.testing.assert_array_equal(out, augment(x, batch, batch.indices))


@pytest.mark.parametrize("into", ["float32", "float16"])
@pytest.mark.parametrize("stored", ["int16", "int32", "bool"])
def test_of_other_integers_no_more_than_the_batch_is_cast(cupy, stored, into):
    x = np.random.default_rng(0).integers(-20_000, 20_000, (20, 3, 8, 7)).astype(stored)
    augment, results = Compose([RandomCrop(2), Normalize((100, 110, 120), 60)]), []
    for backend in (backends.get("numpy"), backends.get("cupy")):
        (batch, *_) = batches(backend, np.arange(7) * 2)
        batch.dtype = into
        data = backend.asarray(x)
        stand_in.computed.clear()
        results.append(backend.to_numpy(augment(data, batch, batch.indices)))
    assert max(stand_in.computed) <= x[:7].size
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("type_", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("layout", [np.asarray, channels_last])
def test_bytes_become_a_nets_numbers_in_one_launch_with_their_channels_last(cupy, layout, type_):
    if type_ == "bfloat16":
        pytest.importorskip("ml_dtypes")
    x = layout(np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8))
    statistics, results = np.full((3, 1, 1), 121.3), []
    for backend in ("numpy", "cupy"):
        net = Sequential(Standardize(statistics, statistics / 2), Flatten())
        model = Model(net, (3, 32, 32), backend=backend, dtype="float32" if backend == "numpy" else type_)
        images = model._enter(backends.get(backend).asarray(x))
        launched()
        results.append(net.layers["standardize1"].forward(images)[0])
    expected, received = results
    assert launched() == [f"pick<unsigned char, {C_TYPES[type_]}, true>"]
    assert received.transpose(0, 2, 3, 1).flags.c_contiguous
    assert received.dtype == np.dtype(type_)
    if type_ == "float64":
        np.testing.assert_array_equal(received.get(), (x - statistics) / (statistics / 2))
    else:
        np.testing.assert_array_equal(received.get(), expected.astype(type_))


def test_from_indices_to_a_nets_numbers_images_are_moved_twice(cupy):
    """Once as bytes, and once by the net's first layer. Random numbers are drawn before. That is all."""
    data = cupy.array(np.random.default_rng(0).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8))
    model = Model(Sequential(Standardize(121.0, 60.0), Flatten()), (3, 32, 32), backend="cupy")
    augment = Compose([RandomCrop(4), RandomFlip()])
    (batch, *_) = batches(backends.get("cupy"), np.arange(7))
    launched()
    stand_in.computed.clear()
    images = augment(data, batch, batch.indices)
    model.net.layers["standardize1"].forward(model._enter(images))
    assert launched() == [
        *("integers", "integers"),
        *("pick<unsigned char, unsigned char, false>", "pick<unsigned char, float, true>"),
    ]
    assert stand_in.computed == []


# ---- whether all is numbers


def test_gradients_of_a_scaled_loss_are_looked_at_and_its_scale_adjusted_by_two_launches(cupy):
    scales = []
    for backend in (backends.get("numpy"), backends.get("cupy")):
        scale, grads = LossScale(backend), Parameters({"w": (70_000,)}, backend)
        for step in range(8):
            grads.flat[...] = 1.0
            grads.flat[50_000] = [1.0, np.inf, np.nan, 1.0][min(step, 3)]
            launched()
            fits = scale.update(grads)
            arrays = {name: float(array) for name, array in scale.arrays.items()}
            scales.append((bool(fits), *arrays.values()))
    assert launched() == ["are_finite<float>", "adjust"]
    assert scales[:8] == scales[8:]
    assert [fits for fits, *_ in scales[:4]] == [True, False, False, True]


def test_the_scale_of_a_loss_goes_out_of_the_gradients_in_one_launch(cupy):
    model = Model(Sequential(Flatten(), Affine(3)), (5,), dtype="float16", backend="cupy")
    launched()
    X, y = cupy.asarray(normals(4, 5)), cupy.asarray(np.arange(4) % 3)
    _, plain = model.loss(X, y)
    plain = {name: grad.get() for name, grad in plain.items()}
    launched()
    _, grads = model.loss(X, y, scale=cupy.array(256.0, dtype="float32"))
    assert [name for name in launched() if name.startswith("unscale")] == ["unscale<float, float>"]
    for name, grad in grads.items():
        np.testing.assert_allclose(grad.get(), plain[name], rtol=2.0**-9, atol=1e-6)


# ---- arrays of other types


@pytest.mark.parametrize("rule", ["muon", "nesterov"])
@pytest.mark.parametrize(("kept", "of_grads"), [("float32", "float64"), ("float64", "float32")])
def test_gradients_of_another_dtype_are_clipped_as_on_numpy(cupy, rule, kept, of_grads):
    results = []
    for name in ("numpy", "cupy"):
        backend = backends.get(name)
        params, grads = (Parameters({"w": (8, 5)}, backend, dtype) for dtype in (kept, of_grads))
        params.flat[...], grads.flat[...] = (backend.asarray(normals(40, seed=seed)) for seed in (1, 2))
        optimizer = Optimizer(params, rule, clip_norm=0.5, learning_rate=0.1)
        optimizer.step(grads)
        assert optimizer.configs()["w"]["velocity"].dtype == params.flat.dtype
        results.append(backend.to_numpy(params.flat))
    np.testing.assert_allclose(*results, rtol=0, atol=32 * 2.0**-23)  # as of a step of Muon in float32


@pytest.mark.parametrize("of_grads", ["float64", "float16"])
def test_gradients_may_be_wanted_in_another_dtype(cupy, of_grads):
    results = []
    for name in ("numpy", "cupy"):
        backend = backends.get(name)
        model = Model(Sequential(Affine(7), ReLU(), BatchNorm(), Affine(3)), (5,), backend=name, rng=0)
        grads = Parameters(model.params.shapes, backend, of_grads)
        model.loss(backend.asarray(normals(4, 5)), backend.asarray(np.arange(4) % 3), grads=grads)
        results.append(backend.to_numpy(grads.flat))
    np.testing.assert_allclose(*results, rtol=0, atol=2.0**-9 if of_grads == "float16" else 1e-6)


def test_running_statistics_stay_of_the_dtype_of_the_rows(cupy):
    parameters = cupy.ones(4, "float64"), cupy.zeros(4, "float64")
    bn_param = {"mode": "train"}
    batchnorm_forward(cupy.asarray(normals(9, 4)), *parameters, bn_param)
    assert bn_param["running_mean"].dtype == bn_param["running_var"].dtype == np.float32
