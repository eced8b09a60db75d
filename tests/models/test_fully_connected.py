"""The course's fully connected nets."""

import numpy as np
import pytest

from oracles import COURSE, EPS, normals
from xpnn import backend as backends
from xpnn.gradient_check import eval_numerical_gradient, rel_error
from xpnn.models import FullyConnectedNet, TwoLayerNet
from xpnn.optim import Optimizer
from xpnn.random import Generator

SEEDED = COURSE["seeded_dropout_net"]


# Names, shapes and settings


def test_two_layer_net_has_the_courses_parameters(kind):
    net = TwoLayerNet(4, 3, 2, backend=kind.backend, rng=0)
    assert {name: tuple(p.shape) for name, p in net.params.items()} == {
        "W1": (4, 3),
        "b1": (3,),
        "W2": (3, 2),
        "b2": (2,),
    }


def test_two_layer_net_takes_the_courses_arguments_by_position(kind):
    net = TwoLayerNet(4, 3, 2, 0.5, 10.0, 0.25, backend=kind.backend, rng=0)
    assert net.dropout_param["p"] == 0.5
    assert net.reg == 0.25
    assert float(kind.xp.max(kind.xp.abs(net.params["W1"]))) > 1.0


def test_fully_connected_net_has_the_courses_parameters(kind):
    net = FullyConnectedNet([5, 3], input_dim=4, num_classes=2, use_batchnorm=True, backend=kind.backend, rng=0)
    assert {name: tuple(p.shape) for name, p in net.params.items()} == {
        "W1": (4, 5),
        "b1": (5,),
        "gamma1": (5,),
        "beta1": (5,),
        "W2": (5, 3),
        "b2": (3,),
        "gamma2": (3,),
        "beta2": (3,),
        "W3": (3, 2),
        "b3": (2,),
    }


def test_fully_connected_net_takes_the_courses_arguments_by_position(kind):
    net = FullyConnectedNet([5], 4, 2, 0.5, True, 0.25, 10.0, "float64", 123, backend=kind.backend)
    assert (net.use_dropout, net.use_batchnorm, net.reg) == (True, True, 0.25)
    assert net.dropout_param == {"p": 0.5, "mode": "train", "seed": 123}
    kind.check(net.params["W1"], "float64", (4, 5))


def test_the_defaults_are_those_of_cifar10():
    net = FullyConnectedNet([2], rng=0)
    assert net.params["W1"].shape == (3 * 32 * 32, 2)
    assert net.params["W2"].shape == (2, 10)
    assert net.params["W1"].dtype == np.float32
    assert TwoLayerNet(rng=0).params["W1"].shape == (3 * 32 * 32, 100)


def test_the_courses_attributes(kind):
    net = FullyConnectedNet([5, 3], 4, 2, use_batchnorm=True, reg=0.5, backend=kind.backend, rng=0)
    assert net.num_layers == 3
    assert net.reg == 0.5
    assert net.use_batchnorm
    assert not net.use_dropout
    assert net.dropout_param == {}
    assert [bn_param["mode"] for bn_param in net.bn_params] == ["train", "train"]


def test_first_values(kind, dtype):
    net = FullyConnectedNet([50], 200, use_batchnorm=True, weight_scale=0.5, dtype=dtype, backend=kind.backend, rng=0)
    kind.assert_close(net.params["b1"], np.zeros(50))
    kind.assert_close(net.params["gamma1"], np.ones(50))
    kind.assert_close(net.params["beta1"], np.zeros(50))
    w = kind.to_numpy(net.params["W1"]).astype("float64")
    n = w.size
    assert abs(w.mean()) < 5 * 0.5 / n**0.5  # five standard deviations, as below
    assert abs(w.std() - 0.5) < 5 * 0.5 / (2 * n) ** 0.5


def test_without_a_weight_scale_the_weights_are_kaimings():
    w = FullyConnectedNet([500], 200, weight_scale=None, rng=0).params["W1"]
    assert w.std() == pytest.approx(0.1, rel=5 / (2 * w.size) ** 0.5)  # sqrt(2 / 200), to five deviations


def test_the_same_seed_gives_the_same_weights_on_every_kind(kind, dtype):
    here = FullyConnectedNet([5, 3], 4, 2, dtype=dtype, seed=7, backend="numpy")
    there = FullyConnectedNet([5, 3], 4, 2, dtype=dtype, seed=7, backend=kind.backend)
    kind.assert_close(there.params.flat, here.params.flat, atol=8 * EPS[dtype] * 0.01)  # weights of size 0.01


def test_another_seed_gives_other_weights():
    first, second = (FullyConnectedNet([5], 4, 2, seed=seed).params["W1"] for seed in (0, 1))
    assert (first != second).all()


def test_rng_goes_before_the_seed_for_the_weights():
    by_rng, by_both = (FullyConnectedNet([5], 4, 2, rng=1, seed=seed).params["W1"] for seed in (None, 7))
    np.testing.assert_array_equal(by_rng, by_both)


def test_without_a_seed_numpys_global_state_gives_the_weights():
    nets = []
    for _ in range(2):
        np.random.seed(3)
        nets.append(FullyConnectedNet([5], 4, 2))
    np.testing.assert_array_equal(nets[0].params.flat, nets[1].params.flat)


# The course's seeded chain


@pytest.fixture(scope="module")
def seeded_weights():
    """W1, W2, W3 for each p, drawn as the course's notebook draws them (`rng_order` in course_values.json)."""
    c = SEEDED["config"]
    legacy = np.random.RandomState(c["seed"])
    legacy.rand(10, 10)
    np.testing.assert_array_equal(legacy.randn(c["N"], c["D"]), SEEDED["X_2x15"])
    np.testing.assert_array_equal(legacy.randint(c["C"], size=(c["N"],)), SEEDED["y"])
    weights = {}
    for p in SEEDED["initial_loss"]:
        sizes = [(c["D"], c["H1"]), (c["H1"], c["H2"]), (c["H2"], c["C"])]
        weights[p] = {f"W{i}": c["weight_scale"] * legacy.randn(*size) for i, size in enumerate(sizes, 1)}
        if float(p) > 0:  # each call of loss seeds anew, so the last mask's state is what the next net starts from
            legacy.seed(c["seed"])
            legacy.rand(c["N"], c["H2"])
    return weights


@pytest.fixture
def legacy_masks(monkeypatch):
    """Dropout masks as the course draws them: kept where the legacy generator, seeded at each call, is below 1 - p."""

    def mask(self, shape, p, dtype="float32", backend=None):
        uniform = np.random.RandomState(self.seed).rand(*shape)
        return backends.get(backend).asarray((uniform < 1 - p) / (1 - p), dtype=dtype)

    monkeypatch.setattr(Generator, "dropout_mask", mask)


def test_the_legacy_mask_is_the_one_the_course_printed(legacy_masks):
    mask = Generator(SEEDED["config"]["seed"]).dropout_mask((10, 10), 0.8, "float64")
    assert np.flatnonzero(mask).tolist() == SEEDED["dropout_mask_10x10_p0.8_kept_flat_indices_C_order"]
    assert mask.max() == SEEDED["mask_value"]


@pytest.mark.usefixtures("legacy_masks")
@pytest.mark.parametrize("p", SEEDED["initial_loss"])
def test_initial_losses_are_those_that_the_course_published(kind, seeded_weights, p):
    c = SEEDED["config"]
    net = FullyConnectedNet(
        [c["H1"], c["H2"]], c["D"], c["C"], dropout=float(p), dtype="float64", seed=c["seed"], backend=kind.backend
    )
    net.params = seeded_weights[p]
    loss, _ = net.loss(kind(SEEDED["X_2x15"]), kind(SEEDED["y"]))
    kind.assert_close(loss, SEEDED["initial_loss"][p], atol=1e-12)  # all digits that were printed, but the last three


# Gradients

X = normals((5, 4), 20)
Y = [0, 2, 1, 2, 0]


def randomized(net, kind, seed=10):
    """The net with parameters of size one; this seed gives no gradient so small that the loss's rounding hides it."""
    net.params.flat[...] = kind(normals(tuple(net.params.flat.shape), seed), net.params.dtype)
    return net


def check_gradients(net, kind, zero=()):
    x, y = kind(X), kind(Y)
    _, grads = net.loss(x, y)
    for name, w in net.params.items():
        numerical = eval_numerical_gradient(lambda _: net.loss(x, y)[0], w, verbose=False)
        if name in zero:
            # a bias before a batch norm: rounding of the loss over 2h, and of sums of numbers of size one
            kind.assert_close(numerical, np.zeros(w.shape), atol=1e-9)
            kind.assert_close(grads[name], np.zeros(w.shape), atol=1e-14)
        else:
            assert rel_error(grads[name], numerical) < 1e-7, name


@pytest.mark.parametrize("reg", [0.0, 0.7])
def test_gradients_of_the_two_layer_net(kind, reg):
    net = TwoLayerNet(4, 5, 3, reg=reg, backend=kind.backend, rng=0)
    check_gradients(randomized(net, kind), kind)


@pytest.mark.parametrize("reg", [0.0, 0.7])
@pytest.mark.parametrize(
    "options",
    [{}, {"use_batchnorm": True}, {"dropout": 0.25}, {"use_batchnorm": True, "dropout": 0.25}],
    ids=["plain", "batchnorm", "dropout", "both"],
)
def test_gradients_of_the_fully_connected_net(kind, options, reg):
    net = FullyConnectedNet([5, 4], 4, 3, reg=reg, dtype="float64", seed=11, backend=kind.backend, **options)
    check_gradients(randomized(net, kind), kind, zero=("b1", "b2") if options.get("use_batchnorm") else ())


# The L2 penalty


def test_the_penalty_counts_weights_alone(kind, dtype):
    options = {"use_batchnorm": True, "dtype": dtype, "seed": 0, "backend": kind.backend}
    net, penalized = (randomized(FullyConnectedNet([5, 4], 4, 3, reg=reg, **options), kind) for reg in (0.0, 0.5))
    (loss, grads), (with_penalty, penalized_grads) = (m.loss(kind(X, dtype), kind(Y)) for m in (net, penalized))
    weights = {name: kind.to_numpy(net.params[name]).astype("float64") for name in ("W1", "W2", "W3")}
    expected = 0.5 * 0.5 * sum(np.sum(w**2) for w in weights.values())
    received = float(with_penalty) - float(loss)
    assert received == pytest.approx(expected, rel=60 * EPS[dtype])  # a sum of about fifty squares
    for name, grad in penalized_grads.items():
        difference = 0.5 * weights[name] if name in weights else 0.0
        # one rounding of a gradient below 4
        kind.assert_close(grad, kind.to_numpy(grads[name]) + difference, atol=4 * EPS[dtype])


# Train and test mode


def test_without_labels_the_net_gives_scores_without_dropout(kind, dtype):
    net = FullyConnectedNet([50], 4, 3, dropout=0.5, dtype=dtype, backend=kind.backend, rng=0, weight_scale=1.0)
    scores = net.loss(kind(X, dtype))
    kind.check(scores, dtype, (5, 3))
    w1, b1, w2, b2 = (kind.to_numpy(net.params[name]).astype("float64") for name in ("W1", "b1", "W2", "b2"))
    expected = np.maximum(X.astype(dtype).astype("float64") @ w1 + b1, 0) @ w2 + b2
    kind.assert_close(scores, expected, atol=200 * EPS[dtype])  # sums of fifty numbers of size up to four


def test_in_test_mode_the_scores_of_an_example_do_not_depend_on_its_batch(kind, dtype):
    net = FullyConnectedNet(
        [6, 5], 4, 3, use_batchnorm=True, dtype=dtype, backend=kind.backend, rng=0, weight_scale=1.0
    )
    net.loss(kind(X, dtype), kind(Y))
    together = kind.to_numpy(net.loss(kind(X, dtype)))
    alone = net.loss(kind(X[2:3], dtype))
    kind.assert_close(
        alone, together[2:3], atol=400 * EPS[dtype]
    )  # one row may be added up in another order; scores near 10


def test_scores_leave_the_running_statistics(kind):
    net = FullyConnectedNet([6], 4, 3, use_batchnorm=True, backend=kind.backend, rng=0)
    net.loss(kind(X), kind(Y))
    before = kind.to_numpy(net.bn_params[0]["running_mean"]).copy()
    assert before.any()
    net.loss(kind(X))
    kind.assert_close(net.bn_params[0]["running_mean"], before)
    assert net.bn_params[0]["mode"] == "test"


def test_a_seed_gives_the_same_mask_at_every_call(kind):
    net = FullyConnectedNet([50], 4, 3, dropout=0.5, seed=5, weight_scale=1.0, backend=kind.backend)
    losses = [float(net.loss(kind(X), kind(Y))[0]) for _ in range(2)]
    assert losses[0] == losses[1]


def test_without_a_seed_each_call_draws_a_new_mask(kind):
    net = FullyConnectedNet([50], 4, 3, dropout=0.5, rng=5, weight_scale=1.0, backend=kind.backend)
    losses = [float(net.loss(kind(X), kind(Y))[0]) for _ in range(2)]
    assert losses[0] != losses[1]


# dtype and kind


@pytest.mark.parametrize("x_dtype", ["uint8", "int64", "float32", "float64"])
def test_a_float32_net_stays_float32_everywhere(kind, x_dtype):
    net = FullyConnectedNet(
        [6, 5],
        4,
        3,
        dropout=0.25,
        use_batchnorm=True,
        reg=np.float64(0.1),
        weight_scale=np.float64(0.1),
        backend=kind.backend,
        rng=0,
    )
    optimizer = Optimizer(net.params, "adam", learning_rate=np.float64(1e-3))
    x, y = kind(np.arange(20).reshape(5, 4), x_dtype), kind(Y)
    for _ in range(2):
        loss, grads = net.loss(x, y)
        optimizer.step(grads)
    arrays = {"loss": loss, "scores": net.loss(x), **net.params, **{f"d{k}": g for k, g in grads.items()}, **net.state}
    arrays |= {f"{name}.{key}": config[key] for name, config in optimizer.configs().items() for key in "va"}
    for array in arrays.values():
        kind.check(array, "float32")


def test_images_are_flattened(kind):
    net = FullyConnectedNet([5], 3 * 2 * 2, 3, backend=kind.backend, rng=0)
    images = normals((4, 3, 2, 2))
    kind.assert_close(
        net.loss(kind(images, "float32")), kind.to_numpy(net.loss(kind(images.reshape(4, 12), "float32")))
    )


def test_raw_images_are_standardized_where_asked(kind):
    options = {"weight_scale": 1.0, "rng": 0, "backend": kind.backend}
    raw = FullyConnectedNet([5], 4, 3, standardize=(100.0, 50.0), **options)
    plain = FullyConnectedNet([5], 4, 3, **options)
    pixels = np.arange(0, 200, 10).reshape(5, 4)
    expected = plain.loss(kind((pixels - 100.0) / 50.0, "float32"))
    kind.assert_close(raw.loss(kind(pixels, "uint8")), kind.to_numpy(expected), atol=40 * EPS["float32"])


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5])
def test_dropout_outside_0_to_1_is_refused(p):
    with pytest.raises(ValueError, match=r"expected p, .*in \[0, 1\)"):
        FullyConnectedNet([5], 4, 3, dropout=p)


# One run on every backend

STEPS = 20


def train(kind, dtype="float32"):
    """Losses of a few steps of a net with everything in it; what is drawn comes from the seed alone."""
    net = FullyConnectedNet(
        [20, 20], 10, 4, dropout=0.25, use_batchnorm=True, reg=1e-3, weight_scale=0.3, dtype=dtype, backend=kind, rng=3
    )
    optimizer = Optimizer(net.params, "sgd_momentum", learning_rate=0.05)
    batches, x = Generator(3, stream=1), normals((200, 10), 4)
    y = np.argmax(x[:, :4], axis=1)
    losses = []
    for _ in range(STEPS):
        batch = batches.integers(0, 200, (32,), backend="numpy")
        loss, grads = net.loss(net.backend.asarray(x[batch], dtype), net.backend.asarray(y[batch]))
        optimizer.step(grads)
        losses.append(float(loss))
    return losses


def test_twenty_steps_give_the_same_losses_on_every_backend(kind):
    received, expected = train(kind.backend), train(backends.get("numpy"))
    assert expected[-1] < 0.8 * expected[0]
    # float32 rounding of 6e-8 in each of some tens of operations, not amplified much in twenty steps
    np.testing.assert_allclose(received, expected, rtol=0, atol=1e-5)
