"""A rule applied to a whole model."""

import numpy as np
import pytest

from oracles import EPS, normals
from xpnn.errors import SettingError
from xpnn.optim import RULES, Optimizer
from xpnn.optim import optimizer as optimizer_module
from xpnn.parameters import Parameters

ALL = pytest.mark.parametrize("rule", RULES)
SHAPES = {"W": (2, 3), "b": (3,)}


def filled(kind, dtype, seed):
    params = Parameters(SHAPES, kind.backend, dtype)
    params.flat[...] = kind(normals(9, seed), dtype)
    return params


def assert_params(kind, received, expected, atol=0.0):
    for name in SHAPES:
        kind.assert_close(received[name], kind.to_numpy(expected[name]), atol=atol)


@ALL
def test_a_step_over_the_buffer_is_the_rule_applied_to_each_parameter(kind, dtype, rule):
    params = filled(kind, dtype, 0)
    by_hand, configs = dict(params.copy()), dict.fromkeys(SHAPES)
    optimizer = Optimizer(params, rule, learning_rate=0.05)
    for step in range(3):
        grads = filled(kind, dtype, step + 1)
        optimizer.step(grads)
        for name in SHAPES:
            configs[name] = configs[name] or {"learning_rate": 0.05}
            by_hand[name], configs[name] = RULES[rule](by_hand[name], grads[name], configs[name])
    # the same arithmetic; a vector instruction may round differently from the scalar one at an array's end
    assert_params(kind, params, by_hand, atol=8 * EPS[dtype])


@ALL
@pytest.mark.parametrize("length", [1, 4, 9])
def test_blocks_of_the_buffer_take_the_step_of_the_whole(kind, dtype, rule, length, monkeypatch):
    whole, in_blocks = filled(kind, dtype, 0), filled(kind, dtype, 0)
    expected = Optimizer(whole, rule)
    expected.step(filled(kind, dtype, 1))
    monkeypatch.setattr(optimizer_module, "BLOCK", length)
    received = Optimizer(in_blocks, rule)
    received.step(filled(kind, dtype, 1))
    kind.assert_close(in_blocks.flat, kind.to_numpy(whole.flat), atol=8 * EPS[dtype])
    assert received.groups["flat"].get("t") == expected.groups["flat"].get("t")


@ALL
def test_a_plain_dict_takes_the_same_step(kind, dtype, rule):
    params, grads = filled(kind, dtype, 0), filled(kind, dtype, 1)
    plain = dict(params.copy())
    Optimizer(plain, rule).step(dict(grads))
    Optimizer(params, rule).step(grads)
    assert_params(kind, plain, params, atol=8 * EPS[dtype])


@ALL
def test_gradients_may_come_as_a_plain_dict(kind, dtype, rule):
    params, grads = filled(kind, dtype, 0), filled(kind, dtype, 1)
    other = params.copy()
    Optimizer(params, rule).step(grads)
    Optimizer(other, rule).step(dict(grads))
    kind.assert_close(other.flat, kind.to_numpy(params.flat))


@ALL
def test_the_views_stay_views_and_the_gradients_stay_as_they_are(kind, dtype, rule):
    params, grads = filled(kind, dtype, 0), filled(kind, dtype, 1)
    view = params["W"]
    Optimizer(params, rule).step(grads)
    assert params["W"] is view
    kind.assert_close(view, kind.to_numpy(params.flat[:6]).reshape(2, 3))
    kind.assert_close(grads.flat, normals(9, 1).astype(dtype))


@ALL
def test_state_exists_from_the_start(kind, dtype, rule):
    optimizer = Optimizer(filled(kind, dtype, 0), rule)
    before = {name: set(config) for name, config in optimizer.groups.items()}
    optimizer.step(filled(kind, dtype, 1))
    assert {name: set(config) for name, config in optimizer.groups.items()} == before


@ALL
def test_state_starts_at_zeros_like_the_parameters(kind, dtype, rule):
    for config in Optimizer(filled(kind, dtype, 0), rule).configs().values():
        for name in RULES[rule].state:
            kind.check(config[name], dtype)
            assert not kind.to_numpy(config[name]).any()


@ALL
def test_configs_has_an_entry_for_each_parameter_of_its_shape(kind, dtype, rule):
    optimizer = Optimizer(filled(kind, dtype, 0), rule, learning_rate=0.5)
    configs = optimizer.configs()
    assert list(configs) == list(SHAPES)
    for name, config in configs.items():
        assert config["learning_rate"] == 0.5
        for key in RULES[rule].state:
            kind.check(config[key], dtype, SHAPES[name])


def test_configs_are_views_into_the_state(kind, dtype):
    optimizer = Optimizer(filled(kind, dtype, 0), "sgd_momentum", learning_rate=1.0, momentum=1.0)
    optimizer.configs()["b"]["velocity"][...] = 7.0
    kind.assert_close(optimizer.groups["flat"]["velocity"], [0, 0, 0, 0, 0, 0, 7, 7, 7])


def test_state_given_by_the_caller_is_used(kind, dtype):
    params = filled(kind, dtype, 0)
    velocity = kind(np.full(9, 2.0), dtype)
    optimizer = Optimizer(params, "sgd_momentum", momentum=0.5, velocity=velocity)
    optimizer.step(params.like())
    kind.assert_close(params.flat, normals(9).astype(dtype) + np.ones(9, dtype), atol=EPS[dtype])


def test_a_rule_of_the_users_own_runs_on_each_parameter(kind, dtype):
    seen = []

    def shrink(w, dw, config):
        seen.append(tuple(w.shape))
        config["calls"] = config.get("calls", 0) + 1
        return w * config["factor"], config

    params = filled(kind, dtype, 0)
    optimizer = Optimizer(params, shrink, factor=0.5)
    optimizer.step(params.like())
    optimizer.step(params.like())
    assert seen == [(2, 3), (3,)] * 2
    kind.assert_close(params.flat, 0.25 * normals(9).astype(dtype))
    assert {name: config["calls"] for name, config in optimizer.configs().items()} == {"W": 2, "b": 2}


def test_a_users_rule_may_return_a_new_config(kind):
    params = filled(kind, "float64", 0)
    optimizer = Optimizer(params, lambda w, dw, config: (w, {"n": config.get("n", 0) + 1}))
    optimizer.step(params.like())
    optimizer.step(params.like())
    assert optimizer.configs() == {"W": {"n": 2}, "b": {"n": 2}}


def test_xpnns_rule_may_be_given_as_a_function(kind, dtype):
    params, other, grads = filled(kind, dtype, 0), filled(kind, dtype, 0), filled(kind, dtype, 1)
    Optimizer(params, RULES["adam"]).step(grads)
    Optimizer(other, "adam").step(grads)
    kind.assert_close(params.flat, kind.to_numpy(other.flat))


@pytest.mark.parametrize("make", [lambda p: p, dict], ids=["buffer", "dict"])
def test_the_learning_rate_can_be_read_and_set(kind, make):
    params = filled(kind, "float64", 0)
    weights = make(params)
    optimizer = Optimizer(weights, "sgd", learning_rate=0.5)
    assert optimizer.learning_rate == 0.5
    optimizer.learning_rate = 0.0
    optimizer.step(make(filled(kind, "float64", 1)))
    assert_params(kind, weights, filled(kind, "float64", 0))


def test_the_learning_rate_of_a_rule_that_has_none_is_none(kind):
    optimizer = Optimizer(filled(kind, "float64", 0), lambda w, dw, config: (w, config))
    assert optimizer.learning_rate is None


def test_a_numpy_learning_rate_does_not_promote_float32(kind):
    plain = dict(filled(kind, "float32", 0))
    optimizer = Optimizer(plain, "adam", learning_rate=np.float64(1e-3))
    optimizer.step(dict(filled(kind, "float32", 1)))
    for name, shape in SHAPES.items():
        kind.check(plain[name], "float32", shape)
        kind.check(optimizer.configs()[name]["v"], "float32", shape)


def test_two_optimizers_share_no_state(kind):
    first, second = (Optimizer(filled(kind, "float64", 0), "adam") for _ in range(2))
    first.step(filled(kind, "float64", 1))
    assert first.groups["flat"]["t"] == 1
    assert second.groups["flat"]["t"] == 0
    assert not kind.to_numpy(second.groups["flat"]["v"]).any()


def test_an_unknown_rule_is_refused(kind):
    with pytest.raises(SettingError, match="update rule: expected one of sgd, .*, or a callable; received 'adamw'"):
        Optimizer(filled(kind, "float64", 0), "adamw")


def test_an_unknown_setting_is_refused(kind):
    with pytest.raises(SettingError, match="adam: expected settings among learning_rate, .*; received 'momentum'"):
        Optimizer(filled(kind, "float64", 0), "adam", momentum=0.9)


@pytest.mark.parametrize("queueing", [False, True])
@pytest.mark.parametrize("flat", [True, False])
def test_parameters_stay_where_the_condition_is_false(kind, queueing, flat, monkeypatch):
    monkeypatch.setattr(type(kind.backend), "asynchronous", property(lambda self: queueing))
    params = Parameters({"W": (2, 3)}, kind.backend, "float64")
    params["W"] = np.ones((2, 3))
    grads = params.copy()
    target = params if flat else {"W": params["W"]}
    optimizer = Optimizer(target, "sgd", learning_rate=0.5)
    optimizer.step(grads if flat else {"W": grads["W"]}, where=kind.xp.asarray(False, device=kind.backend.device))
    kind.assert_close(target["W"], np.ones((2, 3)))
    optimizer.step(grads if flat else {"W": grads["W"]}, where=kind.xp.asarray(True, device=kind.backend.device))
    kind.assert_close(target["W"], np.full((2, 3), 0.5))
