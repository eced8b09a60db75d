"""A net, its parameters in one buffer, and a loss."""

import copy
import pickle

import numpy as np
import pytest

from oracles import EPS, normals
from xpnn import backend as backends
from xpnn.backend import namespace
from xpnn.errors import BackendUnavailable, CheckpointError, SettingError
from xpnn.layers import Affine, BatchNorm, Dropout, Layer, Linear, ReLU, Sequential, Spec, Standardize
from xpnn.layers.initializers import constant, normal
from xpnn.losses import softmax_loss, svm_loss
from xpnn.models import Airbench, FullyConnectedNet, Model, ResNet, ThreeLayerConvNet, VisionTransformer
from xpnn.models.model import best_labels
from xpnn.optim import Optimizer
from xpnn.parameters import Parameters

X = normals((6, 4), 20)
Y = [0, 2, 1, 2, 0, 1]


def small_net():
    return Sequential(Affine(5, normal(1.0)), BatchNorm(), ReLU(), Dropout(0.25), Affine(3, normal(1.0)))


def small_model(kind, dtype="float64", net=None, **options):
    return Model(net or small_net(), (4,), dtype=dtype, backend=kind.backend, rng=0, **options)


def snapshot(kind, arrays):
    return {name: kind.to_numpy(array).copy() for name, array in arrays.items()}


def assert_arrays(kind, received, expected):
    assert received.keys() == expected.keys()
    for name, array in expected.items():
        kind.assert_close(received[name], array)


# Building


def test_parameters_are_named_by_the_path_to_them(kind, dtype):
    model = small_model(kind, dtype)
    assert list(model.params) == [
        "affine1.W",
        "affine1.b",
        "batchnorm1.gamma",
        "batchnorm1.beta",
        "affine2.W",
        "affine2.b",
    ]
    assert list(model.state) == ["batchnorm1.running_mean", "batchnorm1.running_var"]
    kind.check(model.params.flat, dtype, (4 * 5 + 5 + 5 + 5 + 5 * 3 + 3,))


def test_nested_containers_make_longer_paths(kind):
    net = Sequential(Sequential(Affine(5), Sequential(Affine(4), name="inner")), ReLU(), Affine(3, name="last"))
    model = small_model(kind, net=net)
    assert list(model.params) == [
        "sequential1.affine1.W",
        "sequential1.affine1.b",
        "sequential1.inner.affine1.W",
        "sequential1.inner.affine1.b",
        "last.W",
        "last.b",
    ]


def test_nesting_changes_nothing_but_names(kind, dtype):
    flat = small_model(kind, dtype, Sequential(Affine(5), ReLU(), Affine(3)))
    nested = small_model(kind, dtype, Sequential(Sequential(Affine(5), ReLU()), Sequential(Affine(3))))
    x, y = kind(X, dtype), kind(Y)
    (loss, grads), (nested_loss, nested_grads) = flat.loss(x, y), nested.loss(x, y)
    kind.assert_close(nested_loss, kind.to_numpy(loss))
    kind.assert_close(nested_grads.flat, kind.to_numpy(grads.flat))


def test_a_single_layer_is_a_net(kind):
    model = small_model(kind, net=Affine(3))
    assert list(model.params) == ["W", "b"]
    kind.check(model.loss(kind(X)), "float64", (6, 3))


def test_a_layer_sees_its_parameters_as_views(kind):
    net = small_net()
    model = small_model(kind, net=net)
    model.params.flat[...] = kind(np.full(model.params.flat.shape, 2.0))
    kind.assert_close(net.layers["affine1"].params["W"], np.full((4, 5), 2.0))


def test_the_output_shape_is_known_without_running(kind):
    assert small_model(kind).output_shape == (3,)


def test_the_repr_tells_shapes_size_and_backend(kind):
    assert repr(small_model(kind)) == f"<Model (4,) -> (3,), 53 parameters, {kind.backend}>"


@pytest.mark.parametrize(
    ("net", "layer"),
    [
        (lambda: Sequential(BatchNorm()), "batchnorm1"),
        (lambda: Sequential(ReLU(), BatchNorm(name="norm")), "norm"),
        (lambda: Sequential(ReLU(), Sequential(ReLU(), BatchNorm()), ReLU()), "sequential1.batchnorm1"),
    ],
)
def test_a_shape_that_does_not_fit_is_reported_when_the_net_is_built(net, layer):
    with pytest.raises(
        ValueError, match=rf"^{layer}: expected input of shape \(D,\) or \(C, H, W\); received \(3, 8\)"
    ):
        Model(net(), (3, 8), rng=0)


def test_an_initializer_of_another_shape_is_reported_with_the_parameters_name():
    with pytest.raises(ValueError, match=r"affine1\.W"):
        Model(Sequential(Affine(3, constant(np.ones((2, 4, 3))))), (4,), rng=0)


def test_a_layer_that_stands_twice_is_refused():
    relu = ReLU()
    with pytest.raises(ValueError, match="expected each layer object once"):
        Model(Sequential(relu, Affine(3), relu), (4,), rng=0)


def test_a_layer_that_stands_twice_in_nested_containers_is_refused():
    affine = Affine(4)
    with pytest.raises(ValueError, match="expected each layer object once|expected distinct names"):
        Model(Sequential(Sequential(affine), Sequential(affine)), (4,), rng=0)


@pytest.mark.parametrize("names", [("a", "a"), ("a.b", "c")])
def test_names_that_stand_twice_or_have_dots_are_refused(names):
    with pytest.raises(ValueError, match="sequential: expected distinct names without dots"):
        Sequential(*(ReLU(name=name) for name in names))


def test_an_unnamed_layer_takes_a_name_that_is_free():
    net = Sequential(Affine(3, name="affine2"), Affine(3))
    assert len(net.layers) == 2


def test_layers_of_one_container_serve_in_another():
    block = Sequential(Sequential(Affine(5), ReLU()), Affine(3)).layers["sequential1"]
    again = Sequential(*block.layers.values())
    assert list(Model(again, (4,), rng=0).params) == ["affine1.W", "affine1.b"]


def test_a_container_of_nothing_is_refused():
    with pytest.raises(ValueError, match="sequential: expected at least one layer; received none"):
        Sequential()


def test_no_units_are_refused():
    with pytest.raises(ValueError, match="affine: expected units, a whole number of at least 1, .*; received 0"):
        Affine(0)


def test_a_backend_that_is_missing_is_an_error():
    with pytest.raises(BackendUnavailable, match="backend numpy:7: NumPy has no device '7'"):
        Model(Affine(3), (4,), backend="numpy:7", rng=0)


# The loss


def test_without_labels_the_loss_is_the_scores(kind, dtype):
    model = small_model(kind, dtype, Affine(3, normal(1.0)))
    scores = model.loss(kind(X, dtype))
    w = kind.to_numpy(model.params["W"]).astype("float64")
    kind.check(scores, dtype, (6, 3))
    kind.assert_close(scores, X.astype(dtype) @ w, atol=20 * EPS[dtype])  # sums of four numbers of size up to four


def test_with_labels_it_is_the_mean_loss_and_a_gradient_for_each_parameter(kind, dtype):
    model = small_model(kind, dtype)
    loss, grads = model.loss(kind(X, dtype), kind(Y))
    kind.check(loss, dtype, ())
    assert list(grads) == list(model.params)
    for name, grad in grads.items():
        kind.check(grad, dtype, tuple(model.params[name].shape))


@pytest.mark.parametrize("loss_function", [softmax_loss, svm_loss])
def test_the_loss_function_is_the_one_given(kind, loss_function):
    model = small_model(kind, net=Affine(3, normal(1.0)), loss=loss_function)
    x, y = kind(X), kind(Y)
    expected, dscores = loss_function(model.loss(x), y)
    loss, grads = model.loss(x, y)
    kind.assert_close(loss, kind.to_numpy(expected))
    kind.assert_close(grads["b"], kind.to_numpy(dscores).sum(0), atol=6 * EPS["float64"])  # a sum of six


def test_each_call_returns_gradients_of_its_own(kind):
    model = small_model(kind, net=Affine(3))
    _, first = model.loss(kind(X), kind(Y))
    before = snapshot(kind, first)
    _, second = model.loss(kind(-X), kind(Y))
    assert_arrays(kind, first, before)
    assert (kind.to_numpy(second["W"]) != before["W"]).any()


@pytest.mark.parametrize("reg", [0.0, 0.5])
def test_gradients_are_written_into_a_buffer_that_is_given(kind, reg):
    model = small_model(kind, net=Affine(3), reg=reg)
    buffer = model.params.like()
    buffer.flat[...] = kind(np.full(15, 99.0))  # what an earlier step left
    _, grads = model.loss(kind(X), kind(Y), grads=buffer)
    assert grads is buffer
    kind.assert_close(buffer.flat, kind.to_numpy(model.loss(kind(X), kind(Y))[1].flat))


def test_the_penalty_is_half_reg_times_the_sum_of_squared_weights(kind, dtype):
    plain, penalized = (
        small_model(
            kind, dtype, net=Sequential(Affine(2, constant(2.0)), BatchNorm(), Affine(3, constant(1.0))), reg=reg
        ).loss(kind(X, dtype), kind(Y))
        for reg in (0.0, 0.25)
    )
    expected = 0.5 * 0.25 * (8 * 2.0**2 + 6 * 1.0**2)
    assert float(penalized[0]) - float(plain[0]) == pytest.approx(expected, abs=8 * EPS[dtype])  # of a loss below 8
    difference = kind.to_numpy(penalized[1].flat) - kind.to_numpy(plain[1].flat)
    weights = np.concatenate([np.full(8, 0.5), np.zeros(6), np.full(6, 0.25), np.zeros(3)])
    np.testing.assert_allclose(difference, weights, rtol=0, atol=4 * EPS[dtype])  # of gradients below 4


def test_the_batch_and_the_labels_are_not_modified(kind, dtype):
    model = small_model(kind, dtype, reg=0.5)
    x, y = kind.writable(X, dtype), kind.writable(Y)
    model.loss(x, y)
    kind.assert_close(x, X.astype(dtype))
    kind.assert_close(y, Y)


def test_a_loss_does_not_change_the_parameters(kind):
    model = small_model(kind, reg=0.5)
    before = snapshot(kind, model.params)
    model.loss(kind(X), kind(Y))
    model.loss(kind(X))
    assert_arrays(kind, model.params, before)


def test_bytes_are_cast_to_the_models_dtype(kind, dtype):
    model = small_model(kind, dtype, net=Affine(3, constant(1.0)))
    scores = model.loss(kind([[250, 250, 250, 250]], "uint8"))
    kind.check(scores, dtype)
    kind.assert_close(scores, [[1000.0, 1000.0, 1000.0]])


def test_the_first_layers_need_not_learn(kind, dtype):
    net = Sequential(Standardize(1.0, 2.0), ReLU(), Affine(3, normal(1.0)))
    model = small_model(kind, dtype, net=net)
    _, grads = model.loss(kind(X, dtype), kind(Y))
    rectified = np.maximum((X.astype(dtype) - 1.0) / 2.0, 0)
    _, expected = small_model(kind, dtype, net=Sequential(Affine(3, normal(1.0)))).loss(kind(rectified, dtype), kind(Y))
    kind.assert_close(
        grads.flat, kind.to_numpy(expected.flat), atol=8 * EPS[dtype]
    )  # a few roundings of numbers near 1


@pytest.mark.parametrize("other", ["float8_e4m3", np.int8, "int64"])
def test_a_model_of_another_dtype_is_refused(kind, other):
    expected = r"model: expected a dtype out of float32, float64, float16, bfloat16; received '.*\d'"
    with pytest.raises(SettingError, match=expected):
        small_model(kind, other)


def test_a_net_without_parameters_has_no_gradients(kind):
    loss, grads = small_model(kind, net=Sequential(ReLU())).loss(kind(X), kind([0, 1, 2, 3, 0, 1]))
    kind.check(loss, "float64", ())
    assert len(grads) == 0


def test_a_batch_of_none_has_no_scores(kind):
    kind.check(small_model(kind).loss(kind(np.zeros((0, 4)))), "float64", (0, 3))


@pytest.mark.parametrize("shape", [(6, 5), (4,), (6, 2, 3), ()])
def test_a_batch_of_another_shape_is_refused(kind, shape):
    with pytest.raises(ValueError, match=r"model: expected X of shape \(N, 4\); received") as error:
        small_model(kind).loss(kind(np.zeros(shape)))
    assert str(error.value).endswith(f"received {shape}")


def test_images_of_another_order_of_axes_are_refused(kind):
    model = Model(Sequential(ReLU()), (3, 8, 8), backend=kind.backend, rng=0)
    with pytest.raises(ValueError, match=r"model: expected X of shape \(N, 3, 8, 8\); received \(2, 8, 8, 3\)"):
        model.loss(kind(np.zeros((2, 8, 8, 3))))


def test_a_batch_of_another_kind_is_refused():
    strict = backends.get("array-api-strict:device1")
    if not strict.is_available():
        pytest.skip(strict.reason)
    model = Model(Affine(3), (4,), backend=strict, rng=0)
    with pytest.raises(
        TypeError, match=r"model: expected X of backend array-api-strict:device1; received numpy\.ndarray"
    ):
        model.loss(X)


def test_a_batch_on_another_device_is_refused():
    strict = backends.get("array-api-strict:device1")
    if not strict.is_available():
        pytest.skip(strict.reason)
    model = Model(Affine(3), (4,), backend=strict, rng=0)
    with pytest.raises(TypeError, match=r"received (x: )?array_api_strict\.Array \(device CPU_DEVICE\)"):
        model.loss(backends.get("array-api-strict").asarray(X))


def test_a_list_is_refused(kind):
    with pytest.raises(TypeError, match="model: expected X of backend .*; received list"):
        small_model(kind).loss([[1.0, 2.0, 3.0, 4.0]])


def test_labels_are_those_of_the_scores_batch_by_batch(kind):
    sizes = []

    def score(x):
        sizes.append(x.shape[0])
        return -x

    labels, at_a_time = best_labels(score, kind(X), 4, kind.backend)
    assert sizes == [4, 2]
    assert at_a_time == 4
    kind.assert_close(kind.check(labels, shape=(6,)), X.argmin(axis=1))


def test_predicting_nothing_gives_no_labels(kind):
    kind.check(small_model(kind).predict(kind(np.zeros((0, 4)))), shape=(0,))


def test_predict_gives_the_label_with_the_highest_score(kind):
    model = small_model(kind, net=Affine(3, normal(1.0)))
    labels = model.predict(kind(X), batch_size=4)
    kind.check(labels, shape=(6,))
    kind.assert_close(labels, kind.to_numpy(model.loss(kind(X))).argmax(1))


# Setting parameters


def test_params_may_be_set_from_a_dict_of_any_kind(kind, dtype):
    model = small_model(kind, dtype, net=Affine(3))
    model.params = {"W": np.full((4, 3), 2.0), "b": np.array([1.0, 2.0, 3.0])}
    kind.check(model.params.flat, dtype)
    kind.assert_close(model.loss(kind([[1.0, 1.0, 1.0, 1.0]], dtype)), [[9.0, 10.0, 11.0]])


def test_setting_params_copies(kind):
    model = small_model(kind, net=Affine(3))
    w = kind.writable(np.ones((4, 3)))
    model.params = {"W": w, "b": kind(np.zeros(3))}
    w[...] = 5.0
    kind.assert_close(model.params["W"], np.ones((4, 3)))


def test_setting_a_parameter_that_the_model_lacks_is_refused(kind):
    with pytest.raises(KeyError, match="expected one of W, b; received 'gamma'"):
        small_model(kind, net=Affine(3)).params = {"gamma": kind(np.ones(3))}


def test_augmented_assignment_reaches_the_layers(kind):
    model = small_model(kind, net=Affine(3, constant(1.0)))
    model.params["W"] *= 2.0
    kind.assert_close(model.loss(kind([[1.0, 1.0, 1.0, 1.0]])), [[8.0, 8.0, 8.0]])


# Saving and moving


def trained(kind, dtype="float64", **options):
    """A model whose running statistics are not their first values."""
    model = small_model(kind, dtype, **options)
    for _ in range(3):
        model.loss(kind(X, dtype), kind(Y))
    return model


def test_state_dict_holds_parameters_and_state(kind):
    model = trained(kind)
    assert list(model.state_dict()) == [*model.params, *model.state]


def test_a_state_dict_makes_another_model_the_same(kind, dtype):
    model, other = trained(kind, dtype), Model(small_net(), (4,), dtype=dtype, backend=kind.backend, rng=1)
    assert (kind.to_numpy(other.loss(kind(X, dtype))) != kind.to_numpy(model.loss(kind(X, dtype)))).any()
    other.load_state_dict(model.state_dict())
    kind.assert_close(other.loss(kind(X, dtype)), kind.to_numpy(model.loss(kind(X, dtype))))


def test_a_state_dict_may_come_from_any_backend_and_dtype(kind, dtype):
    model = small_model(kind, dtype)
    arrays = {name: np.asarray(array) for name, array in snapshot(kind, trained(kind, dtype).state_dict()).items()}
    model.load_state_dict({name: array.astype("float64") for name, array in arrays.items()})
    for name, array in model.state_dict().items():
        kind.check(array, dtype)
        kind.assert_close(array, arrays[name])


def test_what_is_loaded_is_copied(kind, dtype):
    model, arrays = small_model(kind, dtype), {k: kind.writable(v, dtype) for k, v in trained_arrays().items()}
    model.load_state_dict(arrays)
    for array in arrays.values():
        array[...] = 99.0
    assert_arrays(kind, model.state_dict(), {k: v.astype(dtype) for k, v in trained_arrays().items()})


def trained_arrays():
    model = Model(small_net(), (4,), dtype="float64", backend="numpy", rng=0)
    return {name: 0.5 + np.zeros(array.shape) for name, array in model.state_dict().items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("affine2.b"), "expected affine2.b, which the checkpoint does not have"),
        (lambda a: a.pop("batchnorm1.running_var"), "expected batchnorm1.running_var, which the checkpoint does not"),
        (lambda a: a.update(extra=np.ones(1)), "received extra, which the model does not have"),
        (lambda a: a.update({"affine2.b": np.ones(4)}), r"affine2\.b: expected shape \(3,\); received \(4,\)"),
        (
            lambda a: a.update({"batchnorm1.running_var": np.ones(4)}),
            r"batchnorm1\.running_var: expected shape \(5,\); received \(4,\)",
        ),
        (lambda a: a.update({"affine2.b": np.array(["x", "y", "z"])}), r"affine2\.b"),
    ],
    ids=["missing", "missing-state", "unknown", "shape", "state-shape", "not-numbers"],
)
def test_a_state_dict_that_does_not_fit_leaves_the_model_as_it_was(kind, change, message):
    model, arrays = trained(kind), trained_arrays()
    before = snapshot(kind, model.state_dict())
    change(arrays)
    with pytest.raises(CheckpointError, match=message):
        model.load_state_dict(arrays)
    assert_arrays(kind, model.state_dict(), before)


@pytest.mark.parametrize("there", ["numpy", "torch", "array-api-strict:device1"])
def test_to_another_backend_and_back_keeps_the_scores(kind, dtype, there):
    target = backends.get(there)
    if not target.is_available():
        pytest.skip(target.reason)
    model = trained(kind, dtype)
    expected = kind.to_numpy(model.loss(kind(X, dtype))).copy()
    assert model.to(there) is model
    for array in model.state_dict().values():
        assert backends.of(array) is target
        assert backends.dtype_name(array.dtype) == dtype
    moved = model.loss(target.asarray(X, dtype))
    # another library may add up in another order: a few roundings of scores of size up to ten
    np.testing.assert_allclose(backends.to_numpy(moved), expected, rtol=0, atol=100 * EPS[dtype])
    model.to(kind.backend)
    kind.assert_close(model.loss(kind(X, dtype)), expected)


def test_a_moved_model_learns(kind):
    model = trained(kind).to("numpy")
    _, grads = model.loss(X, np.array(Y))
    assert type(grads.flat) is np.ndarray
    assert all(np.any(grad) for name, grad in grads.items() if name != "affine1.b")  # the bias before a batch norm


def test_course_models_keep_bn_params_when_moved(kind):
    net = FullyConnectedNet([5], 4, 3, use_batchnorm=True, backend=kind.backend, rng=0)
    net.loss(kind(X), kind(Y))
    net.to("numpy")
    assert type(net.bn_params[0]["running_mean"]) is np.ndarray


def test_rng_state_replays_the_masks(kind):
    model = small_model(kind)
    state = model.rng_state
    assert list(state) == ["dropout1"]
    first = float(model.loss(kind(X), kind(Y))[0])
    second = float(model.loss(kind(X), kind(Y))[0])
    model.rng_state = state
    assert float(model.loss(kind(X), kind(Y))[0]) == first
    assert first != second


# Finding what went wrong


def test_first_nonfinite_names_the_layer(kind):
    model = small_model(kind)
    assert model.first_nonfinite(kind(X)) == ""
    model.params["affine2.W"] *= float("nan")
    assert model.first_nonfinite(kind(X)) == "affine2"


def test_first_nonfinite_leaves_the_model_as_it_was(kind):
    model = trained(kind)
    before, masks = snapshot(kind, model.state_dict()), model.rng_state
    model.first_nonfinite(kind(X))
    assert_arrays(kind, model.state_dict(), before)
    assert model.rng_state == masks


# A layer of the user's own


class Scale(Layer):
    """``out = s x`` with one learned number."""

    def param_specs(self, input_shape):
        return {"s": Spec((), constant(3.0))}

    def forward(self, x, train=False):
        return x * self.params["s"], x

    def backward(self, dout, cache, input_grad=True):
        return dout * self.params["s"], {"s": namespace(dout).sum(dout * cache)}


def test_a_users_layer_takes_part(kind, dtype):
    model = small_model(kind, dtype, net=Sequential(Scale(), Affine(3, constant(1.0))))
    kind.assert_close(model.loss(kind([[1.0, 1.0, 1.0, 1.0]], dtype)), [[12.0, 12.0, 12.0]])
    _, grads = model.loss(kind(X, dtype), kind(Y))
    kind.check(grads["scale1.s"], dtype, ())
    assert isinstance(grads, Parameters)


# Copies, moves, owners


def test_to_the_backend_it_is_on_changes_nothing(kind):
    model = small_model(kind)
    buffer = model.params.flat
    assert model.to(kind.backend) is model
    assert model.params.flat is buffer


@pytest.mark.parametrize("there", ["numpy", "torch", "array-api-strict:device1"])
def test_an_optimizer_goes_along_when_its_model_moves(kind, there):
    if not backends.get(there).is_available():
        pytest.skip(backends.get(there).reason)
    moved, stays = small_model(kind), small_model(kind)
    optimizers = [Optimizer(model.params, "adam") for model in (moved, stays)]
    for step in range(4):
        if step == 2:
            moved.to(there)
        for model, optimizer in zip((moved, stays), optimizers, strict=True):
            batch = model.backend.asarray(X, "float32"), model.backend.asarray(np.array(Y))
            optimizer.step(model.loss(*batch)[1])
    # two steps of adam at a rate of 1e-3, whose gradients two libraries add up in another order
    np.testing.assert_allclose(
        backends.to_numpy(moved.params.flat), backends.to_numpy(stays.params.flat), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_whole_and_apart(duplicate):
    model = FullyConnectedNet([5, 4], 4, 3, dropout=0.25, use_batchnorm=True, rng=0)
    twin = duplicate(model)
    assert twin.backend is model.backend
    batch = np.asarray(X, "float32"), np.array(Y)
    first, again = model.loss(*batch)[0], twin.loss(*batch)[0]
    assert first == again
    twin.params.flat[...] = 0.0
    assert not twin.net.layers["affine1"].params["W"].any()
    assert model.params["W1"].any()
    assert twin.bn_params[0] is twin.net.layers["batchnorm1"].bn_param


def test_a_layer_of_another_model_is_refused():
    net = Sequential(Affine(3))
    Model(net, (4,), rng=0)
    with pytest.raises(ValueError, match="expected layers of its own; received affine1, which another model has"):
        Model(net, (4,), rng=1)


def test_the_gradients_of_matrices_are_written_straight_into_the_buffer(kind):
    model = FullyConnectedNet([4], input_dim=3, num_classes=2, backend=kind.backend, rng=0)
    buffer, returned, backward = model.params.like(), {}, model.net.backward

    def spy(*args, **kwargs):
        dx, grads = backward(*args, **kwargs)
        returned.update(grads)
        return dx, grads

    model.net.backward = spy
    model.loss(kind(np.ones((5, 3))), kind([0, 1, 0, 1, 1], "int64"), buffer)
    assert returned["affine1.W"] is buffer["W1"]
    assert returned["affine2.W"] is buffer["W2"]
    assert all(not layer.grads for layer in model.net.layers.values())  # lent for the one pass


class Twice(Sequential):
    """Goes through its one layer a second time, and adds up the gradients."""

    def forward(self, x, train=False):
        (layer,) = self.layers.values()
        out, first = layer.forward(x, train)
        out, second = layer.forward(out, train)
        return out, (first, second)

    def backward(self, dout, cache, input_grad=True):
        ((key, layer),) = self.layers.items()
        dout, of_second = layer.backward(dout, cache[1])
        dout, of_first = layer.backward(dout, cache[0])
        return dout, {f"{key}.{name}": grad + of_second[name] for name, grad in of_first.items()}


@pytest.mark.parametrize("layer", [Affine, Linear])
def test_a_container_may_run_a_layer_twice_and_add_up_its_gradients(kind, layer):
    x, w, b = normals((6, 4), 1), normals((4, 4), 2), normals(4, 3)
    model = Model(Sequential(Twice(layer(4))), (4,), dtype="float64", backend=kind.backend, rng=0)
    names = list(model.params)
    for name, value in zip(names, (w, b), strict=True):
        model.params[name][...] = kind(value)
    _, grads = model.loss(kind(x), kind(Y, "int64"))
    hidden = x @ w + b
    scores = hidden @ w + b
    dout = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    dout[np.arange(6), Y] -= 1
    dout /= 6
    for name, expected in zip(
        names, (hidden.T @ dout + x.T @ (dout @ w.T), dout.sum(0) + (dout @ w.T).sum(0)), strict=True
    ):
        np.testing.assert_allclose(kind.to_numpy(grads[name]), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Model(ReLU(), 64), "model: expected input_shape, a tuple such as (3, 32, 32); received 64"),
        (lambda: Model(ReLU(), "64"), "model: expected input_shape, a tuple such as (3, 32, 32); received '64'"),
        (lambda: Model(ReLU(), (1, -8, 8)), "model: expected each size of input_shape, a whole number of at least 0"),
        (lambda: Model(ReLU(), (4.5,)), "model: expected each size of input_shape, a whole number of at least 0"),
        (lambda: Model(ReLU(), (4,), reg="a"), "model: expected reg, the strength of the penalty, of at least 0; rec"),
        (lambda: Model(ReLU(), (4,), loss=None), "model: expected loss, a function of scores and targets; received No"),
        (lambda: Model(ReLU(), (4,), loss="softmax"), "model: expected loss, a function of scores and targets; receiv"),
        (lambda: Model(ReLU(), (4,)).predict(X, "a"), "predict: expected batch_size, a whole number of at least 1"),
        (lambda: Model(ReLU(), (4,)).load_state_dict(None), "model: expected a dict of arrays by name; received None"),
        (lambda: FullyConnectedNet([5], "4"), "model: expected each size of input_shape, a whole number of at least 0"),
        (lambda: FullyConnectedNet([5], 4, dropout="a"), "dropout: expected p, the probability to drop, in [0, 1); re"),
        (lambda: ThreeLayerConvNet(filter_size="a"), "ThreeLayerConvNet: expected filter_size, a whole number of at l"),
        (lambda: ThreeLayerConvNet(5), "model: expected input_shape, a tuple such as (3, 32, 32); received 5"),
        (lambda: ResNet("a"), "ResNet: expected a depth of 6 n + 2, such as 20 or 56; received 'a'"),
        (lambda: ResNet(8, widths=3), "ResNet: expected widths, one whole number at least; received 3"),
        (
            lambda: Airbench(widths=(8, 0)),
            "Airbench: expected each of widths, a whole number of at least 1, below 2**31; received 0",
        ),
        (lambda: VisionTransformer(depth="a"), "VisionTransformer: expected depth, a whole number of at least 0"),
    ],
)
def test_an_impossible_argument_is_refused_by_name(make, message):
    with pytest.raises((TypeError, ValueError)) as error:
        make()
    assert str(error.value).startswith(message)
