"""Update rules."""

import numpy as np
import pytest

from oracles import COURSE, EPS, course_case, course_tolerance, normals
from xpnn import backend as backends
from xpnn.optim import RULES, adam, rmsprop, sgd, sgd_momentum, sgd_nesterov_momentum

ALL = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
STATE = {
    "sgd": (),
    "sgd_momentum": ("velocity",),
    "sgd_nesterov_momentum": ("velocity",),
    "rmsprop": ("a",),
    "adam": ("v", "a"),
}
DEFAULTS = {
    "sgd": {"learning_rate": 1e-2},
    "sgd_momentum": {"learning_rate": 1e-2, "momentum": 0.9},
    "sgd_nesterov_momentum": {"learning_rate": 1e-2, "momentum": 0.9},
    "rmsprop": {"learning_rate": 1e-2, "decay_rate": 0.99, "epsilon": 1e-8},
    "adam": {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8},
}


def a_few(dtype):
    """Tolerance: the few roundings of a rule's one line, each at most eps."""
    return 8 * EPS[dtype]


@pytest.mark.parametrize("name", ["sgd_momentum", "sgd_nesterov_momentum", "rmsprop", "adam"])
def test_a_step_gives_the_values_that_the_course_published(kind, dtype, name):
    inputs, expected = course_case(name)
    config = {
        key: kind(inputs[value[1:-1]], dtype) if isinstance(value, str) else value
        for key, value in COURSE["tests"][name]["params"]["config"].items()
    }
    next_w, config = RULES[name](kind(inputs["w"], dtype), kind(inputs["dw"], dtype), config)
    received = {"next_w": next_w, **config}
    for key, values in expected.items():
        kind.check(received[key], dtype)
        kind.assert_close(received[key], values, atol=course_tolerance(values, dtype))


def test_adam_counts_the_published_step(kind):
    inputs, _ = course_case("adam")
    config = {key: kind(inputs[key]) for key in "va"} | {"learning_rate": 1e-2, "t": 5}
    _, config = adam(kind(inputs["w"]), kind(inputs["dw"]), config)
    assert config["t"] == COURSE["tests"]["adam"]["params"]["t_after"]


def test_sgd_goes_against_the_gradient(kind, dtype):
    next_w, _ = sgd(kind([1.0, 2.0], dtype), kind([4.0, -8.0], dtype), {"learning_rate": 0.5})
    kind.assert_close(next_w, [-1.0, 6.0])


def test_momentum_adds_to_the_velocity(kind, dtype):
    config = {"learning_rate": 0.5, "momentum": 0.25, "velocity": kind([4.0], dtype)}
    next_w, config = sgd_momentum(kind([10.0], dtype), kind([2.0], dtype), config)
    kind.assert_close(config["velocity"], [0.0])  # 0.25 * 4 - 0.5 * 2
    kind.assert_close(next_w, [10.0])


def test_nesterov_looks_ahead(kind, dtype):
    config = {"learning_rate": 0.5, "momentum": 0.25, "velocity": kind([8.0], dtype)}
    next_w, config = sgd_nesterov_momentum(kind([10.0], dtype), kind([2.0], dtype), config)
    kind.assert_close(config["velocity"], [1.0])  # 0.25 * 8 - 0.5 * 2
    kind.assert_close(next_w, [10.0 + 1.0 + 0.25 * (1.0 - 8.0)])


def test_rmsprop_adds_epsilon_outside_the_root(kind, dtype):
    config = {"learning_rate": 1.0, "decay_rate": 0.75, "epsilon": 1.0, "a": kind([0.0], dtype)}
    next_w, config = rmsprop(kind([10.0], dtype), kind([2.0], dtype), config)
    kind.assert_close(config["a"], [1.0])  # a quarter of 2²
    kind.assert_close(next_w, [9.0])  # 10 - 2 / (1 + 1); inside the root it would be 10 - 2 / sqrt(2)


def test_adam_keeps_the_first_moment_in_v_and_the_second_in_a(kind, dtype):
    _, config = adam(kind([0.0], dtype), kind([4.0], dtype), {"beta1": 0.75, "beta2": 0.5})
    kind.assert_close(config["v"], [1.0])  # a quarter of 4
    kind.assert_close(config["a"], [8.0])  # half of 4²


def test_adam_corrects_the_bias_of_both_moments(kind, dtype):
    config = {"learning_rate": 0.5, "beta1": 0.75, "beta2": 0.5, "epsilon": 0.0}
    next_w, _ = adam(kind([10.0, 10.0], dtype), kind([4.0, -0.001], dtype), config)
    kind.assert_close(next_w, [9.5, 10.5], rtol=a_few(dtype))  # the first step is the rate, whatever the gradient


def test_adam_adds_epsilon_outside_the_root_of_the_corrected_moment(kind, dtype):
    config = {"learning_rate": 1.0, "beta1": 0.75, "beta2": 0.5, "epsilon": 4.0}
    next_w, _ = adam(kind([10.0], dtype), kind([4.0], dtype), config)
    kind.assert_close(next_w, [9.5], rtol=a_few(dtype))  # 10 - 4 / (4 + 4)


def test_adam_increments_t_before_it_uses_it(kind, dtype):
    w, dw = kind([1.0], dtype), kind([1.0], dtype)
    next_w, config = adam(w, dw, {"t": 0})  # with t = 0 in the correction, 1 - beta ** t would be zero
    assert config["t"] == 1
    assert np.isfinite(kind.to_numpy(next_w)).all()
    _, config = adam(next_w, dw, config)
    assert config["t"] == 2


@ALL
def test_without_a_config_a_new_one_has_the_defaults_and_the_state(kind, dtype, rule):
    name, w = rule.__name__, kind([1.0, 2.0], dtype)
    _, config = rule(w, kind([0.0, 0.0], dtype))
    assert config.keys() == DEFAULTS[name].keys() | set(STATE[name]) | ({"t"} if name == "adam" else set())
    assert {key: config[key] for key in DEFAULTS[name]} == DEFAULTS[name]
    for key in STATE[name]:
        kind.check(config[key], dtype, (2,))


@ALL
def test_missing_state_starts_at_zeros(kind, dtype, rule):
    w, dw = kind(normals(4), dtype), kind(normals(4, 1), dtype)
    zeros = {key: kind(np.zeros(4), dtype) for key in STATE[rule.__name__]}
    expected, _ = rule(w, dw, zeros)
    received, _ = rule(w, dw)
    kind.assert_close(received, kind.to_numpy(expected))


@ALL
def test_each_call_without_a_config_starts_anew(kind, rule):
    w, dw = kind([1.0]), kind([1.0])
    first, config = rule(w, dw)
    second, other = rule(w, dw)
    assert config is not other
    kind.assert_close(second, kind.to_numpy(first))


@ALL
def test_the_config_given_is_updated_and_returned(kind, rule):
    given = {"learning_rate": 0.25}
    _, config = rule(kind([1.0]), kind([1.0]), given)
    assert config is given
    assert config["learning_rate"] == 0.25
    assert set(STATE[rule.__name__]) < config.keys()


@ALL
def test_weights_gradients_and_old_state_are_not_modified(kind, dtype, rule):
    arrays = {"w": normals(4), "dw": normals(4, 1)} | {key: 1 + normals(4, 2) ** 2 for key in STATE[rule.__name__]}
    given = {key: kind.writable(a, dtype) for key, a in arrays.items()}
    before = {key: kind.to_numpy(a).copy() for key, a in given.items()}
    rule(given["w"], given["dw"], {key: given[key] for key in STATE[rule.__name__]})
    for key, array in given.items():
        kind.assert_close(array, before[key])


@ALL
def test_two_steps_keep_kind_device_and_dtype(kind, dtype, rule):
    w, config = kind([1.0, 2.0], dtype), None
    for _ in range(2):
        w, config = rule(w, kind([0.5, -0.5], dtype), config)
    kind.check(w, dtype, (2,))
    for key in STATE[rule.__name__]:
        kind.check(config[key], dtype, (2,))


@ALL
def test_numpy_scalars_among_the_settings_do_not_promote_float32(kind, rule):
    config = {name: np.float64(value) for name, value in DEFAULTS[rule.__name__].items()}
    w = kind([1.0, 2.0], "float32")
    for _ in range(2):
        w, config = rule(w, kind([0.5, -0.5], "float32"), config)
    kind.check(w, "float32")
    for key in STATE[rule.__name__]:
        kind.check(config[key], "float32")


@ALL
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (2, 3, 4)])
def test_any_shape(kind, dtype, rule, shape):
    w, _ = rule(kind(np.ones(shape), dtype), kind(np.ones(shape), dtype))
    kind.check(w, dtype, shape)


@ALL
def test_arrays_need_not_be_contiguous(kind, dtype, rule):
    w, dw = normals((3, 4)), normals((3, 4), 1)
    expected, _ = rule(kind(w, dtype), kind(dw, dtype))
    received, _ = rule(kind(w.T, dtype).T, kind(np.repeat(dw, 2, axis=1), dtype)[:, ::2])
    kind.assert_close(received, kind.to_numpy(expected), atol=a_few(dtype))


@ALL
def test_a_zero_gradient_at_the_start_moves_nothing(kind, dtype, rule):
    w = normals(4, dtype=dtype)
    next_w, _ = rule(kind(w, dtype), kind(np.zeros(4), dtype))
    kind.assert_close(next_w, w)


@ALL
def test_shapes_that_differ_are_reported(kind, rule):
    message = rf"{rule.__name__}: expected w and dw of one shape; received \(2,\) and \(3,\)"
    with pytest.raises(ValueError, match=message):
        rule(kind(np.ones(2)), kind(np.ones(3)))


@ALL
def test_integers_are_refused(kind, rule):
    with pytest.raises(TypeError, match=f"{rule.__name__}: expected w of a floating-point dtype; received int64"):
        rule(kind([1], "int64"), kind([1], "int64"))


@ALL
@pytest.mark.parametrize("other", ["torch", "array-api-strict"])
def test_kinds_that_mix_are_refused_and_each_is_named(rule, other):
    backend = backends.get(other)
    if not backend.is_available():
        pytest.skip(backend.reason)
    message = rf"^{rule.__name__}: expected w and dw of one kind; received w: numpy\.ndarray, dw: {backend.package}"
    with pytest.raises(TypeError, match=message):
        rule(np.ones(1), backend.zeros((1,), "float64"))


def test_the_rules_are_the_courses_five():
    assert list(RULES) == ["sgd", "sgd_momentum", "sgd_nesterov_momentum", "rmsprop", "adam"]
