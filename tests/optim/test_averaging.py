"""Averages of weights over the steps of training."""

import math

import numpy as np
import pytest

from oracles import EPS, normals
from xpnn import Model, layers
from xpnn import backend as backends
from xpnn.errors import CheckpointError, SettingError
from xpnn.optim import EMA, Lookahead
from xpnn.parameters import Parameters

SHAPES = {"W": (2, 3), "b": (3,)}
MAKES = pytest.mark.parametrize("make", [lambda p: p, dict], ids=["buffer", "dict"])


class Net:
    """Parameters, and running statistics that are a new array after every step, as a layer's are."""

    def __init__(self, kind, dtype, make=lambda p: p):
        self.kind, self.dtype = kind, dtype
        buffer = Parameters(SHAPES, kind.backend, dtype)
        buffer.flat[...] = kind(normals(9), dtype)
        self.params = make(buffer)
        self.running = {"norm.running_mean": kind.writable(normals(3, 100), dtype), "count": kind.writable([0])}

    def state(self):
        return self.running

    def step(self, seed):
        for name, shape in SHAPES.items():
            self.params[name] = self.kind.writable(normals(shape, seed), self.dtype)
        self.running = {
            "norm.running_mean": self.kind.writable(normals(3, 100 + seed), self.dtype),
            "count": self.kind.writable([seed]),
        }

    def assert_params(self, expected, atol=0.0):
        for name in SHAPES:
            self.kind.assert_close(self.params[name], expected(name), atol=atol)


def weights(name, seed, dtype):
    """What `Net` has after the step `seed`, 0 for the start, rounded to dtype but held in float64."""
    if name == "norm.running_mean":
        return normals(3, 100 + seed, dtype)
    if seed == 0:
        return {"W": normals(9, 0, dtype)[:6].reshape(2, 3), "b": normals(9, 0, dtype)[6:]}[name]
    return normals(SHAPES[name], seed, dtype)


@MAKES
def test_the_average_moves_a_share_of_the_way_at_each_update(kind, dtype, make):
    net = Net(kind, dtype, make)
    ema = EMA(net.params, 0.75, state=net.state)
    expected = {name: weights(name, 0, dtype) for name in (*SHAPES, "norm.running_mean")}
    for step in (1, 2, 3):
        net.step(step)
        ema.update()
        expected = {name: 0.75 * old + 0.25 * weights(name, step, dtype) for name, old in expected.items()}
    # three roundings of numbers up to 4 a step
    for name in SHAPES:
        kind.check(ema.average[name], dtype)
        kind.assert_close(ema.average[name], expected[name], atol=9 * 4 * EPS[dtype])
    running = ema.average_state["norm.running_mean"]
    kind.check(running, dtype)
    kind.assert_close(running, expected["norm.running_mean"], atol=9 * 4 * EPS[dtype])
    assert "count" not in ema.average_state
    net.assert_params(lambda name: weights(name, 3, dtype))


@MAKES
def test_an_average_starts_as_a_copy(kind, dtype, make):
    net = Net(kind, dtype, make)
    ema = EMA(net.params, 0.5)
    net.params["W"] = net.params["W"] + 1.0
    kind.assert_close(ema.average["W"], weights("W", 0, dtype))


def test_an_average_of_what_does_not_change_is_exact(kind, dtype):
    net = Net(kind, dtype)
    ema = EMA(net.params, 0.99)
    for _ in range(10):
        ema.update()
    kind.assert_close(ema.average["W"], kind.to_numpy(net.params["W"]))


@MAKES
def test_within_swapped_the_model_has_the_average(kind, dtype, make):
    net = Net(kind, dtype, make)
    ema = EMA(net.params, 0.75, state=net.state)
    net.step(1)
    ema.update()
    averages = {name: kind.to_numpy(a).copy() for name, a in {**ema.average, **ema.average_state}.items()}
    with ema.swapped():
        net.assert_params(lambda name: averages[name])
        kind.assert_close(net.running["norm.running_mean"], averages["norm.running_mean"])
        kind.assert_close(net.running["count"], [1])
    net.assert_params(lambda name: weights(name, 1, dtype))
    kind.assert_close(net.running["norm.running_mean"], weights("norm.running_mean", 1, dtype))
    for name, average in averages.items():
        kind.assert_close({**ema.average, **ema.average_state}[name], average)


def test_swapped_gives_the_weights_back_after_an_error(kind):
    net = Net(kind, "float64")
    ema = EMA(net.params, 0.75)
    net.step(1)

    def fail():
        with ema.swapped():
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    net.assert_params(lambda name: weights(name, 1, "float64"))


def test_a_model_is_evaluated_with_its_average(kind):
    net = layers.Sequential(layers.Affine(3), layers.BatchNorm(), layers.ReLU(), layers.Affine(2))
    model = Model(net, (4,), backend=kind.backend, dtype="float64", rng=0)
    X, y = kind(normals((6, 4))), kind(np.arange(6) % 2)
    first = kind.to_numpy(model.loss(X)).copy()
    ema = EMA(model.params, 0.5, state=lambda: model.state)
    model.loss(X, y)  # moves the running statistics
    model.params.flat[...] = 2.0 * model.params.flat
    trained = kind.to_numpy(model.loss(X)).copy()
    with ema.swapped():
        kind.assert_close(model.loss(X), first)
    kind.assert_close(model.loss(X), trained)
    assert np.abs(first - trained).max() > 0.1


@MAKES
def test_lookahead_goes_back_every_few_steps(kind, dtype, make):
    net = Net(kind, dtype, make)
    lookahead = Lookahead(net.params, every=2, decay=0.75, state=net.state)
    net.step(1)
    assert not lookahead.update()
    net.assert_params(lambda name: weights(name, 1, dtype))
    net.step(2)
    assert lookahead.update()

    def slow(name):
        return 0.75 * weights(name, 0, dtype) + 0.25 * weights(name, 2, dtype)

    net.assert_params(slow, atol=3 * 4 * EPS[dtype])  # three roundings of numbers up to 4
    kind.assert_close(net.running["norm.running_mean"], slow("norm.running_mean"), atol=3 * 4 * EPS[dtype])
    kind.assert_close(net.running["count"], [2])
    net.step(3)
    lookahead.finish()
    net.assert_params(slow, atol=3 * 4 * EPS[dtype])


def test_lookaheads_decay_may_depend_on_progress(kind):
    net = Net(kind, "float64")
    lookahead = Lookahead(net.params, every=1, decay=lambda progress: progress**2)
    net.step(1)
    lookahead.update(0.5)
    net.assert_params(lambda n: 0.25 * weights(n, 0, "float64") + 0.75 * weights(n, 1, "float64"), 12 * EPS["float64"])


def test_slow_weights_are_apart_from_the_fast_ones(kind, dtype):
    net = Net(kind, dtype, dict)
    lookahead = Lookahead(net.params, every=1, decay=0.5)
    lookahead.update()
    net.params["b"] += 1.0  # as a rule that writes in place does
    kind.assert_close(lookahead.average["b"], weights("b", 0, dtype))


@pytest.mark.parametrize("there", ["numpy", "torch", "array-api-strict:device1"])
@pytest.mark.parametrize("average", [lambda *a, **k: EMA(*a, 0.5, **k), lambda *a, **k: Lookahead(*a, 1, 0.5, **k)])
def test_an_average_goes_where_the_parameters_go(kind, there, average):
    if not backends.get(there).is_available():
        pytest.skip(backends.get(there).reason)
    net = Net(kind, "float64")
    follower = average(net.params, state=net.state)
    target = backends.get(there)
    net.params.move(target)
    net.params.flat[...] = target.asarray(normals(9, 1))
    net.running = {"norm.running_mean": target.asarray(normals(3, 101))}
    follower.update()
    # three roundings of numbers up to 4
    received = backends.to_numpy(follower.average["W"]).ravel(), backends.to_numpy(follower.state_dict()["average/b"])
    np.testing.assert_allclose(
        np.concatenate(received), 0.5 * (normals(9) + normals(9, 1)), rtol=0, atol=12 * EPS["float64"]
    )
    assert {backends.of(array) for array in follower.state_dict().values()} == {target}


@MAKES
@pytest.mark.parametrize("average", [lambda *a, **k: EMA(*a, 0.5, **k), lambda *a, **k: Lookahead(*a, 2, 0.5, **k)])
def test_a_saved_average_goes_on_as_if_never_interrupted(kind, dtype, make, average):
    net, other = Net(kind, dtype, make), Net(kind, dtype, make)
    straight, rest = average(net.params, state=net.state), average(other.params, state=other.state)
    for step in (1, 2, 3):
        net.step(step)
        straight.update()
    saved = {name: np.array(backends.to_numpy(array)) for name, array in straight.state_dict().items()}
    assert saved.keys() == {"average/W", "average/b", "average/norm.running_mean", "updates"}
    rest.load_state_dict(saved)
    for each, follower in ((net, straight), (other, rest)):
        each.step(4)
        follower.update()
    assert rest.updates == straight.updates == 4
    for name, array in straight.state_dict().items():
        kind.assert_close(rest.state_dict()[name], kind.to_numpy(array))


@pytest.mark.parametrize("damage", [lambda a: a.pop("updates"), lambda a: a.update({"average/W": np.ones((3, 2))})])
def test_a_state_that_does_not_fit_is_refused(kind, damage):
    net = Net(kind, "float64")
    ema = EMA(net.params, 0.5)
    arrays = {name: kind.to_numpy(array) for name, array in ema.state_dict().items()}
    damage(arrays)
    with pytest.raises(CheckpointError, match=r"expected the average's (updates|average/W) of shape \((2, 3)?\)"):
        ema.load_state_dict(arrays)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: EMA(p, 1.0), "EMA: expected decay to be at least 0 and below 1; received 1.0"),
        (lambda p: EMA(p, "a"), "EMA: expected decay to be at least 0 and below 1; received 'a'"),
        (lambda p: Lookahead(p, "a"), "Lookahead: expected every to be a whole number of at least 1; received 'a'"),
        (
            lambda p: Lookahead(p, math.inf),
            "Lookahead: expected every to be a whole number of at least 1; received inf",
        ),
        (lambda p: Lookahead(p, 5, "a"), "Lookahead: expected decay to be from 0 to 1, or a callable; received 'a'"),
        (lambda p: Lookahead(p, 0), "Lookahead: expected every to be a whole number of at least 1; received 0"),
        (lambda p: Lookahead(p, 1.5), "Lookahead: expected every to be a whole number of at least 1; received 1.5"),
        (lambda p: Lookahead(p, 5, 2), "Lookahead: expected decay to be from 0 to 1, or a callable; received 2"),
    ],
)
def test_an_impossible_average_is_refused(kind, make, message):
    with pytest.raises(SettingError, match=message):
        make(Net(kind, "float64").params)
