"""The course's convolutional net."""

import numpy as np
import pytest

import oracles
from oracles import EPS, normals
from xpnn import Solver
from xpnn.gradient_check import eval_numerical_gradient, rel_error
from xpnn.models import ThreeLayerConvNet
from xpnn.optim import Optimizer

SHAPE = (2, 4, 4)
X = normals((4, *SHAPE), 20)
Y = [0, 2, 1, 2]
WEIGHTS = ("W1", "W2", "W3")


def small_net(kind, dtype="float64", **options):
    return ThreeLayerConvNet(
        SHAPE, num_filters=3, filter_size=3, hidden_dim=5, num_classes=3, dtype=dtype, backend=kind.backend, **options
    )


def randomized(net, kind, seed):
    net.params.flat[...] = kind(normals(tuple(net.params.flat.shape), seed), net.params.dtype)
    return net


# Names, shapes and settings


def test_it_has_the_courses_parameters(kind):
    net = ThreeLayerConvNet((3, 8, 6), 4, 5, 7, 2, backend=kind.backend, rng=0)
    assert {name: tuple(p.shape) for name, p in net.params.items()} == {
        "W1": (4, 3, 5, 5),
        "b1": (4,),
        "W2": (4 * 4 * 3, 7),
        "b2": (7,),
        "W3": (7, 2),
        "b3": (2,),
    }
    assert net.state == {}
    assert net.bn_params == []
    assert not net.use_batchnorm


def test_with_batch_norm_there_are_scales_shifts_and_statistics(kind):
    net = small_net(kind, use_batchnorm=True, rng=0)
    assert list(net.params) == ["W1", "b1", "gamma1", "beta1", "W2", "b2", "gamma2", "beta2", "W3", "b3"]
    shapes = {name: tuple(net.params[name].shape) for name in ("gamma1", "beta1", "gamma2", "beta2")}
    assert shapes == {"gamma1": (3,), "beta1": (3,), "gamma2": (5,), "beta2": (5,)}
    assert {name: tuple(a.shape) for name, a in net.state.items()} == {
        "batchnorm1.running_mean": (3,),
        "batchnorm1.running_var": (3,),
        "batchnorm2.running_mean": (5,),
        "batchnorm2.running_var": (5,),
    }
    assert [bn_param["mode"] for bn_param in net.bn_params] == ["train", "train"]
    assert net.use_batchnorm


def test_it_takes_the_courses_arguments_by_position(kind):
    net = ThreeLayerConvNet((3, 8, 8), 4, 3, 7, 2, 0.5, 0.25, "float64", True, backend=kind.backend, rng=0)
    assert (net.reg, net.use_batchnorm) == (0.25, True)
    kind.check(net.params["W1"], "float64", (4, 3, 3, 3))
    assert kind.to_numpy(net.params["W2"]).std() == pytest.approx(0.5, rel=5 / (2 * 4 * 4 * 4 * 7) ** 0.5)


def test_the_defaults_are_the_courses():
    net = ThreeLayerConvNet(rng=0)
    assert {name: p.shape for name, p in net.params.items() if name in WEIGHTS} == {
        "W1": (32, 3, 7, 7),
        "W2": (32 * 16 * 16, 100),
        "W3": (100, 10),
    }
    assert net.params.flat.dtype == np.float32
    assert net.reg == 0.0


def test_first_values(kind, dtype):
    net = small_net(kind, dtype, use_batchnorm=True, rng=0)
    for name, value in {"b1": 0.0, "gamma1": 1.0, "beta1": 0.0, "b2": 0.0, "gamma2": 1.0, "beta2": 0.0}.items():
        kind.assert_close(net.params[name], np.full(net.params[name].shape, value))
    weights = np.concatenate([kind.to_numpy(net.params[name]).ravel() for name in WEIGHTS]).astype("float64")
    assert abs(weights.mean()) < 5 * 1e-3 / weights.size**0.5  # five standard deviations, as below
    assert abs(weights.std() - 1e-3) < 5 * 1e-3 / (2 * weights.size) ** 0.5


def test_without_a_weight_scale_the_weights_are_kaimings():
    w = ThreeLayerConvNet(num_filters=64, weight_scale=None, rng=0).params["W1"]
    expected = (2 / (3 * 7 * 7)) ** 0.5
    assert w.std() == pytest.approx(expected, rel=5 / (2 * w.size) ** 0.5)  # five standard deviations


def test_the_same_seed_gives_the_same_weights_on_every_kind(kind, dtype):
    net, numpys = (ThreeLayerConvNet(SHAPE, 3, 3, 5, 3, dtype=dtype, backend=b, rng=7) for b in (kind.backend, "numpy"))
    kind.assert_close(net.params.flat, numpys.params.flat, atol=8 * EPS[dtype] * 1e-3)  # weights of size 0.001


def test_an_image_too_small_to_pool_is_refused():
    with pytest.raises(ValueError, match=r"maxpool1: expected a window no larger than .*\(1, 1\); received \(2, 2\)"):
        ThreeLayerConvNet((3, 2, 2), filter_size=6)


# The loss


@pytest.mark.parametrize("use_batchnorm", [False, True])
def test_the_first_loss_is_that_of_guessing_and_grows_with_the_penalty(kind, dtype, use_batchnorm):
    x, y = normals((50, 3, 8, 8)), np.random.default_rng(0).integers(0, 10, 50)
    losses = []
    for reg in (0.0, 0.5):
        net = ThreeLayerConvNet(
            (3, 8, 8), 8, 3, 50, reg=reg, dtype=dtype, use_batchnorm=use_batchnorm, backend=kind.backend, rng=0
        )
        losses.append(float(net.loss(kind(x, dtype), kind(y))[0]))
    # Scores have a standard deviation of at most 1e-3 sqrt(50), so the mean of 50 losses one of 1e-3.
    assert losses[0] == pytest.approx(np.log(10), abs=5e-3)
    weights = 8 * 3 * 3 * 3 + 8 * 4 * 4 * 50 + 50 * 10
    # 0.5 reg times a sum of squares of deviation 1e-3
    assert losses[1] - losses[0] == pytest.approx(0.25e-6 * weights, rel=5 * (2 / weights) ** 0.5)


@pytest.mark.parametrize("use_batchnorm", [False, True])
def test_the_penalty_counts_weights_alone(kind, dtype, use_batchnorm):
    net, penalized = (
        randomized(small_net(kind, dtype, use_batchnorm=use_batchnorm, reg=reg, rng=0), kind, 10) for reg in (0.0, 0.5)
    )
    (loss, grads), (with_penalty, penalized_grads) = (m.loss(kind(X, dtype), kind(Y)) for m in (net, penalized))
    weights = {name: kind.to_numpy(net.params[name]).astype("float64") for name in WEIGHTS}
    expected = 0.5 * 0.5 * sum(np.sum(w**2) for w in weights.values())
    # a sum of about 130 squares, taken from a loss below 100
    assert float(with_penalty) - float(loss) == pytest.approx(expected, abs=130 * EPS[dtype] * 100)
    for name, grad in penalized_grads.items():
        difference = 0.5 * weights[name] if name in weights else 0.0
        # one rounding of a gradient below 16
        kind.assert_close(grad, kind.to_numpy(grads[name]) + difference, atol=16 * EPS[dtype])


@pytest.mark.parametrize("use_batchnorm", [False, True])
@pytest.mark.parametrize("reg", [0.0, 0.7])
def test_gradients_agree_with_numerical_ones(kind, use_batchnorm, reg):
    # With these seeds no gradient is so small that the loss's rounding hides it, and no kink is near.
    net = randomized(small_net(kind, use_batchnorm=use_batchnorm, reg=reg, rng=0), kind, 10 if use_batchnorm else 18)
    x, y = kind(X), kind(Y)
    _, grads = net.loss(x, y)
    assert grads.keys() == net.params.keys()
    for name, w in net.params.items():
        numerical = eval_numerical_gradient(lambda _: net.loss(x, y)[0], w, verbose=False)
        if use_batchnorm and name in ("b1", "b2"):
            # a bias before a batch norm: rounding of the loss over 2h, and of sums of numbers of size one
            kind.assert_close(numerical, np.zeros(w.shape), atol=1e-9)
            kind.assert_close(grads[name], np.zeros(w.shape), atol=1e-14)
        else:
            assert rel_error(grads[name], numerical) < 1e-7, name


# Train and test mode


@pytest.mark.parametrize("use_batchnorm", [False, True])
def test_scores_are_those_of_its_layers_one_after_the_other(kind, dtype, use_batchnorm):
    net = randomized(small_net(kind, dtype, use_batchnorm=use_batchnorm, rng=0), kind, 10)
    arrays = {name: normals(tuple(a.shape), i, dtype) for i, (name, a) in enumerate(net.state_dict().items())}
    arrays |= {name: 0.5 + a**2 for name, a in arrays.items() if name.endswith("running_var")}
    net.load_state_dict(arrays)
    p = {name: kind.to_numpy(array).astype("float64") for name, array in net.state_dict().items()}

    def normalized(a, i):
        if not use_batchnorm:
            return a
        mean, var = (p[f"batchnorm{i}.running_{name}"] for name in ("mean", "var"))
        return oracles.batchnorm(a, p[f"gamma{i}"], p[f"beta{i}"], mean, var)

    a = oracles.conv(normals(X.shape, 20, dtype), p["W1"], p["b1"], 1, 1, 1, 1)
    a = oracles.relu(normalized(a.transpose(0, 2, 3, 1), 1)).transpose(0, 3, 1, 2)
    a = a.reshape(4, 3, 2, 2, 2, 2).max(axis=(3, 5)).reshape(4, 12)
    a = oracles.relu(normalized(a @ p["W2"] + p["b2"], 2))
    expected = a @ p["W3"] + p["b3"]
    scores = net.loss(kind(X, dtype))
    kind.check(scores, dtype, (4, 3))
    # sums of up to eighteen numbers, three times, before scores of up to a hundred
    kind.assert_close(scores, expected, atol=50 * EPS[dtype] * 100)


def test_in_test_mode_the_scores_of_an_image_do_not_depend_on_its_batch(kind, dtype):
    net = small_net(kind, dtype, use_batchnorm=True, weight_scale=1.0, rng=0)
    net.loss(kind(X, dtype), kind(Y))
    together = kind.to_numpy(net.loss(kind(X, dtype)))
    # one image may be added up in another order; scores near 10
    kind.assert_close(net.loss(kind(X[2:3], dtype)), together[2:3], atol=400 * EPS[dtype])


def test_training_moves_the_running_statistics_and_scores_do_not(kind):
    net = small_net(kind, use_batchnorm=True, weight_scale=1.0, rng=0)
    net.loss(kind(X), kind(Y))
    before = {name: kind.to_numpy(array).copy() for name, array in net.state.items()}
    w, b = (kind.to_numpy(net.params[name]) for name in ("W1", "b1"))
    convolved = oracles.conv(X, w, b, 1, 1, 1, 1)
    # a tenth of the batch's, which are of size 20 and sums over 64 pixels
    np.testing.assert_allclose(
        before["batchnorm1.running_mean"], 0.1 * convolved.mean(axis=(0, 2, 3)), rtol=0, atol=64 * EPS["float64"]
    )
    np.testing.assert_allclose(
        before["batchnorm1.running_var"], 0.1 * convolved.var(axis=(0, 2, 3)), rtol=0, atol=64 * 20 * EPS["float64"]
    )
    net.loss(kind(X))
    for name, array in before.items():
        kind.assert_close(net.state[name], array)
    assert [bn_param["mode"] for bn_param in net.bn_params] == ["test", "test"]


# dtype and kind


@pytest.mark.parametrize("x_dtype", ["uint8", "int64", "float32", "float64"])
def test_a_float32_net_stays_float32_everywhere(kind, x_dtype):
    net = small_net(
        kind, "float32", use_batchnorm=True, reg=np.float64(0.1), weight_scale=np.float64(0.1), standardize=(8.0, 4.0)
    )
    optimizer = Optimizer(net.params, "adam", learning_rate=np.float64(1e-3))
    x, y = kind(np.arange(128).reshape(4, *SHAPE) % 17, x_dtype), kind(Y)
    for _ in range(2):
        loss, grads = net.loss(x, y)
        optimizer.step(grads)
    arrays = {"loss": loss, "scores": net.loss(x), **net.params, **{f"d{k}": g for k, g in grads.items()}, **net.state}
    for array in arrays.values():
        kind.check(array, "float32")


def test_vectors_of_pixels_are_refused(kind):
    with pytest.raises(ValueError, match=r"model: expected X of shape \(N, 2, 4, 4\); received \(4, 32\)"):
        small_net(kind, rng=0).loss(kind(X.reshape(4, 32)))


# Training


@pytest.mark.parametrize("use_batchnorm", [False, True])
def test_it_overfits_fifty_images(kind, use_batchnorm):
    images, labels = normals((50, 3, 8, 8)).astype("float32"), np.random.default_rng(0).integers(0, 10, 50)
    data = {"X_train": images, "y_train": labels, "X_val": images, "y_val": labels}
    net = ThreeLayerConvNet(
        (3, 8, 8), 8, 3, 50, weight_scale=None, use_batchnorm=use_batchnorm, backend=kind.backend, rng=0
    )
    solver = Solver(
        net,
        data,
        update_rule="adam",
        optim_config={"learning_rate": 5e-3},
        num_epochs=40,
        batch_size=25,
        seed=0,
        verbose=False,
    )
    solver.train()
    assert solver.check_accuracy(kind(images), kind(labels)) == 1.0
    assert solver.loss_history[-1] < 0.1 * solver.loss_history[0]
