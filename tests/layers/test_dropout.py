"""Dropout."""

import numpy as np
import pytest

from oracles import EPS, normals
from xpnn.layers import Dropout, ReLU, Sequential, dropout_backward, dropout_forward
from xpnn.models import Model
from xpnn.random import WEIGHTS, Generator


def test_p_is_the_probability_to_drop(kind, dtype):
    out, _ = dropout_forward(kind(np.ones((100, 100)), dtype), {"p": 0.8, "mode": "train", "seed": 0})
    dropped = np.mean(kind.to_numpy(out) == 0)
    assert abs(dropped - 0.8) < 5 * (0.8 * 0.2 / 10_000) ** 0.5  # five standard deviations of 10,000 draws


def test_what_is_kept_is_scaled_so_that_the_mean_stays(kind, dtype):
    out, _ = dropout_forward(kind(np.ones((10, 10)), dtype), {"p": 0.75, "mode": "train", "seed": 0})
    kind.check(out, dtype)
    assert set(kind.to_numpy(out).ravel().tolist()) == {0.0, 4.0}


def test_the_gradient_passes_where_the_number_was_kept(kind, dtype):
    x = kind(np.ones((10, 10)), dtype)
    out, cache = dropout_forward(x, {"p": 0.5, "mode": "train", "seed": 3})
    dx = dropout_backward(kind(np.full((10, 10), 7.0), dtype), cache)
    kind.check(dx, dtype, (10, 10))
    kind.assert_close(dx, 7.0 * kind.to_numpy(out))


def test_test_mode_is_the_identity_forward_and_backward(kind, dtype):
    x = normals((3, 4), dtype=dtype)
    out, cache = dropout_forward(kind(x, dtype), {"p": 0.9, "mode": "test"})
    kind.check(out, dtype)
    kind.assert_close(out, x)
    kind.assert_close(dropout_backward(kind(x, dtype), cache), x)


def test_p_0_keeps_everything(kind, dtype):
    x = normals((3, 4), dtype=dtype)
    out, cache = dropout_forward(kind(x, dtype), {"p": 0, "mode": "train", "seed": 0})
    kind.assert_close(out, x)
    kind.assert_close(dropout_backward(kind(x, dtype), cache), x)


def test_the_same_seed_gives_the_same_mask_at_every_call(kind, dtype):
    x, param = kind(np.ones((20, 20)), dtype), {"p": 0.5, "mode": "train", "seed": 11}
    first, _ = dropout_forward(x, param)
    second, _ = dropout_forward(x, param)
    kind.assert_close(second, kind.to_numpy(first))


def test_the_mask_of_a_seed_is_the_same_on_every_kind(kind, dtype):
    param = {"p": 0.5, "mode": "train", "seed": 11}
    out, _ = dropout_forward(kind(np.ones((4, 5)), dtype), param)
    kind.assert_close(out, dropout_forward(np.ones((4, 5)), param)[0])


def test_another_seed_gives_another_mask(kind):
    x = kind(np.ones((20, 20)))
    first, _ = dropout_forward(x, {"p": 0.5, "mode": "train", "seed": 1})
    second, _ = dropout_forward(x, {"p": 0.5, "mode": "train", "seed": 2})
    assert (kind.to_numpy(first) != kind.to_numpy(second)).any()


def test_a_seed_disturbs_no_other_generator(kind):
    np.random.seed(5)
    before = np.random.get_state()
    dropout_forward(kind(np.ones((4, 4))), {"p": 0.5, "mode": "train", "seed": 11})
    after = np.random.get_state()
    assert before[2:] == after[2:]
    np.testing.assert_array_equal(before[1], after[1])


def test_without_a_seed_numpys_global_state_makes_a_script_reproducible(kind):
    x, param = kind(np.ones((20, 20))), {"p": 0.5, "mode": "train"}
    np.random.seed(5)
    first, second = (kind.to_numpy(dropout_forward(x, param)[0]) for _ in range(2))
    np.random.seed(5)
    kind.assert_close(dropout_forward(x, param)[0], first)
    assert (first != second).any()


def test_a_seeded_mask_does_not_share_numbers_with_the_weights_of_that_seed():
    shared = Generator(123, WEIGHTS).dropout_mask((20, 20), 0.5, "float64")
    mask, _ = dropout_forward(np.ones((20, 20)), {"p": 0.5, "mode": "train", "seed": 123})
    assert (mask != shared).any()


def test_the_cache_keeps_its_meaning_when_the_mode_changes_later(kind, dtype):
    param = {"p": 0.5, "mode": "train", "seed": 11}
    out, cache = dropout_forward(kind(np.ones((5, 5)), dtype), param)
    param["mode"] = "test"
    kind.assert_close(dropout_backward(kind(np.ones((5, 5)), dtype), cache), kind.to_numpy(out))


def test_a_test_mode_cache_keeps_its_meaning_when_the_mode_changes_later(kind, dtype):
    param = {"p": 0.5, "mode": "test", "seed": 11}
    _, cache = dropout_forward(kind(np.ones((5, 5)), dtype), param)
    param["mode"] = "train"
    kind.assert_close(dropout_backward(kind(np.ones((5, 5)), dtype), cache), np.ones((5, 5)))


def test_the_callers_dict_stays_as_it_is(kind):
    param = {"p": 0.5, "mode": "train", "seed": 11}
    dropout_forward(kind(np.ones((5, 5))), param)
    assert param == {"p": 0.5, "mode": "train", "seed": 11}


def test_a_numpy_scalar_p_does_not_promote_float32(kind):
    param = {"p": np.float64(0.5), "mode": "train", "seed": 0}
    out, cache = dropout_forward(kind(np.ones((3, 3)), "float32"), param)
    kind.check(out, "float32")
    kind.check(dropout_backward(kind(np.ones((3, 3)), "float32"), cache), "float32")


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (), (2, 3, 4)])
def test_any_shape(kind, dtype, shape):
    out, _ = dropout_forward(kind(np.ones(shape), dtype), {"p": 0.5, "mode": "train", "seed": 0})
    kind.check(out, dtype, shape)


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
@pytest.mark.parametrize("mode", ["train", "test"])
def test_p_outside_0_to_1_is_refused(kind, p, mode):
    with pytest.raises(ValueError, match=rf"dropout: expected p, the probability to drop, in \[0, 1\); received {p}"):
        dropout_forward(kind([1.0]), {"p": p, "mode": mode})


def test_another_mode_is_refused(kind):
    with pytest.raises(ValueError, match="dropout: expected mode 'train' or 'test'; received 'evaluate'"):
        dropout_forward(kind([1.0]), {"p": 0.5, "mode": "evaluate"})


def test_integers_are_refused(kind):
    with pytest.raises(TypeError, match="dropout: expected x of a floating-point dtype; received int64"):
        dropout_forward(kind([1], "int64"), {"p": 0.5, "mode": "train"})


def test_the_layer_refuses_p_outside_0_to_1_when_it_is_made():
    with pytest.raises(ValueError, match=r"dropout: expected p, .*in \[0, 1\); received 1"):
        Dropout(1)


def test_layers_of_one_net_draw_from_streams_of_their_own(kind):
    net = Sequential(Dropout(0.5), ReLU(), Dropout(0.5))
    Model(net, (400,), backend=kind.backend, rng=0)
    x = kind(np.ones((1, 400)), "float32")
    first, second = (kind.to_numpy(net.layers[name].forward(x, train=True)[0]) for name in ("dropout1", "dropout2"))
    assert abs(np.mean((first == 0) == (second == 0)) - 0.5) < 5 * (0.25 / 400) ** 0.5  # five deviations


def test_the_layer_draws_a_new_mask_at_each_step(kind):
    net = Sequential(Dropout(0.5))
    Model(net, (400,), backend=kind.backend, rng=0)
    x = kind(np.ones((1, 400)), "float32")
    first, second = (kind.to_numpy(net.forward(x, train=True)[0]) for _ in range(2))
    assert (first != second).any()


def test_the_expectation_of_the_output_is_the_input(kind):
    x = np.full((200, 200), 3.0)
    out, _ = dropout_forward(kind(x), {"p": 0.25, "mode": "train", "seed": 0})
    deviation = 3.0 * (0.25 / 0.75) ** 0.5 / 200  # of the mean of 40,000 numbers
    assert abs(kind.to_numpy(out).mean() - 3.0) < 5 * deviation + EPS["float64"]
