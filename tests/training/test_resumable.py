"""Checkpoints of training: resumed exactly, or refused."""

import signal
from functools import partial

import numpy as np
import pytest

from training.solvers import AUGMENT, CourseModel, image_solver, make_net, make_solver
from xpnn.data.augmentation import Mixup
from xpnn.errors import CheckpointError
from xpnn.models import FullyConnectedNet
from xpnn.optim import ParamGroup, sgd
from xpnn.training import Callback, checkpoint


@pytest.mark.parametrize("when", [3, 14])
def test_ctrl_c_ends_after_the_iteration_and_training_goes_on_as_if_never_stopped(kind, tmp_path, when):
    straight = make_solver(make_net(kind.backend))
    straight.train()

    class Interrupt(Callback):
        def on_iteration(self, solver):
            if solver.iteration == when:
                signal.raise_signal(signal.SIGINT)

        def on_train_end(self, solver):
            solver.save(tmp_path / "c.safetensors")

    first = make_solver(make_net(kind.backend), callbacks=[Interrupt()])
    first.train()
    assert (first.iteration, first.stop_reason) == (when, "interrupted")

    second = make_solver(make_net(kind.backend, rng=99), seed=99)
    second.resume(tmp_path / "c.safetensors")
    second.train()
    assert second.loss_history == straight.loss_history
    assert second.val_acc_history == straight.val_acc_history
    np.testing.assert_array_equal(kind.to_numpy(second.model.params.flat), kind.to_numpy(straight.model.params.flat))


def test_a_run_is_resumed_on_another_backend(kind, tmp_path):
    straight = make_solver()
    straight.train()
    half = make_solver(num_epochs=2, checkpoint_name=str(tmp_path / "run"))
    half.train()
    rest = make_solver(make_net(kind.backend))
    rest.resume(tmp_path / "run_epoch_2.safetensors")
    rest.train()
    # float32 sums in another order, over 24 steps of adam
    np.testing.assert_allclose(rest.loss_history, straight.loss_history, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 20}, "expected batch_size 20; received 10"),
        ({"update_rule": "rmsprop"}, "expected update_rule 'rmsprop'; received 'adam'"),
        ({"optim_config": {"learning_rate": 1e-2, "beta1": 0.5}}, "expected beta1 0.5; received 0.9"),
        ({"model": make_net(dropout=0.0)}, "expected random generators of none; received dropout1, dropout2"),
        ({"model": make_net(dtype="float64")}, "expected dtype 'float64'; received 'float32'"),
        ({"sampling": "shuffle"}, "expected sampling 'shuffle'; received 'replacement'"),
        ({"drop_last": False}, "expected drop_last False; received True"),
        ({"accumulate": 2}, "expected accumulate 2; received 1"),
        ({"reduction": "sum"}, "expected reduction 'sum'; received 'mean'"),
        ({"augment": Mixup(0.5)}, r"expected augment '\[Mixup.alpha=0.5.\]'; received '\[\]'"),
        (
            {"model": make_net(use_batchnorm=False)},
            "received model/batchnorm1.running_mean, which this training does not have",
        ),
        ({"model": FullyConnectedNet([9, 8], 6, 3, dropout=0.1, use_batchnorm=True)}, r"/W1: expected .*\(6, 9\)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, changes, message):
    make_solver().save(tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match=message):
        make_solver(**changes).resume(tmp_path / "c.safetensors")


def with_muon(dtype="", **kwargs):
    groups = [ParamGroup("W2", "muon", newton_schulz_dtype=dtype)]
    return make_solver(update_rule="adam", param_groups=groups, **kwargs)


def test_the_dtype_of_muons_products_is_saved_and_compared(tmp_path):
    straight, first = with_muon("float16"), with_muon("float16", num_epochs=2)
    straight.train()
    first.train()
    first.save(tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"expected W2.newton_schulz_dtype ''; received 'float16'"):
        with_muon().resume(tmp_path / "c")
    rest = with_muon("float16")
    rest.resume(tmp_path / "c")
    rest.train()
    assert rest.loss_history == straight.loss_history


@pytest.mark.parametrize("value", ["float8", 16, None])
def test_a_damaged_dtype_of_muons_products_is_refused(tmp_path, value):
    with_muon().save(tmp_path / "c")
    arrays, meta = checkpoint.load(tmp_path / "c")
    meta["optimizer"]["W2"]["newton_schulz_dtype"] = value
    checkpoint.save(tmp_path / "c", arrays, meta)
    with pytest.raises(CheckpointError, match=f"c: .*newton_schulz_dtype to be one of float16, .*received {value!r}"):
        with_muon().resume(tmp_path / "c")


def test_checkpoint_name_gives_a_file_an_epoch(tmp_path):
    make_solver(num_epochs=2, checkpoint_name=str(tmp_path / "run")).train()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run_epoch_1.safetensors", "run_epoch_2.safetensors"]


DAMAGE = {
    "epoch": "three",
    "seconds": "long",
    "iteration": -1,
    "loss_history": [1.0],
    "train_acc_history": None,
    "best_val_acc": 5.5,
    "order_state": [-1, 0, 0],
    "augmentation_state": [1, 2],
    "evaluation_state": [1, 2, "x"],
    "model_rng": [],
    "optimizer": {"flat": {"beta1": []}},
    "task": "fast",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_checkpoint_whose_meta_is_damaged_is_refused(tmp_path, name):
    solver = make_solver(num_epochs=1, checkpoint_name=str(tmp_path / "run"))
    solver.train()
    arrays, meta = checkpoint.load(tmp_path / "run_epoch_1.safetensors")
    checkpoint.save(tmp_path / "c", arrays, meta | {name: DAMAGE[name]})
    with pytest.raises(CheckpointError, match="c: .*expected "):
        make_solver().resume(tmp_path / "c")


@pytest.mark.parametrize("lost", ["optimizer/flat/v", "best/W1", "model/W1"])
def test_a_checkpoint_that_lost_an_array_is_refused(tmp_path, lost):
    solver = make_solver(num_epochs=1, checkpoint_name=str(tmp_path / "run"))
    solver.train()
    arrays, meta = checkpoint.load(tmp_path / "run_epoch_1.safetensors")
    del arrays[lost]
    checkpoint.save(tmp_path / "c", arrays, meta)
    with pytest.raises(CheckpointError, match=lost.split("/")[-1]):
        make_solver().resume(tmp_path / "c")


@pytest.mark.parametrize("section", ["accumulated", "averaging/average", "best", "model", "optimizer/flat", "other"])
@pytest.mark.parametrize("change", ["shape", "dtype", "name"])
def test_a_checkpoint_whose_arrays_do_not_fit_is_refused_and_changes_nothing(tmp_path, section, change):
    trained = image_solver(average="ema", num_epochs=1, checkpoint_name=str(tmp_path / "run"))
    trained.train()
    arrays, meta = checkpoint.load(tmp_path / "run_epoch_1.safetensors")
    name = {"optimizer/flat": "optimizer/flat/v", "other": "other/x"}.get(section, f"{section}/affine1.W")
    if change == "name" or section == "other":
        name = f"{section}/foo.W"
        arrays[name] = np.zeros(3, np.float32)
    else:
        arrays[name] = arrays[name][:1] if change == "shape" else arrays[name].astype(np.float64)
    checkpoint.save(tmp_path / "c", arrays, meta)
    solver = image_solver(rng=8, average="ema")
    before = {name: array.copy() for name, array in solver.arrays().items()}
    with pytest.raises(CheckpointError, match=f"c: .*{name}"):
        solver.resume(tmp_path / "c")
    assert solver.iteration == 0
    for name, array in solver.arrays().items():
        np.testing.assert_array_equal(array, before[name])


def test_the_state_of_a_rule_of_the_users_own_is_resumed(tmp_path):
    def rule(w, dw, config):
        config["velocity"] = 0.9 * config.get("velocity", 0.0) - 0.01 * dw
        return w + config["velocity"], config

    straight = make_solver(update_rule=rule, optim_config={}, checkpoint_name=str(tmp_path / "run"))
    straight.train()
    rest = make_solver(update_rule=rule, optim_config={})
    rest.resume(tmp_path / "run_epoch_2.safetensors")
    rest.train()
    assert rest.loss_history == straight.loss_history


@pytest.mark.parametrize("average", [None, "ema", "lookahead"])
@pytest.mark.parametrize("epochs", [1, 2])
def test_a_checkpoint_saved_when_training_has_ended_is_resumed_exactly(kind, tmp_path, average, epochs):
    straight = image_solver(kind.backend, average=average, use_batchnorm=True, num_epochs=4)
    straight.train()

    class Interrupt(Callback):
        def on_epoch(self, solver, metrics):
            solver.best_val_acc = 1.0  # the last weights are then not the best
            if metrics["epoch"] == epochs:
                solver.stop("enough")

    first = image_solver(kind.backend, average=average, use_batchnorm=True, num_epochs=4, callbacks=[Interrupt()])
    first.train()
    first.save(tmp_path / "c")
    rest = image_solver(kind.backend, rng=9, seed=9, average=average, use_batchnorm=True, num_epochs=4)
    rest.resume(tmp_path / "c")
    rest.train()
    assert rest.loss_history == straight.loss_history
    assert rest.val_acc_history == straight.val_acc_history


def test_a_second_train_saves_its_own_weights(tmp_path):
    solver = make_solver(num_epochs=1)
    solver.train()
    solver.callbacks.append(SaveAt(tmp_path / "along", 2))
    solver.train()
    solver.save(tmp_path / "after")
    along, after = (checkpoint.load(tmp_path / name)[0] for name in ("along", "after"))
    assert along.keys() == after.keys()
    for name, array in along.items():
        np.testing.assert_array_equal(after[name], array)


def test_a_checkpoint_without_what_training_needs_is_refused_and_changes_nothing(tmp_path):
    solver = make_solver()
    solver.save(tmp_path / "c")
    arrays, meta = checkpoint.load(tmp_path / "c")
    del meta["order_state"]
    checkpoint.save(tmp_path / "c", arrays, meta)
    fresh = make_solver(make_net(rng=4))
    before = fresh.model.params.flat.copy()
    with pytest.raises(CheckpointError, match="it is damaged .order_state is missing"):
        fresh.resume(tmp_path / "c")
    np.testing.assert_array_equal(fresh.model.params.flat, before)


def test_a_resumed_run_of_more_epochs_than_asked_for_goes_on(tmp_path):
    make_solver(num_epochs=4, checkpoint_name=str(tmp_path / "run")).train()
    solver = make_solver(num_epochs=2)
    solver.resume(tmp_path / "run_epoch_4.safetensors")
    solver.train()
    assert solver.epoch == 6


def test_a_plain_model_of_other_shapes_is_not_resumed(tmp_path):
    solver = make_solver(CourseModel(), update_rule="sgd", num_epochs=1, checkpoint_name=str(tmp_path / "run"))
    solver.train()
    other = CourseModel()
    other.params["W"] = np.zeros((6, 4), np.float32)
    with pytest.raises(CheckpointError, match=r"model/W: expected float32 \(6, 4\); received float32 \(6, 3\)"):
        make_solver(other, update_rule="sgd").resume(tmp_path / "run_epoch_1.safetensors")


def test_a_rule_need_not_have_a_name(tmp_path):
    solver = make_solver(update_rule=partial(sgd), optim_config={}, num_epochs=1, checkpoint_name=str(tmp_path / "run"))
    solver.train()
    assert (tmp_path / "run_epoch_1.safetensors").exists()


@pytest.mark.parametrize("when", [0, 1, 6, 7, 12])
def test_a_checkpoint_from_any_iteration_is_resumed_exactly(tmp_path, when):
    class Save(Callback):
        def on_train_start(self, solver):
            if when == 0:
                solver.save(tmp_path / "c")

        def on_iteration(self, solver):
            if solver.iteration == when:
                solver.save(tmp_path / "c")

    straight = make_solver(callbacks=[Save()])
    straight.train()
    rest, saved_again = make_solver(make_net(rng=9), seed=9), make_solver(make_net(rng=9), seed=9)
    rest.resume(tmp_path / "c")
    rest.save(tmp_path / "again")
    saved_again.resume(tmp_path / "again")
    for each in (rest, saved_again):
        each.train()
        assert each.loss_history == straight.loss_history
        assert each.val_acc_history == straight.val_acc_history
        np.testing.assert_array_equal(each.model.params.flat, straight.model.params.flat)


def test_settings_that_json_cannot_hold_are_named_when_saving(tmp_path):
    def rule(w, dw, config):
        config["seen"] = {1, 2}
        return w - 0.01 * dw, config

    solver = make_solver(update_rule=rule, optim_config={}, num_epochs=1)
    solver.train()
    with pytest.raises(CheckpointError, match="c: cannot be written .Object of type set is not JSON serializable"):
        solver.save(tmp_path / "c")


def test_a_rate_that_a_callback_has_set_outlives_an_interruption(tmp_path):
    class HalveOnce(Callback):
        def on_epoch(self, solver, metrics):
            if metrics["epoch"] == 1:
                solver.learning_rate /= 2

    whole = make_solver(num_epochs=4, callbacks=[HalveOnce()])
    whole.train()
    first = make_solver(num_epochs=4, callbacks=[HalveOnce(), SaveAt(tmp_path / "part", 2)])
    first.train()
    resumed = make_solver(num_epochs=4, callbacks=[HalveOnce()])
    resumed.resume(tmp_path / "part")
    resumed.train()
    assert resumed.learning_rate == whole.learning_rate == make_solver().learning_rate / 2
    assert resumed.loss_history == whole.loss_history


class SaveAt(Callback):
    """Write a checkpoint after one epoch."""

    def __init__(self, path, epoch):
        self.path, self.epoch = path, epoch

    def on_epoch(self, solver, metrics):
        if metrics["epoch"] == self.epoch:
            solver.save(self.path)


@pytest.mark.parametrize("average", [None, "ema", "lookahead"])
@pytest.mark.parametrize("when", [0, 1, 4, 8, 11, 16])
def test_augmented_training_is_resumed_exactly(kind, tmp_path, when, average):
    class Save(Callback):
        def on_train_start(self, solver):
            if when == 0:
                solver.save(tmp_path / "c")

        def on_iteration(self, solver):
            if solver.iteration == when:
                solver.save(tmp_path / "c")

    straight = image_solver(kind.backend, average=average, use_batchnorm=True, callbacks=[Save()])
    straight.train()
    rest = image_solver(kind.backend, rng=9, seed=9, average=average, use_batchnorm=True)
    rest.resume(tmp_path / "c")
    rest.train()
    assert rest.loss_history == straight.loss_history
    assert rest.val_acc_history == straight.val_acc_history
    assert "batchnorm1.running_var" in rest.model.state
    for name, array in straight.model.state_dict().items():
        np.testing.assert_array_equal(kind.to_numpy(rest.model.state_dict()[name]), kind.to_numpy(array))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"average": "lookahead"},
            r"expected average 'Lookahead.decay=image_solver.*lambda.*, every=2.'; received 'EMA",
        ),
        ({}, r"expected average 'none'; received 'EMA.decay=0.8.'"),
        ({"average": "ema", "augment": AUGMENT[1:]}, r"expected augment .\[RandomCrop.*received .\[AlternatingFlip"),
    ],
)
def test_a_checkpoint_of_other_augmentation_or_average_is_refused(tmp_path, changes, message):
    image_solver(average="ema").save(tmp_path / "c")
    with pytest.raises(CheckpointError, match=message):
        image_solver(**changes).resume(tmp_path / "c")


@pytest.mark.parametrize("lost", ["averaging/average/affine1.W", "averaging/updates", "accumulated/affine2.b"])
def test_a_checkpoint_that_lost_an_average_or_a_sum_is_refused_and_changes_nothing(tmp_path, lost):
    image_solver(average="ema").save(tmp_path / "c")
    arrays, meta = checkpoint.load(tmp_path / "c")
    del arrays[lost]
    checkpoint.save(tmp_path / "c", arrays, meta)
    solver = image_solver(rng=8, average="ema")
    before = solver.model.params.flat.copy()
    with pytest.raises(CheckpointError, match=f"c: expected {lost}, which it does not have"):
        solver.resume(tmp_path / "c")
    np.testing.assert_array_equal(solver.model.params.flat, before)
