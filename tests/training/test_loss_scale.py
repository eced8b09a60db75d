"""The factor of the loss in half precision."""

import numpy as np
import pytest

from training.solvers import make_net, make_solver
from xpnn import FullyConnectedNet, backend
from xpnn.parameters import Parameters
from xpnn.training.loss_scale import LossScale


def grads_of(kind, *values):
    grads = Parameters({"w": (len(values),)}, kind.backend)
    grads["w"] = kind(values, "float32")
    return grads


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_it_is_halved_when_gradients_overflow(kind, bad):
    scale = LossScale(kind.backend)
    kind.assert_close(scale.scale, 65536.0)
    assert not bool(scale.update(grads_of(kind, 1.0, bad)))
    kind.assert_close(scale.scale, 32768.0)
    assert bool(scale.update(grads_of(kind, 1.0, 2.0)))
    kind.assert_close(scale.scale, 32768.0)
    kind.check(scale.scale, "float32", ())


def test_it_is_doubled_after_so_many_steps_in_a_row(kind, monkeypatch):
    monkeypatch.setattr(LossScale, "GROWS_AFTER", 3)
    scale, fine, bad = LossScale(kind.backend), grads_of(kind, 1.0), grads_of(kind, np.nan)
    received = []
    for grads in (fine, fine, bad, fine, fine, fine, fine, fine, fine):
        scale.update(grads)
        received.append(float(scale.scale) / 65536)
    assert received == [1, 1, 0.5, 0.5, 0.5, 1, 1, 1, 2]


@pytest.mark.parametrize(("examples", "expected"), [(1, 2.0**16), (64, 2.0**10), (2000, 2.0**5)])
def test_of_a_sum_of_losses_it_is_as_much_smaller_at_first_to_a_power_of_two(kind, examples, expected):
    kind.assert_close(LossScale(kind.backend, examples).scale, expected)


def test_a_solver_that_adds_up_losses_begins_with_the_smaller_scale():
    for reduction, expected in (("mean", 2.0**16), ("sum", 2.0**13)):
        assert float(half_solver(batch_size=8, reduction=reduction)._loss_scale.scale) == expected


def half_solver(**settings):
    return make_solver(make_net(dtype="float16"), **settings)


def test_training_in_half_precision_follows_that_in_single():
    mixed, single = half_solver(), make_solver(make_net())
    mixed.train()
    single.train()
    np.testing.assert_allclose(mixed.loss_history, single.loss_history, atol=0.02)
    assert mixed.best_val_acc > 0.9


def test_a_step_that_overflows_is_left_out():
    solver = half_solver(num_epochs=1)
    solver._loss_scale.arrays["scale"][...] = 2.0**100
    before = solver.model.params.flat.copy()
    scales = []

    def step(grads, where, real=solver.optimizer.step):
        real(grads, where=where)
        scales.append((float(solver._loss_scale.scale), bool(where), np.array_equal(before, solver.model.params.flat)))

    solver.optimizer.step = step
    solver.train()
    assert [scale for scale, _, _ in scales] == [2.0 ** (99 - i) for i in range(6)]
    assert all(not fits and is_unchanged for _, fits, is_unchanged in scales)


def test_resuming_goes_on_with_the_same_scale(tmp_path, monkeypatch):
    monkeypatch.setattr(LossScale, "GROWS_AFTER", 4)
    monkeypatch.setattr(LossScale, "FIRST", 2.0**8)
    whole = half_solver(num_epochs=2)
    whole.train()
    first = half_solver(num_epochs=1)
    first.train()
    first.save(tmp_path / "half.safetensors")
    second = half_solver(num_epochs=2)
    second.resume(tmp_path / "half.safetensors")
    assert float(second._loss_scale.scale) == float(first._loss_scale.scale) == 2.0**9
    second.train()
    assert second.loss_history == whole.loss_history
    assert float(second._loss_scale.scale) == float(whole._loss_scale.scale)


def test_it_follows_the_model():
    if not backend.get("torch").is_available():
        pytest.skip("torch is not installed")
    solver = half_solver(num_epochs=1)
    solver.train()
    solver.model.to("torch")
    solver.train()
    assert backend.of(solver._loss_scale.scale) is backend.get("torch")


def test_accumulated_gradients_are_scaled_back_once():
    solvers = [make_solver(FullyConnectedNet([8], 6, 3, rng=0, dtype=d), accumulate=2) for d in ("float16", "float32")]
    for solver in solvers:
        solver.train()
    np.testing.assert_allclose(solvers[0].loss_history, solvers[1].loss_history, atol=0.02)
