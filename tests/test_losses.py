"""Losses."""

import functools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oracles
from oracles import EPS, few_examples, normals
from xpnn import backend as backends
from xpnn.gradient_check import eval_numerical_gradient, rel_error
from xpnn.layers import Affine
from xpnn.losses import binary_cross_entropy_loss, mse_loss, softmax_loss, svm_loss
from xpnn.models import Model

LOSSES = pytest.mark.parametrize("loss_function", [softmax_loss, svm_loss])

# Sums of at most 6 x 6 terms of size up to about 10, each after a few roundings.
SMALL_SUMS = 6 * 6 * 10


def labels(kind, y, dtype="int64"):
    return kind(y, dtype)


def test_softmax_of_equal_scores_is_the_logarithm_of_the_number_of_classes(kind, dtype):
    loss, dx = softmax_loss(kind(np.zeros((3, 4)), dtype), labels(kind, [0, 1, 3]))
    kind.assert_close(loss, math.log(4), rtol=4 * EPS[dtype])
    expected = np.full((3, 4), 1 / 12)
    expected[[0, 1, 2], [0, 1, 3]] = -1 / 4
    kind.assert_close(dx, expected, rtol=4 * EPS[dtype])


def test_softmax_by_hand(kind, dtype):
    x = kind([[0.0, math.log(3.0)], [0.0, 0.0]], dtype)  # probabilities 1/4, 3/4 and 1/2, 1/2
    loss, dx = softmax_loss(x, labels(kind, [0, 1]))
    kind.assert_close(loss, (math.log(4) + math.log(2)) / 2, rtol=4 * EPS[dtype])
    kind.assert_close(dx, [[-3 / 8, 3 / 8], [1 / 4, -1 / 4]], rtol=4 * EPS[dtype])


def test_svm_by_hand(kind, dtype):
    x = kind([[3.0, 2.5, 1.0], [0.0, 1.0, 2.0]], dtype)
    loss, dx = svm_loss(x, labels(kind, [0, 1]))
    # margins: 2.5 - 3 + 1 = 0.5 and none; then none and 2 - 1 + 1 = 2 (0 - 1 + 1 = 0 is on the edge, so not active)
    kind.assert_close(loss, (0.5 + 2.0) / 2)
    kind.assert_close(dx, [[-0.5, 0.5, 0.0], [0.0, -0.5, 0.5]])


def test_svm_of_equal_scores_is_the_number_of_wrong_classes(kind, dtype):
    loss, dx = svm_loss(kind(np.full((2, 5), 7.0), dtype), labels(kind, [4, 0]))
    kind.assert_close(loss, 4.0)
    kind.assert_close(dx, [[0.5, 0.5, 0.5, 0.5, -2.0], [-2.0, 0.5, 0.5, 0.5, 0.5]])


@LOSSES
def test_loss_and_gradient_keep_kind_device_and_dtype(kind, dtype, loss_function):
    loss, dx = loss_function(kind(normals((3, 4)), dtype), labels(kind, [0, 1, 3]))
    kind.check(loss, dtype, ())
    kind.check(dx, dtype, (3, 4))


@LOSSES
def test_the_gradient_agrees_with_the_numerical_one(kind, loss_function):
    scores, y = normals((4, 3)), labels(kind, [0, 1, 2, 0])
    _, dx = loss_function(kind(scores), y)
    numerical = eval_numerical_gradient(lambda x: loss_function(x, y)[0], kind.writable(scores), verbose=False)
    assert rel_error(dx, numerical) < 1e-7


@LOSSES
def test_inputs_are_not_modified(kind, dtype, loss_function):
    x, y = kind.writable(normals((3, 4)), dtype), kind.writable([0, 1, 3], "int64")
    before = kind.to_numpy(x).copy()
    loss_function(x, y)
    kind.assert_close(x, before)
    kind.assert_close(y, [0, 1, 3])


@LOSSES
@few_examples
@given(n=st.integers(1, 6), c=st.integers(1, 6), seed=st.integers(0, 99))
def test_any_shape_agrees_with_the_loops_written_out(kind, dtype, loss_function, n, c, seed):
    x, y = normals((n, c), seed, dtype), np.random.default_rng(seed).integers(0, c, n)
    loss, dx = loss_function(kind(x, dtype), labels(kind, y))
    expected_loss, expected_dx = getattr(oracles, loss_function.__name__)(x, y)
    kind.assert_close(loss, expected_loss, atol=SMALL_SUMS * EPS[dtype])
    kind.assert_close(dx, expected_dx, atol=SMALL_SUMS * EPS[dtype])


@LOSSES
def test_one_class_costs_nothing(kind, dtype, loss_function):
    loss, dx = loss_function(kind([[5.0], [-2.0]], dtype), labels(kind, [0, 0]))
    kind.assert_close(loss, 0.0)
    kind.assert_close(dx, np.zeros((2, 1)))


@LOSSES
@pytest.mark.parametrize("label_dtype", ["int8", "uint8", "int32", "int64", "uint64"])
def test_labels_may_be_of_any_integer_dtype(kind, loss_function, label_dtype):
    x = normals((3, 4))
    loss, _ = loss_function(kind(x), labels(kind, [0, 1, 3], label_dtype))
    expected, _ = getattr(oracles, loss_function.__name__)(x, np.array([0, 1, 3]))
    kind.assert_close(loss, expected, rtol=SMALL_SUMS * EPS["float64"])


@LOSSES
def test_scores_need_not_be_contiguous(kind, dtype, loss_function):
    x = normals((3, 4), 0, dtype)
    loss, dx = loss_function(kind(np.repeat(x.T, 2, axis=1), dtype).T[::2, :], labels(kind, [0, 1, 3]))
    expected_loss, expected_dx = getattr(oracles, loss_function.__name__)(x, np.array([0, 1, 3]))
    kind.assert_close(loss, expected_loss, atol=SMALL_SUMS * EPS[dtype])
    kind.assert_close(dx, expected_dx, atol=SMALL_SUMS * EPS[dtype])


def test_softmax_depends_on_differences_of_scores_only(kind, dtype):
    loss, dx = softmax_loss(kind([[1e4, 1e4 + 1.0]], dtype), labels(kind, [0]))
    expected_loss, expected_dx = softmax_loss(kind([[0.0, 1.0]], dtype), labels(kind, [0]))
    kind.assert_close(loss, kind.to_numpy(expected_loss))
    kind.assert_close(dx, kind.to_numpy(expected_dx))


def test_softmax_takes_each_example_by_itself_however_far_apart_their_scores_are(kind, dtype):
    loss, dx = softmax_loss(kind([[-1e4, -1e4], [1e4, 1e4]], dtype), labels(kind, [0, 1]))
    kind.assert_close(loss, math.log(2), rtol=2 * EPS[dtype])
    kind.assert_close(dx, [[-0.25, 0.25], [0.25, -0.25]])


def test_softmax_of_a_hopeless_score_is_its_distance_from_the_best(kind, dtype):
    loss, dx = softmax_loss(kind([[0.0, 1e30]], dtype), labels(kind, [0]))
    kind.assert_close(loss, 1e30, rtol=EPS[dtype])
    kind.assert_close(dx, [[-1.0, 1.0]])


@pytest.mark.parametrize("y", [0, 1])
def test_softmax_stays_finite_at_the_ends_of_the_range(kind, dtype, y):
    largest = 3e38 if dtype == "float32" else 1.7e308
    loss, dx = softmax_loss(kind([[-largest, largest]], dtype), labels(kind, [y]))
    assert np.isfinite(kind.to_numpy(loss))
    kind.assert_close(dx, [[-1.0, 1.0]] if y == 0 else [[0.0, 0.0]])


@LOSSES
def test_tiny_scores_are_equal_scores(kind, dtype, loss_function):
    tiny = float(np.finfo(dtype).tiny)
    loss, dx = loss_function(kind([[tiny, -tiny]], dtype), labels(kind, [0]))
    expected_loss, expected_dx = loss_function(kind([[0.0, 0.0]], dtype), labels(kind, [0]))
    kind.assert_close(loss, kind.to_numpy(expected_loss))
    kind.assert_close(dx, kind.to_numpy(expected_dx))


def test_svm_of_huge_scores_is_their_difference(kind, dtype):
    loss, dx = svm_loss(kind([[-1e30, 1e30]], dtype), labels(kind, [0]))
    kind.assert_close(loss, 2e30, rtol=EPS[dtype])
    kind.assert_close(dx, [[-1.0, 1.0]])


@LOSSES
@pytest.mark.parametrize(("y", "worst"), [([0, 3], 3), ([-1, 2], -1)])
def test_labels_out_of_range_are_refused(kind, loss_function, y, worst):
    if kind.backend.asynchronous:
        pytest.skip("reading the labels would wait for the device")
    expected = f"{loss_function.__name__}: expected labels from 0 to 2; received {worst}"
    with pytest.raises(ValueError, match=expected):
        loss_function(kind(np.zeros((2, 3))), labels(kind, y))


@LOSSES
def test_a_label_that_no_int64_holds_is_named_as_it_is(kind, loss_function):
    if kind.backend.asynchronous:
        pytest.skip("reading the labels would wait for the device")
    with pytest.raises(ValueError, match=f"expected labels from 0 to 2; received {2**63 + 1}$"):
        loss_function(kind(np.zeros((2, 3))), kind(np.array([0, 2**63 + 1], "uint64")))


@LOSSES
def test_labels_that_are_no_integers_are_refused(kind, loss_function):
    with pytest.raises(TypeError, match="expected integer labels y; received float64"):
        loss_function(kind(np.zeros((2, 3))), kind([0.0, 1.0]))


@LOSSES
def test_scores_that_are_integers_are_refused(kind, loss_function):
    with pytest.raises(TypeError, match="expected x of a floating-point dtype; received int64"):
        loss_function(kind(np.zeros((2, 3)), "int64"), labels(kind, [0, 1]))


@LOSSES
@pytest.mark.parametrize(("x", "y"), [((2, 3), (3,)), ((2, 3), (2, 1)), ((6,), (6,)), ((2, 3, 1), (2,))])
def test_shapes_that_do_not_fit_are_reported(kind, loss_function, x, y):
    with pytest.raises(ValueError, match=r"expected x \(N, C\) and y \(N,\)") as error:
        loss_function(kind(np.zeros(x)), kind(np.zeros(y), "int64"))
    assert str(error.value).startswith(loss_function.__name__)
    assert f"received x {x} and y {y}" in str(error.value)


@LOSSES
def test_a_batch_of_none_has_no_mean(kind, loss_function):
    with pytest.raises(ValueError, match="expected at least one example; received none"):
        loss_function(kind(np.zeros((0, 3))), kind(np.zeros(0), "int64"))


@LOSSES
@pytest.mark.parametrize("other", ["torch", "array-api-strict"])
def test_kinds_that_mix_are_refused_and_each_is_named(loss_function, other):
    backend = backends.get(other)
    if not backend.is_available():
        pytest.skip(backend.reason)
    name = loss_function.__name__
    with pytest.raises(
        TypeError, match=rf"^{name}: expected x and y of one kind; received x: {backend.package}.*numpy"
    ):
        loss_function(backend.zeros((2, 3)), np.array([0, 1]))


@LOSSES
def test_devices_that_mix_are_refused_and_each_is_named(loss_function):
    backend = backends.get("array-api-strict")
    if not backend.is_available():
        pytest.skip(backend.reason)
    x = backends.get("array-api-strict:device1").zeros((2, 3))
    with pytest.raises(
        TypeError, match=r"expected x and y of one kind; received x: .*\(device device1\), y: .*\(device CPU_DEVICE\)"
    ):
        loss_function(x, backend.zeros((2,), "int64"))


# Soft labels of four examples, and labels.
SOFT = np.array([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.0, 0.75, 0.25], [1 / 3, 1 / 3, 1 / 3]])
HARD = [0, 1, 2, 0]


def soft(kind, dtype, smoothing=0.0):
    """The labels HARD as probabilities."""
    return kind((1 - smoothing) * np.eye(3)[HARD] + smoothing / 3, dtype)


def test_smoothed_softmax_by_hand(kind, dtype):
    x = kind([[0.0, math.log(3.0)]], dtype)  # probabilities 1/4, 3/4; smoothed by 0.2 the label 0 is 0.9, 0.1
    loss, dx = softmax_loss(x, labels(kind, [0]), label_smoothing=0.2)
    kind.assert_close(loss, 0.9 * math.log(4) + 0.1 * math.log(4 / 3), rtol=8 * EPS[dtype])
    kind.assert_close(dx, [[0.25 - 0.9, 0.75 - 0.1]], rtol=8 * EPS[dtype])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_labels_are_soft_labels_of_which_one_is_1(kind, dtype, smoothing, reduction):
    x = kind(normals((4, 3)), dtype)
    loss, dx = softmax_loss(x, labels(kind, HARD), smoothing, reduction)
    for y, rest in ((soft(kind, dtype), smoothing), (soft(kind, dtype, smoothing), 0.0)):
        same_loss, same_dx = softmax_loss(x, y, label_smoothing=rest, reduction=reduction)
        kind.assert_close(loss, kind.to_numpy(same_loss), rtol=SMALL_SUMS * EPS[dtype])
        kind.assert_close(dx, kind.to_numpy(same_dx), atol=8 * EPS[dtype])


def test_softmax_of_soft_labels_by_hand(kind, dtype):
    x = kind([[0.0, math.log(3.0)], [0.0, 0.0]], dtype)  # probabilities 1/4, 3/4 and 1/2, 1/2
    loss, dx = softmax_loss(x, kind([[0.5, 0.5], [0.25, 0.75]], dtype))
    kind.assert_close(loss, (0.5 * math.log(4) + 0.5 * math.log(4 / 3) + math.log(2)) / 2, rtol=8 * EPS[dtype])
    kind.assert_close(dx, [[-1 / 8, 1 / 8], [1 / 8, -1 / 8]], rtol=8 * EPS[dtype])


def test_soft_labels_may_be_of_another_floating_point_dtype(kind):
    loss, dx = softmax_loss(kind(normals((4, 3)), "float32"), soft(kind, "float64"))
    kind.check(loss, "float32", ())
    kind.check(dx, "float32", (4, 3))


def test_softmax_of_a_mixture_is_the_mixture_of_the_losses(kind, dtype):
    x, share = kind(normals((4, 3)), dtype), 0.3
    first, second = np.eye(3)[HARD], np.eye(3)[[2, 2, 1, 0]]
    mixed = softmax_loss(x, kind(share * first + (1 - share) * second, dtype))
    parts = [softmax_loss(x, labels(kind, y)) for y in (HARD, [2, 2, 1, 0])]
    for received, a, b in zip(mixed, *parts, strict=True):
        expected = share * kind.to_numpy(a) + (1 - share) * kind.to_numpy(b)
        kind.assert_close(received, expected, atol=SMALL_SUMS * EPS[dtype])


@pytest.mark.parametrize("y", [0, 1])
def test_smoothed_softmax_stays_finite_at_the_ends_of_the_range(kind, dtype, y):
    largest = 3e38 if dtype == "float32" else 1.7e308
    loss, dx = softmax_loss(kind([[-largest, largest]], dtype), labels(kind, [y]), label_smoothing=0.5)
    assert np.isfinite(kind.to_numpy(loss))
    kind.assert_close(dx, [[-0.75, 0.75]] if y == 0 else [[-0.25, 0.25]])


OPTIONS = {
    "softmax-smoothed": (functools.partial(softmax_loss, label_smoothing=0.2), HARD),
    "softmax-sum": (functools.partial(softmax_loss, label_smoothing=0.2, reduction="sum"), HARD),
    "softmax-soft": (softmax_loss, SOFT),
    "softmax-soft-unnormalized": (softmax_loss, 3 * SOFT),
    "softmax-soft-smoothed-sum": (functools.partial(softmax_loss, label_smoothing=0.2, reduction="sum"), SOFT),
    "mse": (mse_loss, normals((4, 3), 1)),
    "mse-sum": (functools.partial(mse_loss, reduction="sum"), normals((4, 3), 1)),
    "binary_cross_entropy": (binary_cross_entropy_loss, SOFT),
    "binary_cross_entropy-sum": (functools.partial(binary_cross_entropy_loss, reduction="sum"), SOFT),
}
EVERY_OPTION = pytest.mark.parametrize(("loss_function", "y"), OPTIONS.values(), ids=OPTIONS)


def targets(kind, y, dtype="float64"):
    return kind(y) if np.asarray(y).ndim == 1 else kind(y, dtype)


@EVERY_OPTION
def test_the_gradient_with_options_agrees_with_the_numerical_one(kind, loss_function, y):
    scores, y = normals((4, 3)), targets(kind, y)
    _, dx = loss_function(kind(scores), y)
    numerical = eval_numerical_gradient(lambda x: loss_function(x, y)[0], kind.writable(scores), verbose=False)
    assert rel_error(dx, numerical) < 1e-7


@EVERY_OPTION
def test_loss_and_gradient_with_options_keep_kind_device_and_dtype(kind, dtype, loss_function, y):
    loss, dx = loss_function(kind(normals((4, 3)), dtype), targets(kind, y, dtype))
    kind.check(loss, dtype, ())
    kind.check(dx, dtype, (4, 3))


@EVERY_OPTION
def test_inputs_are_not_modified_whatever_the_options(kind, dtype, loss_function, y):
    x, given = kind.writable(normals((4, 3)), dtype), targets(kind, y, dtype)
    before = [kind.to_numpy(a).copy() for a in (x, given)]
    loss_function(x, given)
    for array, expected in zip((x, given), before, strict=True):
        kind.assert_close(array, expected)


def test_a_sum_is_the_mean_times_the_number_of_terms(kind, dtype):
    x, y = kind(normals((4, 3)), dtype), kind(SOFT, dtype)
    for loss_function, terms in ((softmax_loss, 4), (mse_loss, 12), (binary_cross_entropy_loss, 12)):
        for mean, total in zip(loss_function(x, y), loss_function(x, y, reduction="sum"), strict=True):
            kind.assert_close(total, terms * kind.to_numpy(mean), rtol=SMALL_SUMS * EPS[dtype])


def test_mse_by_hand(kind, dtype):
    x, y = kind([[1.0, 2.0], [3.0, 4.0]], dtype), kind([[1.0, 0.0], [2.0, 8.0]], dtype)
    loss, dx = mse_loss(x, y)
    kind.assert_close(loss, (0 + 4 + 1 + 16) / 4)
    kind.assert_close(dx, [[0.0, 1.0], [0.5, -2.0]])


def test_binary_cross_entropy_by_hand(kind, dtype):
    x = kind([0.0, math.log(3.0)], dtype)  # probabilities 1/2 and 3/4
    loss, dx = binary_cross_entropy_loss(x, kind([1.0, 0.0], dtype))
    kind.assert_close(loss, (math.log(2) + math.log(4)) / 2, rtol=4 * EPS[dtype])
    kind.assert_close(dx, [-1 / 4, 3 / 8], rtol=4 * EPS[dtype])


def test_binary_cross_entropy_stays_finite_at_the_ends_of_the_range(kind, dtype):
    largest = float(np.finfo(dtype).max)
    x, y = kind([largest, largest, -largest, -largest], dtype), kind([1.0, 0.0, 0.0, 0.5], dtype)
    loss, dx = binary_cross_entropy_loss(x, y)
    kind.assert_close(loss, largest / 4 + largest / 8, rtol=4 * EPS[dtype])
    kind.assert_close(dx, [0.0, 0.25, 0.0, -0.125])


def test_binary_cross_entropy_of_a_sure_answer_is_its_doubt(kind, dtype):
    loss, _ = binary_cross_entropy_loss(kind([30.0], dtype), kind([1.0], dtype))
    kind.assert_close(
        loss, math.log1p(math.exp(-30.0)), rtol=40 * EPS[dtype]
    )  # the exponential of a rounded number of size 30


@pytest.mark.parametrize("loss_function", [mse_loss, binary_cross_entropy_loss])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)])
def test_targets_of_any_shape(kind, dtype, loss_function, shape):
    x, y = kind(normals(shape), dtype), kind(np.full(shape, 0.25), dtype)
    loss, dx = loss_function(x, y)
    kind.check(loss, dtype, ())
    kind.check(dx, dtype, shape)


def test_a_loss_with_options_serves_a_model(kind):
    loss = functools.partial(softmax_loss, label_smoothing=0.2, reduction="sum")
    model = Model(Affine(3), (2,), loss=loss, dtype="float64", backend=kind.backend, rng=0)
    x = kind(normals((4, 2)))
    received, grads = model.loss(x, labels(kind, HARD))
    expected, dscores = loss(model.loss(x), labels(kind, HARD))
    kind.assert_close(received, kind.to_numpy(expected))
    kind.assert_close(grads["b"], kind.to_numpy(dscores).sum(axis=0), atol=SMALL_SUMS * EPS["float64"])


@pytest.mark.parametrize("smoothing", [-0.1, 1.5, float("nan")])
def test_a_smoothing_that_is_none_is_refused(smoothing):
    with pytest.raises(ValueError, match="^softmax_loss: expected label_smoothing from 0 to 1; received"):
        softmax_loss(np.zeros((2, 3)), np.array([0, 1]), label_smoothing=smoothing)


@pytest.mark.parametrize("loss_function", [softmax_loss, mse_loss, binary_cross_entropy_loss])
def test_another_reduction_is_refused(loss_function):
    name = loss_function.__name__
    with pytest.raises(ValueError, match=f"^{name}: expected reduction 'mean' or 'sum'; received 'none'"):
        loss_function(np.zeros((2, 3)), np.zeros((2, 3)), reduction="none")


@pytest.mark.parametrize("loss_function", [softmax_loss, mse_loss, binary_cross_entropy_loss])
def test_targets_of_another_shape_are_reported(kind, loss_function):
    with pytest.raises(ValueError, match="expected x and y of one shape; received x .2, 3. and y .2, 1.") as error:
        loss_function(kind(np.zeros((2, 3))), kind(np.zeros((2, 1))))
    assert str(error.value).startswith(loss_function.__name__)


@pytest.mark.parametrize("loss_function", [softmax_loss, mse_loss, binary_cross_entropy_loss])
def test_no_targets_have_no_mean(kind, loss_function):
    with pytest.raises(ValueError, match="expected at least one example; received none"):
        loss_function(kind(np.zeros((0, 3))), kind(np.zeros((0, 3))))


@pytest.mark.parametrize("loss_function", [mse_loss, binary_cross_entropy_loss])
def test_targets_that_are_integers_are_refused(kind, loss_function):
    with pytest.raises(TypeError, match="expected y of a floating-point dtype; received int64"):
        loss_function(kind(np.zeros((2, 3))), kind(np.zeros((2, 3)), "int64"))


@pytest.mark.parametrize(("y", "worst"), [([0.5, 1.5], "1.5"), ([-0.25, 2.0], "-0.25")])
def test_probabilities_out_of_range_are_refused(kind, y, worst):
    if kind.backend.asynchronous:
        pytest.skip("reading the targets would wait for the device")
    with pytest.raises(ValueError, match=f"^binary_cross_entropy_loss: expected targets from 0 to 1; received {worst}"):
        binary_cross_entropy_loss(kind([0.0, 0.0]), kind(y))
