"""Update rules."""

import re

import numpy as np
import pytest

from oracles import COURSE, EPS, course_case, course_tolerance, normals
from xpnn import backend as backends
from xpnn.errors import SettingError
from xpnn.optim import (
    RULES,
    adam,
    adamw,
    lion,
    muon,
    nesterov,
    newton_schulz,
    rmsprop,
    sgd,
    sgd_momentum,
    sgd_nesterov_momentum,
)

ALL = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
ELEMENTWISE = pytest.mark.parametrize(
    "rule", [rule for rule in RULES.values() if rule.elementwise], ids=[n for n, r in RULES.items() if r.elementwise]
)
STATE = {
    "sgd": (),
    "sgd_momentum": ("velocity",),
    "sgd_nesterov_momentum": ("velocity",),
    "rmsprop": ("a",),
    "adam": ("v", "a"),
    "nesterov": ("velocity",),
    "adamw": ("v", "a"),
    "lion": ("v",),
    "muon": ("velocity",),
}
DEFAULTS = {
    "sgd": {"learning_rate": 1e-2},
    "sgd_momentum": {"learning_rate": 1e-2, "momentum": 0.9},
    "sgd_nesterov_momentum": {"learning_rate": 1e-2, "momentum": 0.9},
    "rmsprop": {"learning_rate": 1e-2, "decay_rate": 0.99, "epsilon": 1e-8},
    "adam": {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8},
    "nesterov": {"learning_rate": 1e-2, "momentum": 0.9, "weight_decay": 0.0},
    "adamw": {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.01},
    "lion": {"learning_rate": 1e-4, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0},
    "muon": {
        "learning_rate": 0.02,
        "momentum": 0.95,
        "weight_decay": 0.0,
        "newton_schulz_steps": 5,
        "newton_schulz_dtype": "",
        "normalize_weights": 0,
    },
}
COUNTS = ("adam", "adamw")


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
    name, w = rule.__name__, kind([[1.0, 2.0]], dtype)
    _, config = rule(w, kind([[0.0, 0.0]], dtype))
    assert config.keys() == DEFAULTS[name].keys() | set(STATE[name]) | ({"t"} if name in COUNTS else set())
    assert {key: config[key] for key in DEFAULTS[name]} == DEFAULTS[name]
    for key in STATE[name]:
        kind.check(config[key], dtype, (1, 2))


@ALL
def test_missing_state_starts_at_zeros(kind, dtype, rule):
    w, dw = kind(normals((2, 2)), dtype), kind(normals((2, 2), 1), dtype)
    zeros = {key: kind(np.zeros((2, 2)), dtype) for key in STATE[rule.__name__]}
    expected, _ = rule(w, dw, zeros)
    received, _ = rule(w, dw)
    kind.assert_close(received, kind.to_numpy(expected))


@ALL
def test_each_call_without_a_config_starts_anew(kind, rule):
    w, dw = kind([[1.0]]), kind([[1.0]])
    first, config = rule(w, dw)
    second, other = rule(w, dw)
    assert config is not other
    kind.assert_close(second, kind.to_numpy(first))


@ALL
def test_the_config_given_is_updated_and_returned(kind, rule):
    given = {"learning_rate": 0.25}
    _, config = rule(kind([[1.0]]), kind([[1.0]]), given)
    assert config is given
    assert config["learning_rate"] == 0.25
    assert set(STATE[rule.__name__]) < config.keys()


@ALL
def test_weights_gradients_and_old_state_are_not_modified(kind, dtype, rule):
    shape = (2, 3)
    arrays = {"w": normals(shape), "dw": normals(shape, 1)}
    arrays |= {key: 1 + normals(shape, 2) ** 2 for key in STATE[rule.__name__]}
    given = {key: kind.writable(a, dtype) for key, a in arrays.items()}
    before = {key: kind.to_numpy(a).copy() for key, a in given.items()}
    rule(given["w"], given["dw"], {key: given[key] for key in STATE[rule.__name__]})
    for key, array in given.items():
        kind.assert_close(array, before[key])


@ALL
def test_two_steps_keep_kind_device_and_dtype(kind, dtype, rule):
    w, config = kind([[1.0, 2.0]], dtype), None
    for _ in range(2):
        w, config = rule(w, kind([[0.5, -0.5]], dtype), config)
    kind.check(w, dtype, (1, 2))
    for key in STATE[rule.__name__]:
        kind.check(config[key], dtype, (1, 2))


@ALL
def test_numpy_scalars_among_the_settings_do_not_promote_float32(kind, rule):
    numbers = {name: value for name, value in DEFAULTS[rule.__name__].items() if not isinstance(value, str)}
    config = {name: np.float64(value) for name, value in numbers.items()}
    w = kind([[1.0, 2.0]], "float32")
    for _ in range(2):
        w, config = rule(w, kind([[0.5, -0.5]], "float32"), config)
    kind.check(w, "float32")
    for key in STATE[rule.__name__]:
        kind.check(config[key], "float32")


@ELEMENTWISE
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (2, 3, 4)])
def test_any_shape(kind, dtype, rule, shape):
    w, _ = rule(kind(np.ones(shape), dtype), kind(np.ones(shape), dtype))
    kind.check(w, dtype, shape)


@ALL
def test_arrays_need_not_be_contiguous(kind, dtype, rule):
    w, dw = normals((3, 4)), normals((3, 4), 1)
    expected, _ = rule(kind(w, dtype), kind(dw, dtype))
    received, _ = rule(kind(w.T, dtype).T, kind(np.repeat(dw, 2, axis=1), dtype)[:, ::2])
    # muon's 15 products of two to four numbers, in another order where memory is, on top of a rule's one line
    roundings = 8 if rule.elementwise else 15 * 4 * 2
    kind.assert_close(received, kind.to_numpy(expected), atol=roundings * EPS[dtype])


@ALL
def test_a_zero_gradient_at_the_start_moves_nothing(kind, dtype, rule):
    w = normals((2, 2), dtype=dtype)
    next_w, _ = rule(kind(w, dtype), kind(np.zeros((2, 2)), dtype), {"weight_decay": 0.0} if rule is adamw else {})
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


def test_the_rules_are_the_courses_five_and_four_more():
    courses = ["sgd", "sgd_momentum", "sgd_nesterov_momentum", "rmsprop", "adam"]
    assert sorted(RULES) == sorted([*courses, "nesterov", "adamw", "lion", "muon"])


def test_nesterov_adds_the_decay_to_the_gradient_and_scales_all_by_the_rate(kind, dtype):
    config = {"learning_rate": 0.5, "momentum": 0.25, "weight_decay": 0.125, "velocity": kind([8.0], dtype)}
    next_w, config = nesterov(kind([16.0], dtype), kind([2.0], dtype), config)
    kind.assert_close(config["velocity"], [6.0])  # 0.25 * 8 + (2 + 0.125 * 16)
    kind.assert_close(next_w, [16.0 - 0.5 * (4.0 + 0.25 * 6.0)])


def test_at_a_constant_rate_nesterov_takes_the_steps_of_the_courses(kind):
    here = there = kind(normals(4))
    config, other = {}, {}
    for step in range(5):
        dw = kind(normals(4, step + 1))
        here, config = nesterov(here, dw, config)
        there, other = sgd_nesterov_momentum(there, dw, other)
    kind.assert_close(here, kind.to_numpy(there), atol=5 * a_few("float64"))


def test_where_the_rate_changes_nesterov_rescales_what_has_gathered(kind):
    w, dw = kind([0.0]), kind([1.0])
    steps = {}
    for rule in (nesterov, sgd_nesterov_momentum):
        _, config = rule(w, dw, {"learning_rate": 1.0, "momentum": 0.5})
        next_w, _ = rule(w, dw, config | {"learning_rate": 0.0})
        steps[rule.__name__] = kind.to_numpy(next_w).tolist()
    # the course's velocity goes on at the old rate: -0.5 * 1, and 0.5 (-0.5 - -1) ahead
    assert steps == {"nesterov": [0.0], "sgd_nesterov_momentum": [-0.25]}


def test_adamw_decays_the_weight_by_the_rate_first(kind, dtype):
    config = {"learning_rate": 0.5, "weight_decay": 0.25, "beta1": 0.75, "beta2": 0.5, "epsilon": 0.0}
    next_w, config = adamw(kind([8.0], dtype), kind([4.0], dtype), config)
    kind.assert_close(next_w, [8.0 * 0.875 - 0.5], rtol=a_few(dtype))
    assert config["t"] == 1


def test_adamw_without_decay_is_adam(kind, dtype):
    w, dw = kind(normals(4), dtype), kind(normals(4, 1), dtype)
    kind.assert_close(adamw(w, dw, {"weight_decay": 0.0})[0], kind.to_numpy(adam(w, dw)[0]))


def test_lion_steps_by_the_rate_along_the_signs(kind, dtype):
    config = {"learning_rate": 0.5, "beta1": 0.75, "beta2": 0.5, "weight_decay": 0.25}
    config["v"] = kind([1.0, -8.0, 1.0], dtype)
    next_w, config = lion(kind([8.0, 8.0, 8.0], dtype), kind([4.0, 4.0, -3.0], dtype), config)
    kind.assert_close(next_w, [7.0 - 0.5, 7.0 + 0.5, 7.0])  # the signs of 1.75, -5 and 0, after 8 (1 - 0.125)
    kind.assert_close(config["v"], [2.5, -2.0, -1.0])


def singular_values_after(values, steps):
    """What the quintic makes of singular values, by the formula for a diagonal matrix."""
    values = values / (np.sqrt((values**2).sum()) + 1e-7)
    for _ in range(steps):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return values


# Five steps of three products of up to four numbers; slopes of up to 3.4445 at zero, which cancel in later steps.
QUINTIC = 3.4445**5


@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (4, 2)])
def test_newton_schulz_keeps_the_singular_vectors_and_lifts_the_values(kind, dtype, shape):
    u, values, vt = np.linalg.svd(normals(shape, 5, dtype), full_matrices=False)
    received = newton_schulz(kind(normals(shape, 5, dtype), dtype), 5)
    kind.check(received, dtype, shape)
    # NumPy's own singular value decomposition adds as many roundings again
    kind.assert_close(received, u * singular_values_after(values, 5) @ vt, atol=2 * QUINTIC * EPS[dtype], rtol=0)


def test_newton_schulz_makes_a_matrix_nearly_orthogonal(kind, dtype):
    values = np.linalg.svd(kind.to_numpy(newton_schulz(kind(normals((16, 8), 1), dtype))), compute_uv=False)
    assert values.min() > 0.65
    assert values.max() < 1.25


HALVES = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # a rounding, relative to the number


def has(kind, dtype):
    try:
        kind.backend.dtype(dtype)
    except SettingError:
        return False
    return True


def of_condition(number, shape, seed=0):
    """A matrix whose singular values lie evenly, on a scale of logarithms, from 1 down to that part of it."""
    u, _, vt = np.linalg.svd(normals(shape, seed), full_matrices=False)
    return u * np.geomspace(1, 1 / number, min(shape)) @ vt


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("size", [1e-2, 1.0, 1e15])
@pytest.mark.parametrize(
    "g",
    [
        normals((48, 96)),
        normals((96, 48), 1),
        normals((64, 64), 2),
        of_condition(100, (48, 160)),
        of_condition(1e5, (64, 96)),
        np.outer(normals(40, 3), normals(60, 4)),
    ],
    ids=["wide", "tall", "square", "condition 100", "condition 1e5", "rank 1"],
)
def test_products_in_half_precision_give_the_singular_values_of_single(kind, half, size, g):
    if not has(kind, half):
        pytest.skip(f"{kind} has no {half}")
    given = kind(size * g, "float32")
    received, single = newton_schulz(given, 5, half), newton_schulz(given, 5)
    kind.check(received, "float32", g.shape)
    u, _, vt = np.linalg.svd(g, full_matrices=False)
    received, single = (kind.to_numpy(x).astype("float64") for x in (received, single))
    # The quintic takes [0, 1.2025] to itself, and what it has lifted stays above 0.68.
    lifted = np.diag(u.T @ single @ vt.T) > 0.68
    assert lifted.sum() >= min(30, np.linalg.matrix_rank(g))
    assert np.diag(u.T @ received @ vt.T)[lifted].min() > 0.68 - 2 * HALVES[half]
    assert np.linalg.norm(received, 2) < 1.2025 + 2 * HALVES[half]


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("size", [0.0, 1e-20])
def test_of_next_to_nothing_half_precision_makes_nothing_more(kind, half, size):
    if not has(kind, half):
        pytest.skip(f"{kind} has no {half}")
    g = kind(size * normals((4, 6)), "float32")
    kind.assert_close(newton_schulz(g, 5, half), kind.to_numpy(newton_schulz(g, 5)), atol=QUINTIC * 2.0**-25)


@pytest.mark.parametrize("half", HALVES)
def test_muon_multiplies_in_half_precision_where_it_is_asked_to(kind, half):
    if not has(kind, half):
        pytest.skip(f"{kind} has no {half}")
    w, dw = (kind(normals((32, 8), seed), "float32") for seed in range(2))
    next_w, config = muon(w, dw, {"learning_rate": 1.0, "newton_schulz_dtype": half})
    kind.check(next_w, "float32")
    kind.check(config["velocity"], "float32")
    expected = kind.to_numpy(w) - kind.to_numpy(newton_schulz(1.95 * dw, 5, half))
    kind.assert_close(next_w, expected, atol=15 * QUINTIC * EPS["float32"])
    assert np.abs(kind.to_numpy(next_w - muon(w, dw, {"learning_rate": 1.0})[0])).max() > EPS["float32"]


@pytest.mark.parametrize("other", ["float64", "half", None, np.float16])
def test_newton_schulz_takes_a_half_dtype_or_none(kind, other):
    expected = "newton_schulz: expected dtype to be one of float16, bfloat16, or '' for none of its own"
    with pytest.raises(SettingError, match=re.escape(f"{expected}; received {other!r}")):
        newton_schulz(kind(np.ones((2, 2))), dtype=other)


def test_a_dtype_that_a_backend_has_not_is_named(kind):
    if has(kind, "bfloat16"):
        pytest.skip(f"{kind} has it")
    with pytest.raises(SettingError, match="dtype: expected one that .* has, .*; received 'bfloat16'"):
        newton_schulz(kind(np.ones((2, 2))), dtype="bfloat16")


def test_newton_schulz_leaves_zeros(kind, dtype):
    kind.assert_close(newton_schulz(kind(np.zeros((2, 3)), dtype)), np.zeros((2, 3)))


def test_newton_schulz_takes_a_matrix(kind):
    with pytest.raises(ValueError, match=r"newton_schulz: expected g \(R, C\); received \(3,\)"):
        newton_schulz(kind(np.ones(3)))
    with pytest.raises(TypeError, match="newton_schulz: expected g of a floating-point dtype; received int64"):
        newton_schulz(kind([[1]], "int64"))


def test_muon_orthogonalizes_nesterovs_step(kind, dtype):
    w, dw, v = (normals((2, 4), seed, dtype) for seed in range(3))
    config = {"learning_rate": 0.5, "momentum": 0.25, "weight_decay": 0.5, "velocity": kind(v, dtype)}
    next_w, config = muon(kind(w, dtype), kind(dw, dtype), config)
    kind.assert_close(config["velocity"], 0.25 * v + dw, atol=a_few(dtype))
    direction = kind.to_numpy(newton_schulz(kind(dw + 0.25 * (0.25 * v + dw), dtype)))
    expected = w * 0.75 - 0.5 * np.sqrt(2) * direction  # sqrt(4 outputs / 2 inputs)
    kind.assert_close(next_w, expected, atol=2 * QUINTIC * EPS[dtype])


@pytest.mark.parametrize("filters", [2, 20])
def test_muon_takes_filters_for_the_outputs_of_a_matrix(kind, dtype, filters):
    w, dw = (normals((filters, 3, 2, 2), seed, dtype) for seed in range(2))
    matrix, _ = muon(*(kind(a.reshape(filters, 12).T, dtype) for a in (w, dw)))
    received, _ = muon(kind(w, dtype), kind(dw, dtype))
    kind.check(received, dtype, w.shape)
    expected = kind.to_numpy(matrix).T.reshape(w.shape)
    kind.assert_close(received, expected, atol=QUINTIC * EPS[dtype])


def test_muon_may_set_the_norm_of_the_weights_before_its_step(kind, dtype):
    w, dw = normals((2, 4), 0, dtype), normals((2, 4), 1, dtype)
    settings = {"learning_rate": 0.5, "momentum": 0.25, "normalize_weights": True}
    next_w, _ = muon(kind(w, dtype), kind(dw, dtype), settings)
    # at the first step the momentum changes the length of the step only
    direction = kind.to_numpy(newton_schulz(kind(1.25 * dw, dtype)))
    expected = w * 2 / np.sqrt((w**2).sum()) - 0.5 * direction
    kind.assert_close(next_w, expected, atol=2 * QUINTIC * EPS[dtype])


def test_muon_leaves_zero_weights_at_no_norm(kind, dtype):
    zeros = kind(np.zeros((2, 2)), dtype)
    kind.assert_close(muon(zeros, zeros, {"normalize_weights": 1})[0], np.zeros((2, 2)))


def test_muon_takes_empty_parameters(kind, dtype):
    empty = kind(np.zeros((0, 3)), dtype)
    kind.check(muon(empty, empty)[0], dtype, (0, 3))


@pytest.mark.parametrize("other", [{}, {"normalize_weights": 1}])
def test_muon_keeps_half_precision(kind, other):
    if kind.backend.name == "array-api-strict":
        pytest.skip("the standard has no float16")
    w, dw = 100 * normals((8, 32), 0, "float16"), 100 * normals((8, 32), 1, "float16")  # whose squares overflow
    next_w, config = muon(kind(w, "float16"), kind(dw, "float16"), {"learning_rate": 1.0, **other})
    kind.check(next_w, "float16")
    kind.check(config["velocity"], "float16")
    expected, _ = muon(kind(w, "float32"), kind(dw, "float32"), {"learning_rate": 1.0, **other})
    # float16 has 13 bits less than float32; weights of up to 400 are rounded once
    kind.assert_close(next_w, kind.to_numpy(expected), rtol=2.0**-10, atol=QUINTIC * 2.0**-10 / 4)


def test_muon_refuses_a_vector(kind):
    with pytest.raises(ValueError, match=r"muon: expected w of at least 2 dimensions; received \(3,\)"):
        muon(kind(np.ones(3)), kind(np.ones(3)))
