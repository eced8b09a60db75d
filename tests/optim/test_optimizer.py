"""A rule applied to a whole model."""

import copy
import math
import pickle

import numpy as np
import pytest

from oracles import EPS, normals
from xpnn import backend as backends
from xpnn.errors import SettingError
from xpnn.optim import RULES, Optimizer, ParamGroup
from xpnn.optim import in_place as in_place_module
from xpnn.parameters import Parameters

ALL = pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if rule.elementwise])
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
    monkeypatch.setattr(in_place_module, "BLOCK", length)
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


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"W": (2, 3)}, "expected a gradient of b; received none"),
        ({"W": (2, 3), "a": (3,)}, "expected gradients of W, b; received a"),
        ({"W": (3, 2), "b": (3,)}, r"W: expected a gradient of shape \(2, 3\); received \(3, 2\)"),
        ({**SHAPES, "c": (1,)}, "expected gradients of W, b; received c"),
    ],
    ids=["fewer", "named otherwise", "turned", "more"],
)
def test_gradients_of_other_parameters_are_refused_and_change_nothing(kind, shapes, message, as_dict):
    params, grads = filled(kind, "float64", 0), Parameters(shapes, kind.backend, "float64")
    optimizer = Optimizer(params, "adam")
    with pytest.raises(ValueError, match=f"^Optimizer: {message}"):
        optimizer.step(dict(grads) if as_dict else grads)
    kind.assert_close(params.flat, kind.to_numpy(filled(kind, "float64", 0).flat))
    assert optimizer.groups["flat"]["t"] == 0


@ALL
def test_gradients_may_come_in_another_order(kind, dtype, rule):
    params, grads = filled(kind, dtype, 0), filled(kind, dtype, 1)
    other, turned = params.copy(), Parameters(dict(reversed(SHAPES.items())), kind.backend, dtype)
    turned.update(grads)
    Optimizer(params, rule).step(grads)
    Optimizer(other, rule).step(turned)
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
    optimizer = Optimizer(filled(kind, dtype, 0), "sgd_momentum", learning_rate=1.0, momentum=0.0)
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


def test_a_users_rule_may_keep_what_it_was_given(kind, dtype):
    def keep(w, dw, config):
        if "w" in config:
            kind.assert_close(config["w"], expected["w"])
            kind.assert_close(config["dw"], expected["dw"])
        expected["w"], expected["dw"] = np.array(kind.to_numpy(w)), np.array(kind.to_numpy(dw))
        return w - dw, {"w": w, "dw": dw}

    expected = {}
    params, grads = filled(kind, dtype, 0), filled(kind, dtype, 1)
    optimizer = Optimizer(params, "frozen", groups=[ParamGroup("W", keep)])
    optimizer.step(grads)
    grads.flat[...] = kind(normals(9, 2), dtype)  # the next batch's, in the same memory
    optimizer.step(grads)


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
    with pytest.raises(SettingError, match="update rule: expected one of sgd, .*, or a callable; received 'adamu'"):
        Optimizer(filled(kind, "float64", 0), "adamu")


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


NET = {"conv1.W": (3, 2, 1, 2), "conv1.b": (3,), "norm.beta": (3,), "conv2.W": (2, 3), "conv2.b": (2,)}
SIZE = 12 + 3 + 3 + 6 + 2


def net(kind, dtype, seed):
    params = Parameters(NET, kind.backend, dtype)
    params.flat[...] = kind(normals(SIZE, seed), dtype)
    return params


def by_hand(kind, dtype, how, steps):
    """The parameters of `net` after some steps of the rule that `how` names for each, one by one; None for frozen."""
    params = dict(net(kind, dtype, 0).copy())
    configs = {name: None if how[name] is None else dict(how[name][1]) for name in NET}
    for step in range(steps):
        grads = net(kind, dtype, step + 1)
        for name in NET:
            if how[name] is not None:
                params[name], configs[name] = RULES[how[name][0]](params[name], grads[name], configs[name])
    return params, configs


@pytest.mark.parametrize("make", [lambda p: p, dict], ids=["buffer", "dict"])
@pytest.mark.parametrize("length", [2, 65_536])
@pytest.mark.parametrize("queueing", [False, True])
def test_each_group_goes_by_its_own_rule_and_settings(kind, dtype, make, length, queueing, monkeypatch):
    monkeypatch.setattr(in_place_module, "BLOCK", length)
    monkeypatch.setattr(type(kind.backend), "asynchronous", property(lambda self: queueing))
    params = make(net(kind, dtype, 0))
    groups = [
        ParamGroup("norm.*", "frozen"),
        ParamGroup("*.b", learning_rate=0.25),
        ParamGroup("conv1.*", "muon", learning_rate=0.125),
    ]
    optimizer = Optimizer(params, "adam", groups=groups, learning_rate=0.5, beta1=0.75)
    for step in range(3):
        optimizer.step(make(net(kind, dtype, step + 1)))
    bias = ("adam", {"learning_rate": 0.25, "beta1": 0.75})  # what the group does not give is the optimizer's
    how = {
        "conv1.W": ("muon", {"learning_rate": 0.125}),
        "conv1.b": bias,
        "norm.beta": None,
        "conv2.W": ("adam", {"learning_rate": 0.5, "beta1": 0.75}),
        "conv2.b": bias,
    }
    expected, configs = by_hand(kind, dtype, how, 3)
    received = optimizer.configs()
    assert list(received) == [name for name in NET if name != "norm.beta"]
    for name in NET:
        # the same arithmetic; a vector instruction may round differently from the scalar one at an array's end
        kind.assert_close(params[name], kind.to_numpy(expected[name]), atol=3 * 8 * EPS[dtype])
    for name, config in received.items():
        assert config.keys() == configs[name].keys()
        assert config.get("t") == configs[name].get("t")
        for key in RULES[how[name][0]].state:
            kind.check(config[key], dtype, NET[name])
            kind.assert_close(config[key], kind.to_numpy(configs[name][key]), atol=3 * 8 * EPS[dtype])


def test_a_group_has_one_state_over_its_parameters_and_neighbors_are_one_segment(kind, dtype):
    groups = [ParamGroup("conv1.*", "sgd_momentum"), ParamGroup("conv2.W", "muon")]
    optimizer = Optimizer(net(kind, dtype, 0), "adam", groups=groups)
    assert list(optimizer.groups) == ["flat", "conv1.*", "conv2.W"]
    kind.check(optimizer.groups["flat"]["v"], dtype, (3 + 2,))
    kind.check(optimizer.groups["conv1.*"]["velocity"], dtype, (12 + 3,))
    kind.check(optimizer.groups["conv2.W"]["velocity"], dtype, (2, 3))
    assert optimizer._parts["conv1.*"].segments == [slice(0, 15)]
    assert optimizer._parts["flat"].segments == [slice(15, 18), slice(24, 26)]


def test_without_groups_the_buffer_is_one_segment(kind):
    optimizer = Optimizer(net(kind, "float64", 0), "adam")
    assert list(optimizer.groups) == ["flat"]
    assert optimizer._parts["flat"].segments == [slice(0, SIZE)]


def test_the_first_group_that_matches_takes_a_parameter(kind):
    params = net(kind, "float64", 0)
    groups = [ParamGroup("conv1.b", learning_rate=0.5), ParamGroup("*.b", learning_rate=0.25)]
    configs = Optimizer(params, "sgd", groups=groups, learning_rate=1.0).configs()
    rates = {name: config["learning_rate"] for name, config in configs.items()}
    assert rates == {"conv1.W": 1.0, "conv1.b": 0.5, "norm.beta": 1.0, "conv2.W": 1.0, "conv2.b": 0.25}


def test_a_group_may_have_several_patterns(kind):
    params = net(kind, "float64", 0)
    optimizer = Optimizer(params, "sgd", groups=[ParamGroup(["conv1.b", "norm.*"], "frozen")], learning_rate=0.5)
    before = {name: kind.to_numpy(w).copy() for name, w in params.items()}
    optimizer.step(net(kind, "float64", 1))
    moved = {name for name, w in params.items() if (kind.to_numpy(w) != before[name]).any()}
    assert moved == {name for name in params if name != "conv1.b" and not name.startswith("norm.")}


def test_every_pattern_of_a_group_must_match(kind):
    with pytest.raises(SettingError, match=r"received '\*\.bias', which matches none of conv1\.W"):
        Optimizer(net(kind, "float64", 0), "sgd", groups=[ParamGroup(["*.b", "*.bias"])])


def test_a_group_cannot_have_the_buffers_name(kind):
    with pytest.raises(SettingError, match="group 'flat': expected another pattern"):
        Optimizer(net(kind, "float64", 0), "sgd", groups=[ParamGroup("flat")])


def test_a_frozen_group_has_no_schedule():
    with pytest.raises(SettingError, match="frozen: expected no schedule; received 'linear'"):
        ParamGroup("*.b", "frozen", schedule="linear")


def test_setting_the_rate_keeps_the_groups_in_proportion(kind):
    groups = [ParamGroup("conv1.b", learning_rate=0.0), ParamGroup("*.b", learning_rate=0.2)]
    optimizer = Optimizer(net(kind, "float64", 0), "sgd", groups=groups, learning_rate=0.1)
    optimizer.learning_rate = 0.05
    rates = {name: config["learning_rate"] for name, config in optimizer.groups.items()}
    assert rates == {"flat": 0.05, "conv1.b": 0.0, "*.b": 0.1}


def test_a_rate_of_zero_has_no_proportion(kind):
    groups = [ParamGroup("*.b", learning_rate=0.2)]
    optimizer = Optimizer(net(kind, "float64", 0), "sgd", groups=groups, learning_rate=0.0)
    with pytest.raises(SettingError, match="expected a first learning_rate other than 0"):
        optimizer.learning_rate = 0.05


@pytest.mark.parametrize("pattern", [3, [], ["*.b", 3], None])
def test_what_is_no_pattern_is_refused(pattern):
    with pytest.raises(SettingError, match="ParamGroup: expected a pattern of parameters' names; received"):
        ParamGroup(pattern)


def test_another_rule_in_a_group_starts_from_its_own_defaults(kind):
    optimizer = Optimizer(
        net(kind, "float64", 0), "adam", groups=[ParamGroup("*.b", "sgd_momentum")], learning_rate=0.5
    )
    assert optimizer.groups["*.b"]["learning_rate"] == 1e-2
    same = Optimizer(net(kind, "float64", 0), "adam", groups=[ParamGroup("*.b", RULES["adam"])], learning_rate=0.5)
    assert same.groups["*.b"]["learning_rate"] == 0.5


def test_all_but_a_group_may_be_frozen(kind, dtype):
    params = net(kind, dtype, 0)
    optimizer = Optimizer(params, "frozen", groups=[ParamGroup("conv2.*", "sgd", learning_rate=0.5)])
    optimizer.step(net(kind, dtype, 1))
    expected = normals(SIZE).astype(dtype)
    expected[18:] -= 0.5 * normals(SIZE, 1).astype(dtype)[18:]
    kind.assert_close(params.flat, expected, atol=8 * EPS[dtype])
    assert optimizer.learning_rate == 0.5
    assert optimizer.rule_name == "frozen"


def test_where_all_is_frozen_a_step_changes_nothing(kind):
    params = net(kind, "float64", 0)
    optimizer = Optimizer(params, "frozen", clip_norm=1.0)
    optimizer.step(net(kind, "float64", 1), where=kind.xp.asarray(True, device=kind.backend.device))
    kind.assert_close(params.flat, normals(SIZE))
    assert optimizer.groups == optimizer.configs() == {}
    assert optimizer.learning_rate is None


def test_a_frozen_parameter_needs_no_gradient(kind):
    params = dict(net(kind, "float64", 0))
    grads = {name: grad for name, grad in net(kind, "float64", 1).items() if name != "norm.beta"}
    optimizer = Optimizer(params, "sgd", groups=[ParamGroup("norm.*", "frozen")], learning_rate=0.5, clip_norm=1e9)
    optimizer.step(grads)
    kind.assert_close(params["norm.beta"], normals(SIZE)[15:18])


@pytest.mark.parametrize("pattern", ["a", "b"])
def test_a_users_rule_that_raises_leaves_the_other_groups_as_they_were(kind, pattern):
    def rule(w, dw, config):
        raise KeyError

    params = Parameters({"a": (3,), "b": (2,)}, kind.backend)
    params.flat[...] = kind([1.0, 2.0, 3.0, 4.0, 5.0], "float32")
    grads = params.like()
    grads.flat[...] = 1.0
    optimizer = Optimizer(params, "adam", groups=[ParamGroup(pattern, rule)])
    with pytest.raises(KeyError):
        optimizer.step(grads)
    assert optimizer.groups["flat"]["t"] == 0
    kind.assert_close(params.flat, [1, 2, 3, 4, 5])


def test_a_users_rule_may_be_a_groups(kind, dtype):
    params = net(kind, dtype, 0)
    halve = ParamGroup("conv?.W", lambda w, dw, config: (w * config["factor"], config), factor=0.5)
    Optimizer(params, "sgd", groups=[halve], learning_rate=0.0).step(net(kind, dtype, 1))
    kind.assert_close(params["conv1.W"], 0.5 * normals(SIZE).astype(dtype)[:12].reshape(3, 2, 1, 2))
    kind.assert_close(params["conv1.b"], normals(SIZE).astype(dtype)[12:15])


def test_a_callers_state_is_the_optimizers_and_not_the_groups(kind):
    velocity = kind(np.ones(SIZE - 5))
    groups = [ParamGroup("*.b", momentum=0.5)]
    optimizer = Optimizer(net(kind, "float64", 0), "sgd_momentum", groups=groups, velocity=velocity)
    kind.assert_close(optimizer.groups["flat"]["velocity"], np.ones(SIZE - 5))
    kind.assert_close(optimizer.groups["*.b"]["velocity"], np.zeros(5))


@pytest.mark.parametrize("rule", ["adam", "muon"])
@pytest.mark.parametrize("groups", [(), (ParamGroup("a.*", learning_rate=0.25), ParamGroup("c", "sgd"))])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("queueing", [False, True])
def test_a_condition_holds_for_every_group(kind, rule, groups, clip_norm, queueing, monkeypatch):
    monkeypatch.setattr(type(kind.backend), "asynchronous", property(lambda self: queueing))
    params = Parameters({"a.x": (2, 2), "b": (2, 2), "a.y": (1, 2), "c": (2, 1)}, kind.backend, "float64")
    params.flat[...] = kind(normals(12))
    grads = params.copy()
    optimizer = Optimizer(params, rule, groups=groups, clip_norm=clip_norm)
    state = RULES[rule].state[0]
    optimizer.step(grads, where=kind.xp.asarray(False, device=kind.backend.device))
    kind.assert_close(params.flat, normals(12))
    assert not any(kind.to_numpy(config[state]).any() for config in optimizer.groups.values() if state in config)
    optimizer.step(grads, where=kind.xp.asarray(True, device=kind.backend.device))
    assert (kind.to_numpy(params.flat) != normals(12)).all()
    assert all(kind.to_numpy(config[state]).all() for config in optimizer.groups.values() if state in config)


@pytest.mark.parametrize("there", ["numpy", "torch", "array-api-strict:device1"])
def test_the_state_of_every_group_goes_where_the_parameters_go(kind, there):
    if not backends.get(there).is_available():
        pytest.skip(backends.get(there).reason)
    params, stays = net(kind, "float64", 0), net(kind, "float64", 0)
    groups = [ParamGroup("conv1.W", "muon"), ParamGroup("*.b", learning_rate=0.25)]
    moving, staying = (Optimizer(p, "adam", groups=groups, clip_norm=1.0) for p in (params, stays))
    for step in range(3):
        if step == 2:
            params.move(backends.get(there))
        moving.step(net(kind, "float64", step + 1).to(params.backend))
        staying.step(net(kind, "float64", step + 1))
    # muon's three steps of 15 small products may each be added up in another order
    np.testing.assert_allclose(
        backends.to_numpy(params.flat), kind.to_numpy(stays.flat), atol=3 * 3.4445**5 * EPS["float64"]
    )


@pytest.mark.parametrize("make", [lambda p: p, dict], ids=["buffer", "dict"])
@pytest.mark.parametrize("length", [4, 65_536])
def test_large_gradients_are_scaled_down_to_the_norm(kind, dtype, make, length, monkeypatch):
    monkeypatch.setattr(in_place_module, "BLOCK", length)
    params, grads = make(filled(kind, dtype, 0)), make(filled(kind, dtype, 1))
    Optimizer(params, "sgd", learning_rate=1.0, clip_norm=0.5).step(grads)
    w, dw = normals(9).astype(dtype), normals(9, 1).astype(dtype)
    expected = w - dw * 0.5 / (np.sqrt((dw.astype("float64") ** 2).sum()) + 1e-6)
    kind.assert_close(params["W"], expected[:6].reshape(2, 3), atol=16 * EPS[dtype])  # nine numbers are summed
    kind.assert_close(params["b"], expected[6:], atol=16 * EPS[dtype])
    kind.assert_close(grads["W"], dw[:6].reshape(2, 3))  # the caller's gradients are not modified


def test_small_gradients_are_not_scaled(kind, dtype):
    params, other, grads = filled(kind, dtype, 0), filled(kind, dtype, 0), filled(kind, dtype, 1)
    Optimizer(params, "adam", clip_norm=100.0).step(grads)
    Optimizer(other, "adam").step(grads)
    kind.assert_close(params.flat, kind.to_numpy(other.flat))


def test_the_norm_is_that_of_all_parameters_but_the_frozen_ones(kind):
    params = Parameters({"a": (1,), "b": (1, 1), "c": (1,), "d": (1,)}, kind.backend, "float64")
    grads = params.like()
    grads.flat[...] = kind([2.0, 3.0, 1e9, 6.0])
    groups = [ParamGroup("b", "muon", learning_rate=0.0), ParamGroup("c", "frozen"), ParamGroup("d", momentum=0.0)]
    Optimizer(params, "sgd_momentum", learning_rate=1.0, groups=groups, clip_norm=3.5).step(grads)
    half = 3.5 / (7.0 + 1e-6)  # sqrt(4 + 9 + 36)
    kind.assert_close(params.flat, [-2 * half, 0.0, 0.0, -6 * half], rtol=8 * EPS["float64"])


def test_clipping_waits_for_no_device(monkeypatch):
    strict = backends.get("array-api-strict:device1")
    if not strict.is_available():
        pytest.skip(strict.reason)
    monkeypatch.setattr(type(strict), "asynchronous", property(lambda self: True))
    params = Parameters(NET, strict, "float32")
    params.flat[...] = strict.asarray(normals(SIZE), "float32")
    grads, where = params.copy(), strict.namespace.asarray(True, device=strict.device)
    groups = [ParamGroup("conv1.W", "muon", normalize_weights=1), ParamGroup("*.b", "lion")]
    optimizer = Optimizer(params, "nesterov", groups=groups, clip_norm=1.0)
    for name in ("__float__", "__int__", "__bool__", "__index__", "to_device"):
        monkeypatch.setattr(type(where), name, lambda *args: pytest.fail("a value was read from the device"))
    optimizer.set_progress(0.5, "cosine")
    optimizer.step(grads, where=where)


def test_set_progress_scales_every_first_rate_by_its_schedule(kind):
    groups = [
        ParamGroup("conv1.b", learning_rate=0.25, schedule=lambda t: 1 - 2 * t),
        ParamGroup("*.b", "sgd", learning_rate=2.0, schedule="constant"),
    ]
    optimizer = Optimizer(net(kind, "float64", 0), "adam", groups=groups, learning_rate=0.5)
    for progress, factor in ((0.25, 1.0), (0.25, 0.5), (0.0, 1.0)):
        optimizer.set_progress(progress, "linear", factor)
        rates = {name: config["learning_rate"] for name, config in optimizer.groups.items()}
        assert rates == {
            "flat": 0.5 * (1 - progress) * factor,
            "conv1.b": 0.25 * (1 - 2 * progress) * factor,
            "*.b": 2.0 * factor,
        }


def test_a_group_may_stop_before_the_end(kind):
    bias = ParamGroup("conv1.b", schedule="piecewise:0=1,0.375=0,1=0")
    optimizer = Optimizer(net(kind, "float64", 0), "sgd", groups=[bias], learning_rate=0.5)
    rates = []
    for step in (0, 3, 6, 8, 15):  # of 16
        optimizer.set_progress(step / 16)
        rates.append(optimizer.groups["conv1.b"]["learning_rate"])
    assert rates == [0.5, 0.25, 0.0, 0.0, 0.0]


def test_the_learning_rate_that_is_set_moves_all_rates_in_proportion(kind):
    groups = [ParamGroup("*.b", learning_rate=0.25), ParamGroup("conv1.W", "muon", learning_rate=1.5)]
    optimizer = Optimizer(net(kind, "float64", 0), "sgd", groups=groups, learning_rate=0.5)
    optimizer.learning_rate = 0.25
    assert {name: c["learning_rate"] for name, c in optimizer.groups.items()} == {
        "flat": 0.25,
        "*.b": 0.125,
        "conv1.W": 0.75,
    }


def test_settings_name_those_of_every_group(kind):
    params = net(kind, "float64", 0)
    assert Optimizer(params, "sgd_momentum", momentum=0.5).settings() == {"momentum": 0.5}
    groups = [ParamGroup("norm.*", "frozen"), ParamGroup("*.b", momentum=0.25), ParamGroup("conv1.W", "lion")]
    assert Optimizer(params, "sgd_momentum", momentum=0.5, groups=groups, clip_norm=2).settings() == {
        "clip_norm": 2.0,
        "momentum": 0.5,
        "norm.*.rule": "frozen",
        "*.b.rule": "sgd_momentum",
        "*.b.momentum": 0.25,
        "conv1.W.rule": "lion",
        "conv1.W.beta1": 0.9,
        "conv1.W.beta2": 0.99,
        "conv1.W.weight_decay": 0.0,
    }


def test_each_group_has_the_defaults_of_its_rule(kind):
    mixed = Optimizer(net(kind, "float64", 0), "sgd_momentum", groups=[ParamGroup("*.b", "adam")])
    assert mixed.defaults_of("flat") == {"learning_rate": 1e-2, "momentum": 0.9}
    assert mixed.defaults_of("*.b") == RULES["adam"].defaults


def test_a_model_without_parameters_has_an_optimizer(kind):
    params = Parameters({}, kind.backend, "float32")
    optimizer = Optimizer(params, "adam")
    optimizer.step(params.like())
    assert list(optimizer.groups) == ["flat"]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"groups": [ParamGroup("fc*")]},
            r"group 'fc\*': expected a pattern that matches parameters; received .*conv2.b",
        ),
        (
            {"groups": [ParamGroup("*.b"), ParamGroup("conv1.b")]},
            "group 'conv1.b': expected .* that no group before has taken; received one that matches none of conv1.W, ",
        ),
        (
            {"groups": [ParamGroup("*"), ParamGroup("*.b")]},
            r"group '\*.b': expected .* that no group before has taken; there are none$",
        ),
        ({"groups": [ParamGroup("*.b", "adamu")]}, r"group '\*.b': update rule: expected one of sgd, .*'adamu'"),
        ({"groups": [ParamGroup("*.b", lr=1)]}, r"group '\*.b': adam: expected settings among .*received 'lr'"),
        (
            {"groups": [ParamGroup("*.b", learning_rate="fast")]},
            r"group '\*.b': adam: expected learning_rate to be a number of at least 0; received 'fast'",
        ),
        ({"groups": [ParamGroup("*.b", "frozen", learning_rate=1)]}, "frozen: expected no settings; .*'learning_rate'"),
        ({"groups": [ParamGroup("norm*", "muon")]}, r"muon: expected .* 2 dimensions; received norm.beta \(3,\)"),
        ({"rule": "muon"}, r"^muon: expected parameters of at least 2 dimensions; received conv1.b \(3,\)"),
        ({"clip_norm": 0}, "Optimizer: expected clip_norm to be a number above 0; received 0"),
        (
            {"groups": [ParamGroup("conv1.W", "muon", newton_schulz_dtype="float32")]},
            "group 'conv1.W': muon: expected newton_schulz_dtype to be one of float16, bfloat16, or .* 'float32'",
        ),
        ({"groups": ["*.b"]}, r"Optimizer: expected groups to be a sequence of ParamGroup; received \['\*.b'\]"),
        (
            {"groups": ParamGroup("*.b")},
            "Optimizer: expected groups to be a sequence of ParamGroup; received ParamGroup",
        ),
        ({"clip_norm": math.nan}, "Optimizer: expected clip_norm to be a number above 0; received nan"),
        ({"clip_norm": "x"}, "Optimizer: expected clip_norm to be a number above 0; received 'x'"),
    ],
)
def test_what_an_optimizer_cannot_work_with_is_named(kind, kwargs, message):
    with pytest.raises(SettingError, match=message):
        Optimizer(net(kind, "float64", 0), **{"rule": "adam", **kwargs})


@pytest.mark.parametrize(
    ("rule", "setting", "value", "expected"),
    [
        ("sgd", "learning_rate", -1, "a number of at least 0"),
        ("sgd", "learning_rate", math.nan, "a number of at least 0"),
        ("sgd", "learning_rate", math.inf, "a number of at least 0"),
        ("sgd", "learning_rate", "0.1", "a number of at least 0"),
        ("adam", "beta1", 1.0, "a number of at least 0 and below 1"),
        ("adam", "beta2", -0.1, "a number of at least 0 and below 1"),
        ("sgd_momentum", "momentum", 1, "a number of at least 0 and below 1"),
        ("rmsprop", "decay_rate", math.nan, "a number of at least 0 and below 1"),
        ("rmsprop", "epsilon", -1e-8, "a number of at least 0"),
        ("adamw", "weight_decay", -1, "a number of at least 0"),
        ("adam", "t", 1.5, "a whole number of at least 0"),
        ("adam", "t", math.inf, "a whole number of at least 0"),
    ],
)
def test_an_impossible_setting_is_refused(kind, rule, setting, value, expected):
    params, message = net(kind, "float64", 0), f"{rule}: expected {setting} to be {expected}; received {value!r}$"
    with pytest.raises(SettingError, match="^" + message):
        Optimizer(params, rule, **{setting: value})
    with pytest.raises(SettingError, match=r"^group '\*.b': " + message):
        Optimizer(params, "lion", groups=[ParamGroup("*.b", rule, **{setting: value})])


def test_a_dtype_that_the_parameters_backend_has_not_is_refused(kind):
    group = ParamGroup("conv1.W", "muon", newton_schulz_dtype="bfloat16")
    if hasattr(kind.xp, "bfloat16"):
        optimizer = Optimizer(net(kind, "float64", 0), groups=[group])
        assert optimizer.settings()["conv1.W.newton_schulz_dtype"] == "bfloat16"
    else:
        expected = "^group 'conv1.W': muon: newton_schulz_dtype: expected one that .* has, .*; received 'bfloat16'"
        with pytest.raises(SettingError, match=expected):
            Optimizer(net(kind, "float64", 0), groups=[group])


def test_a_step_of_muon_over_the_buffer_is_that_of_the_rule(kind, dtype):
    params = Parameters({"a": (2, 3), "b": (4, 1, 1, 2)}, kind.backend, dtype)
    params.flat[...] = kind(normals(14), dtype)
    by_hand, configs = dict(params.copy()), {"a": None, "b": None}
    optimizer = Optimizer(params, "muon")
    for step in range(3):
        grads = params.like()
        grads.flat[...] = kind(normals(14, step + 1), dtype)
        optimizer.step(grads)
        for name, config in configs.items():
            by_hand[name], configs[name] = RULES["muon"](by_hand[name], grads[name], config)
            kind.assert_close(params[name], kind.to_numpy(by_hand[name]), atol=8 * EPS[dtype])


def test_muon_leaves_arrays_of_a_plain_dict_to_their_owner(kind):
    params = {"W": kind(normals((2, 3)))}
    before, values = params["W"], kind.to_numpy(params["W"]).copy()
    Optimizer(params, "muon").step({"W": kind(normals((2, 3), 1))})
    kind.assert_close(before, values)
    assert (kind.to_numpy(params["W"]) != values).all()


def test_a_learning_rate_may_be_zero(kind):
    assert Optimizer(net(kind, "float64", 0), "adam", learning_rate=0).learning_rate == 0


def test_what_a_group_cannot_be_is_named():
    with pytest.raises(SettingError, match="ParamGroup: expected a pattern of parameters' names; received 3"):
        ParamGroup(3)
    with pytest.raises(SettingError, match=r"group '\*.b': schedule: expected one of constant, .*received 'up'"):
        ParamGroup("*.b", schedule="up")


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_of_an_optimizer_goes_on_alike(duplicate):
    params = Parameters(NET, backends.get("numpy"), "float64")
    params.flat[...] = normals(SIZE)
    groups = [ParamGroup("*.b", "lion", schedule="one-cycle"), ParamGroup("conv1.W", "muon")]
    optimizer = Optimizer(params, "adam", groups=groups, clip_norm=1.0)
    grads = params.copy()
    optimizer.step(grads)
    twin = duplicate(optimizer)
    for each in (optimizer, twin):
        each.set_progress(0.5)
        each.step(grads)
    assert twin.params is not params
    np.testing.assert_array_equal(twin.params.flat, params.flat)
    assert twin.settings() == optimizer.settings()


def test_a_forbidden_step_counts_on_every_kind(kind):
    params = Parameters({"w": (3,)}, kind.backend)
    optimizer = Optimizer(params, "adam")
    grads = params.like()
    grads["w"] = kind(np.ones(3), "float32")
    optimizer.step(grads, where=kind(np.array(False)))
    kind.assert_close(params["w"], np.zeros(3))
    kind.assert_close(optimizer.groups["flat"]["v"], np.zeros(3))
    assert optimizer.groups["flat"]["t"] == 1
