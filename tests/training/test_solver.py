"""The training loop: the course's contract, and what goes beyond it."""

import itertools
import math
import signal

import numpy as np
import pytest

from oracles import normals
from xpnn import Model, Solver, backend
from xpnn.data.augmentation import AlternatingFlip, ColorJitter, Compose, Cutout, Mixup, Normalize, RandomCrop
from xpnn.data.tta import tta_scores
from xpnn.errors import CheckpointError, SettingError
from xpnn.layers import Affine, BatchNorm, Dropout, ReLU, Sequential
from xpnn.models import FullyConnectedNet
from xpnn.optim import EMA, Lookahead, ParamGroup
from xpnn.training import Callback, EarlyStopping
from xpnn.training import solver as solver_module


def clouds(num=60, classes=3, features=6, seed=0):
    """Well separated clouds of points, one per class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, num)
    X = 4 * np.eye(classes, features)[y] + rng.standard_normal((num, features))
    return X.astype(np.float32), y


def make_data():
    X, y = clouds(60)
    X_val, y_val = clouds(30, seed=1)
    return {"X_train": X, "y_train": y, "X_val": X_val, "y_val": y_val}


def make_net(where="numpy", **kwargs):
    settings = {"dropout": 0.25, "use_batchnorm": True, "weight_scale": None, "rng": 3} | kwargs
    return FullyConnectedNet([8, 8], 6, 3, backend=where, **settings)


def make_solver(model=None, **kwargs):
    settings = {
        "update_rule": "adam",
        "optim_config": {"learning_rate": 1e-2},
        "batch_size": 10,
        "num_epochs": 4,
        "seed": 5,
        "verbose": False,
    }
    return Solver(make_net() if model is None else model, make_data(), **(settings | kwargs))


class Spy(Callback):
    def __init__(self):
        self.events = []

    def on_train_start(self, solver):
        self.events.append("start")

    def on_iteration(self, solver):
        self.events.append(solver.iteration)

    def on_epoch(self, solver, metrics):
        self.events.append(metrics)

    def on_train_end(self, solver):
        self.events.append("end")


class CourseModel:
    """A linear classifier in the course's style: a plain dict of arrays, and a loss."""

    def __init__(self):
        self.params = {"W": np.zeros((6, 3), np.float32), "b": np.zeros(3, np.float32)}

    def loss(self, X, y=None):
        scores = X @ self.params["W"] + self.params["b"]
        if y is None:
            return scores
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        loss = -np.log(p[np.arange(len(y)), y]).mean()
        p[np.arange(len(y)), y] -= 1
        return loss, {"W": X.T @ p / len(y), "b": p.sum(axis=0) / len(y)}


def test_it_learns_on_every_kind(kind):
    solver = make_solver(make_net(kind.backend), num_epochs=8)
    solver.train()
    assert solver.best_val_acc > 0.9
    assert solver.loss_history[-1] < solver.loss_history[0] / 2


def test_the_lines_are_the_courses(capsys):
    make_solver(CourseModel(), update_rule="sgd", num_epochs=1, print_every=3, verbose=True).train()
    first, epoch0, second, epoch1 = capsys.readouterr().out.splitlines()
    assert first == "(Iteration 1 / 6) loss: 1.098612"  # log 3
    assert epoch0.startswith("(Epoch 0 / 1) train acc: ")
    assert second.startswith("(Iteration 4 / 6) loss: ")
    assert epoch1.startswith("(Epoch 1 / 1) train acc: ")
    assert "; val_acc: " in epoch1


def test_histories_have_a_loss_an_iteration_and_an_accuracy_an_epoch():
    solver = make_solver()
    solver.train()
    assert len(solver.loss_history) == 4 * 6
    assert all(type(loss) is float for loss in solver.loss_history)
    assert len(solver.train_acc_history) == len(solver.val_acc_history) == 5
    assert solver.epoch == 4


def test_one_iteration_an_epoch_still_gives_an_accuracy_for_epoch_0():
    solver = make_solver(batch_size=100)
    solver.train()
    assert len(solver.loss_history) == 4
    assert len(solver.val_acc_history) == 5


def test_the_rate_decays_after_each_epoch():
    spy = Spy()
    solver = make_solver(lr_decay=0.5, num_epochs=2, callbacks=[spy])
    solver.train()
    rates = [e["learning_rate"] for e in spy.events if isinstance(e, dict)]
    assert rates == [1e-2, 1e-2, 5e-3]
    assert {config["learning_rate"] for config in solver.optim_configs.values()} == {2.5e-3}


def test_a_schedule_multiplies_the_rate():
    rates = []
    solver = make_solver(schedule=lambda progress: 1 - progress, num_epochs=1)
    solver.callbacks.append(
        type("Rates", (Callback,), {"on_iteration": lambda s, x: rates.append(x.optimizer.learning_rate)})()
    )
    solver.train()
    assert rates == pytest.approx([1e-2 * (1 - i / 6) for i in (1, 2, 3, 4, 5, 6)])


def test_the_best_parameters_and_statistics_are_put_back():
    solver = make_solver(num_epochs=6, optim_config={"learning_rate": 0.3})
    kept = {}

    class Keep(Callback):
        def on_epoch(self, solver, metrics):
            if metrics["val_acc"] > max(solver.val_acc_history[:-1], default=-1):
                kept.update({k: np.array(v) for k, v in solver.model.state_dict().items()})

    solver.callbacks.append(Keep())
    solver.train()
    assert solver.best_val_acc == max(solver.val_acc_history)
    assert solver.check_accuracy(solver.X_val, solver.y_val) == solver.best_val_acc
    for name, array in solver.model.state_dict().items():
        np.testing.assert_array_equal(array, kept[name])


def test_check_accuracy_counts_hits_over_uneven_batches(kind):
    model = Model(Sequential(Affine(3)), (3,), backend=kind.backend)
    model.params = {"affine1.W": np.eye(3), "affine1.b": np.zeros(3)}
    data = {"X_train": np.eye(3), "y_train": np.arange(3), "X_val": np.eye(3), "y_val": np.arange(3)}
    solver = Solver(model, data)
    X, y = np.eye(3)[[0, 1, 2, 0, 1, 2, 0]], np.array([0, 1, 2, 1, 1, 2, 2])
    assert solver.check_accuracy(kind(X), kind(y), batch_size=3) == 5 / 7


def test_a_model_of_the_users_own_is_trained():
    solver = make_solver(CourseModel(), update_rule="sgd_momentum", num_epochs=8)
    solver.train()
    assert solver.best_val_acc > 0.9
    assert set(solver.best_params) == {"W", "b"}


def test_a_model_of_the_users_own_goes_on_learning_in_a_second_train():
    solver = make_solver(CourseModel(), update_rule="sgd", optim_config={"learning_rate": 1e-3}, num_epochs=1)
    params = solver.model.params
    solver.train()
    before, steps = params["W"].copy(), []
    solver.callbacks.append(
        type("Steps", (Callback,), {"on_iteration": lambda s, x: steps.append((params["W"] != before).any())})()
    )
    solver.train()
    assert solver.model.params is params
    assert len(steps) == 6
    assert all(steps)


@pytest.mark.parametrize("queueing", [False, True])
def test_a_plain_loss_is_read_and_a_nan_in_it_stops(queueing, monkeypatch):
    monkeypatch.setattr(type(backend.get("numpy")), "asynchronous", property(lambda self: queueing))

    class Floats(CourseModel):
        def loss(self, X, y=None):
            if y is None:
                return super().loss(X)
            loss, grads = super().loss(X, y)
            self.calls = getattr(self, "calls", 0) + 1
            return (math.nan if self.calls == 8 else float(loss)), grads

    solver = make_solver(Floats(), update_rule="sgd")
    with pytest.warns(RuntimeWarning, match="the loss is nan at iteration 8"):
        solver.train()
    assert solver.iteration == 8


@pytest.mark.parametrize("queueing", [False, True])
def test_after_a_nan_training_goes_on_from_the_best_weights(queueing, monkeypatch, tmp_path):
    monkeypatch.setattr(type(backend.get("numpy")), "asynchronous", property(lambda self: queueing))
    solver = make_solver()

    class Poison(Callback):
        def on_iteration(self, solver):
            if solver.iteration == 11:
                solver.model.params["W2"][0, 0] = math.nan

    solver.callbacks.append(Poison())
    with pytest.warns(RuntimeWarning, match="the loss is nan at iteration 12"):
        solver.train()
    solver.callbacks.clear()
    solver.train()
    assert not solver.diverged
    assert solver.iteration == 24
    assert np.isfinite(solver.loss_history[12:]).all()
    solver.save(tmp_path / "c")
    make_solver().resume(tmp_path / "c")


def test_a_rule_of_the_users_own_sees_one_parameter_at_a_time():
    shapes = set()

    def rule(w, dw, config=None):
        shapes.add(w.shape)
        return w - 0.1 * dw, config

    solver = make_solver(update_rule=rule, optim_config={}, num_epochs=1)
    solver.train()
    assert shapes == {solver.model.params[name].shape for name in solver.model.params}


def test_two_runs_of_one_seed_are_equal_and_of_two_seeds_not():
    losses = []
    for seed in (5, 5, 6):
        solver = make_solver(seed=seed)
        solver.train()
        losses.append(solver.loss_history)
    assert losses[0] == losses[1] != losses[2]


def test_without_a_seed_numpys_decides():
    losses = []
    for _ in range(2):
        np.random.seed(11)
        solver = make_solver(FullyConnectedNet([8], 6, 3, dropout=0.5), seed=None)
        solver.train()
        losses.append(solver.loss_history)
    assert losses[0] == losses[1]


def test_callbacks_are_told_in_order():
    spy = Spy()
    make_solver(num_epochs=1, batch_size=30, callbacks=[spy]).train()
    kinds = [event if not isinstance(event, dict) else ("epoch", event["epoch"]) for event in spy.events]
    assert kinds == ["start", 1, ("epoch", 0), 2, ("epoch", 1), "end"]
    metrics = spy.events[-2]
    assert list(metrics) == ["epoch", "iteration", "loss", "train_acc", "val_acc", "learning_rate", "seconds"]


def test_early_stopping_waits_as_long_as_it_was_told():
    solver = make_solver(update_rule="sgd", optim_config={"learning_rate": 1e-30}, num_epochs=50)
    solver.model.params = {name: np.zeros(w.shape) for name, w in solver.model.params.items()}
    solver.callbacks.append(EarlyStopping(3))
    solver.train()
    assert solver.epoch == 3
    assert solver.stop_reason == "validation accuracy has not risen for 3 epochs"


def test_a_nan_stops_before_the_update_and_names_iteration_and_layer():
    net = Model(Sequential(Affine(5), ReLU(), Affine(3)), (6,), rng=0)
    solver = make_solver(net)

    class Poison(Callback):
        def on_iteration(self, solver):
            if solver.iteration == 4:
                solver.model.params["affine2.W"][0, 0] = math.nan

    solver.callbacks.append(Poison())
    with pytest.warns(RuntimeWarning, match=r"the loss is nan at iteration 5, first in layer affine2"):
        solver.train()
    assert solver.diverged
    assert solver.iteration == 5
    assert all(np.isfinite(w).all() for w in net.params.values())  # the best ones, put back


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


def test_train_takes_an_interrupted_run_up_again():
    solver = make_solver()
    solver.callbacks.append(
        type("Stop", (Callback,), {"on_iteration": lambda s, x: x.stop("enough") if x.iteration == 7 else None})()
    )
    solver.train()
    assert solver.iteration == 7
    solver.train()
    assert (solver.iteration, solver.stop_reason) == (24, "")


def test_train_after_the_end_adds_epochs():
    solver = make_solver(num_epochs=2)
    solver.train()
    solver.train()
    assert solver.epoch == 4
    assert len(solver.val_acc_history) == 5


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
        ({"augment": Mixup(0.5)}, r"expected augment '\[Mixup.alpha=0.5.\]'; received '\[\]'"),
        ({"model": make_net(use_batchnorm=False)}, "which the model does not have"),
        ({"model": FullyConnectedNet([9, 8], 6, 3, dropout=0.1, use_batchnorm=True)}, r"W1: expected shape \(6, 9\)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, changes, message):
    make_solver().save(tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match=message):
        make_solver(**changes).resume(tmp_path / "c.safetensors")


def test_checkpoint_name_gives_a_file_an_epoch(tmp_path):
    make_solver(num_epochs=2, checkpoint_name=str(tmp_path / "run")).train()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run_epoch_1.safetensors", "run_epoch_2.safetensors"]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"learning_rate": 1}, "unknown settings 'learning_rate'"),
        ({"update_rule": "sdg"}, "expected one of sgd, .*received 'sdg'"),
        ({"optim_config": {"lr": 1}}, "expected settings among learning_rate.*received 'lr'"),
        ({"batch_size": 0}, "batch_size to be a whole number of at least 1; received 0"),
        ({"num_epochs": 1.5}, "num_epochs to be a whole number of at least 1; received 1.5"),
        ({"sampling": "all"}, "sampling to be one of replacement, shuffle, sequential; received 'all'"),
        ({"schedule": "up"}, "schedule: expected one of constant, .*received 'up'"),
        ({"accumulate": 0}, "accumulate to be a whole number of at least 1; received 0"),
        ({"augment": "flip"}, "Compose: expected transforms, or functions .x, batch.; received 'f'"),
        ({"tta": "rotate"}, "Solver: expected tta to be one of none, mirror, mirror-translate; received 'rotate'"),
        ({"tta": "mirror"}, r"expected images X_val .N, C, H, W. for tta 'mirror'; received shape .30, 6."),
        ({"clip_norm": -1}, "clip_norm to be a number above 0; received -1"),
        ({"param_groups": [ParamGroup("conv*")]}, "expected a pattern that matches parameters"),
        ({"average": 0.9}, "expected average to be an EMA or Lookahead of model.params; received 0.9"),
        ({"average": EMA(make_net().params, 0.9)}, "expected average to be an EMA or Lookahead of model.params"),
    ],
)
def test_a_wrong_setting_is_a_value_error_that_names_it(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_solver(**kwargs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_train": np.full(60, 3)}, "expected labels y_train from 0 to 2; received 3"),
        ({"y_val": np.full(30, -1)}, "expected labels y_val from 0 to 2; received -1"),
        (
            {"y_train": np.zeros(59, int)},
            r"expected X_train \(N, ...\) and y_train \(N,\).*received \(60, 6\) and \(59,\)",
        ),
        ({"y_val": np.zeros(30)}, "expected integer labels y_val; received float64"),
        ({"X_val": np.zeros((0, 6)), "y_val": np.zeros(0, int)}, "N > 0"),
    ],
)
def test_wrong_data_are_named(change, message):
    with pytest.raises(SettingError, match=message):
        Solver(make_net(), make_data() | change)


def test_missing_data_are_named():
    data = make_data()
    del data["X_val"]
    with pytest.raises(SettingError, match="expected data to have X_val"):
        Solver(make_net(), data)


def test_a_queueing_backend_is_not_waited_for_between_checks(monkeypatch):
    reads = []
    numpy = type(backend.get("numpy"))
    monkeypatch.setattr(numpy, "asynchronous", property(lambda self: True))
    monkeypatch.setattr(numpy, "to_numpy", lambda self, x: reads.append(x.shape) or np.asarray(x))
    solver = make_solver(num_epochs=2)
    solver.train()
    assert reads == [(5,), (6,)]  # the losses of an epoch at once; the first iteration's is read alone
    assert len(solver.loss_history) == 12


def test_dropout_masks_differ_between_iterations_but_not_between_kinds(kind):
    model = Model(Sequential(Dropout(0.5), Affine(3)), (6,), backend=kind.backend, rng=0)
    twin = Model(Sequential(Dropout(0.5), Affine(3)), (6,), rng=0)
    X = np.ones((4, 6), np.float32)
    ours = [kind.to_numpy(model.net.layers["dropout1"].forward(kind(X), train=True)[0]) for _ in range(2)]
    numpys = [twin.net.layers["dropout1"].forward(X, train=True)[0] for _ in range(2)]
    np.testing.assert_array_equal(ours, numpys)
    assert (ours[0] != ours[1]).any()


def test_a_nan_on_a_queueing_backend_is_found_late_but_named_right_and_harms_nothing(monkeypatch):
    monkeypatch.setattr(type(backend.get("numpy")), "asynchronous", property(lambda self: True))
    net = Model(Sequential(Affine(5), ReLU(), Affine(3)), (6,), rng=0)
    solver = make_solver(net)
    frozen = {}

    class Poison(Callback):
        def on_iteration(self, solver):
            if solver.iteration == 8:
                net.params["affine2.W"][0, 0] = math.nan
            if solver.iteration == 9:
                frozen.update({name: w.copy() for name, w in net.params.items()})

        def on_train_end(self, solver):
            for name, w in net.params.items():
                np.testing.assert_array_equal(w, frozen[name])

    solver.callbacks.append(Poison())
    with pytest.warns(RuntimeWarning, match="the loss is nan at iteration 9, first in layer affine2"):
        solver.train()
    assert frozen
    assert np.isfinite(frozen["affine1.W"]).all()
    assert solver.iteration == 12  # the end of the epoch


def test_a_step_on_a_queueing_backend_reads_nothing_from_the_device(monkeypatch):
    strict = backend.get("array-api-strict:device1")
    if not strict.is_available():
        pytest.skip(strict.reason)
    monkeypatch.setattr(type(strict), "asynchronous", property(lambda self: True))
    solver = make_solver(make_net(strict))
    solver._step()
    array = type(solver.X_train)
    for name in ("__float__", "__int__", "__bool__", "__index__", "to_device"):
        monkeypatch.setattr(array, name, lambda *args: pytest.fail("a value was read from the device"))
    for _ in range(12):  # over the end of two epochs
        solver._step()
    assert solver.iteration == 13


def test_training_goes_on_after_the_model_has_moved(kind):
    solver, stays = make_solver(num_epochs=2), make_solver(num_epochs=2)
    for each in (solver, stays):
        each.train()
    solver.model.to(kind.backend)
    assert {backend.of(c["v"]) for c in solver.optim_configs.values()} == {kind.backend}
    for each in (solver, stays):
        each.train()
    assert solver.model.params.backend is kind.backend
    # float32 sums in another order, over 12 steps of adam
    np.testing.assert_allclose(solver.loss_history, stays.loss_history, rtol=1e-4)


def test_callbacks_are_ended_even_if_one_of_them_fails():
    spy = Spy()

    class Fails(Callback):
        def on_iteration(self, solver):
            raise RuntimeError("broken callback")

        def on_train_end(self, solver):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        make_solver(callbacks=[spy, Fails()]).train()
    assert spy.events[-1] == "end"


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
    from xpnn.training import checkpoint

    solver = make_solver(num_epochs=1, checkpoint_name=str(tmp_path / "run"))
    solver.train()
    arrays, meta = checkpoint.load(tmp_path / "run_epoch_1.safetensors")
    checkpoint.save(tmp_path / "c", arrays, meta | {name: DAMAGE[name]})
    with pytest.raises(CheckpointError, match="c: .*expected "):
        make_solver().resume(tmp_path / "c")


@pytest.mark.parametrize("lost", ["optimizer/flat/v", "best/W1", "model/W1"])
def test_a_checkpoint_that_lost_an_array_is_refused(tmp_path, lost):
    from xpnn.training import checkpoint

    solver = make_solver(num_epochs=1, checkpoint_name=str(tmp_path / "run"))
    solver.train()
    arrays, meta = checkpoint.load(tmp_path / "run_epoch_1.safetensors")
    del arrays[lost]
    checkpoint.save(tmp_path / "c", arrays, meta)
    with pytest.raises(CheckpointError, match=lost.split("/")[-1]):
        make_solver().resume(tmp_path / "c")


def test_a_model_that_moves_in_mid_training_takes_its_data_along(kind):
    class Move(Callback):
        def on_epoch(self, solver, metrics):
            if metrics["epoch"] == 1:
                solver.model.to(kind.backend)

    solver = make_solver(callbacks=[Move()])
    solver.train()
    assert solver.backend is kind.backend
    assert len(solver.val_acc_history) == 5


def test_sizes_may_be_numpys():
    sizes = np.random.default_rng(0).choice([8, 9], 2)
    net = FullyConnectedNet(sizes, input_dim=np.prod((2, 3)), num_classes=np.int64(2) + 1, rng=0)
    solver = make_solver(net, batch_size=np.int64(10), num_epochs=np.int64(1))
    solver.train()
    assert solver.epoch == 1


@pytest.mark.parametrize("setting", [{"num_train_samples": 0}, {"num_val_samples": -5}])
def test_an_accuracy_needs_at_least_one_sample(setting):
    with pytest.raises(SettingError, match=f"expected {next(iter(setting))} to be a whole number of at least 1"):
        make_solver(**setting)


def test_an_accuracy_of_nothing_is_refused():
    with pytest.raises(SettingError, match="check_accuracy: expected at least one of each; received 0 examples"):
        make_solver().check_accuracy(np.zeros((0, 6)), np.zeros(0, int))


def test_validation_examples_of_another_shape_are_refused():
    with pytest.raises(SettingError, match=r"examples of one shape; received \(6,\) and \(5,\)"):
        Solver(make_net(), make_data() | {"X_val": np.zeros((30, 5))})


def test_a_checkpoint_without_what_training_needs_is_refused_and_changes_nothing(tmp_path):
    from xpnn.training import checkpoint

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


def test_a_data_set_will_do_for_its_arrays():
    from xpnn.data import load_digits

    digits = load_digits().take(50)
    solver = Solver(FullyConnectedNet([4], 64, 10, rng=0), digits, num_epochs=1, seed=0, verbose=False)
    solver.train()
    assert solver.X_train.shape == (50, 1, 8, 8)


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
    with pytest.raises(CheckpointError, match=r"expected W of shape \(6, 4\)"):
        make_solver(other, update_rule="sgd").resume(tmp_path / "run_epoch_1.safetensors")


def test_a_rule_need_not_have_a_name(tmp_path):
    from functools import partial

    from xpnn.optim import sgd

    solver = make_solver(update_rule=partial(sgd), optim_config={}, num_epochs=1, checkpoint_name=str(tmp_path / "run"))
    solver.train()
    assert (tmp_path / "run_epoch_1.safetensors").exists()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"optim_config": {"learning_rate": "fast"}}, "adam: expected a number for learning_rate; received 'fast'"),
        ({"checkpoint_name": "nowhere/run"}, "checkpoint_name in a folder that exists; received 'nowhere/run'"),
        ({"model": object()}, "expected a model with a dict of params; received object"),
        ({"batch_size": None}, "expected batch_size to be a whole number of at least 1; received None"),
    ],
)
def test_what_a_solver_cannot_work_with_is_named(kwargs, message):
    with pytest.raises(SettingError, match=message):
        make_solver(**kwargs)


def test_labels_of_another_number_are_refused():
    solver = make_solver()
    with pytest.raises(SettingError, match=r"check_accuracy: .*received \(30, 6\) and \(1,\)"):
        solver.check_accuracy(solver.X_val, solver.y_val[:1])


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
    rest = make_solver(make_net(rng=9), seed=9)
    rest.resume(tmp_path / "c")
    rest.train()
    assert rest.loss_history == straight.loss_history
    assert rest.val_acc_history == straight.val_acc_history
    np.testing.assert_array_equal(rest.model.params.flat, straight.model.params.flat)


def test_a_rule_of_the_users_own_moves_with_its_state(kind):
    def momentum(w, dw, config):
        v = config.get("velocity")
        config["velocity"] = v = -0.01 * dw + (0.0 if v is None else 0.9 * v)
        return w + v, config

    solver = make_solver(update_rule=momentum, optim_config={}, num_epochs=1)
    solver.train()
    solver.model.to(kind.backend)
    solver.train()
    assert solver.epoch == 2


def test_a_rule_that_writes_in_place_is_stopped_in_time_on_a_queueing_backend(monkeypatch):
    monkeypatch.setattr(type(backend.get("numpy")), "asynchronous", property(lambda self: True))

    def in_place(w, dw, config):
        w -= 0.01 * dw
        return w, config

    net = Model(Sequential(Affine(5), ReLU(), Affine(3)), (6,), rng=0)
    solver = make_solver(net, update_rule=in_place, optim_config={})

    class Poison(Callback):
        def on_iteration(self, solver):
            if solver.iteration == 8:
                net.params["affine2.W"][0, 0] = math.nan

    solver.callbacks.append(Poison())
    with pytest.warns(RuntimeWarning, match="the loss is nan at iteration 9, first in layer affine2"):
        solver.train()


def test_settings_that_json_cannot_hold_are_named_when_saving(tmp_path):
    def rule(w, dw, config):
        config["seen"] = {1, 2}
        return w - 0.01 * dw, config

    solver = make_solver(update_rule=rule, optim_config={}, num_epochs=1)
    solver.train()
    with pytest.raises(CheckpointError, match="c: cannot be written .Object of type set is not JSON serializable"):
        solver.save(tmp_path / "c")


def test_a_callback_may_set_the_learning_rate():
    class Halve(Callback):
        def on_epoch(self, solver, metrics):
            solver.learning_rate /= 2

    spy = Spy()
    solver = make_solver(num_epochs=2, callbacks=[spy, Halve()])
    solver.train()
    assert [e["learning_rate"] for e in spy.events if isinstance(e, dict)] == [1e-2, 5e-3, 2.5e-3]


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


def test_the_seconds_of_a_check_include_its_last_step(monkeypatch):
    monkeypatch.setattr(solver_module.time, "perf_counter", itertools.count().__next__)  # a second a look
    spy = Spy()
    make_solver(num_epochs=1, batch_size=1000, callbacks=[spy]).train()
    seconds = [event["seconds"] for event in spy.events if isinstance(event, dict)]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0


def test_an_average_takes_in_the_models_running_statistics():
    model = Model(Sequential(Affine(4), BatchNorm(), Affine(3)), (5,), rng=0)
    average = EMA(model.params, 0.5)
    data = {
        f"{k}_{split}": v for split in ("train", "val") for k, v in (("X", normals((20, 5))), ("y", np.arange(20) % 3))
    }
    solver = Solver(model, data, average=average, batch_size=10, num_epochs=1, seed=0, verbose=False)
    assert average.average_state.keys() == {"batchnorm1.running_mean", "batchnorm1.running_var"}
    solver.train()
    assert (average.average_state["batchnorm1.running_var"] != 0).all()


def test_metrics_have_no_nan(tmp_path):
    import json

    from xpnn.training import MetricsLog

    MetricsLog(tmp_path / "m").on_epoch(None, {"epoch": 1, "loss": math.nan, "learning_rate": None})
    assert json.loads((tmp_path / "m").read_text()) == {"epoch": 1, "loss": None, "learning_rate": None}


def image_data():
    """Small images of bytes, one of three colors the brightest, another one in each class."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 87)
    X = rng.integers(0, 100, (87, 3, 4, 5))
    X[np.arange(87), y] += 60
    return {"X_train": X[:57].astype("uint8"), "y_train": y[:57], "X_val": X[57:].astype("uint8"), "y_val": y[57:]}


AUGMENT = [AlternatingFlip(), RandomCrop(2), Cutout(2), ColorJitter(0.2, 0.2), Normalize(80, (50, 50, 50)), Mixup(0.3)]


def image_solver(where="numpy", rng=3, seed=5, average=None, data=None, **kwargs):
    """A solver that does everything it can to images, ends of epochs that nothing divides included."""
    model = Model(Sequential(Affine(8), ReLU(), Affine(3)), (60,), rng=rng, backend=where)
    if average == "ema":
        average = EMA(model.params, 0.8, state=lambda: model.state)
    elif average == "lookahead":
        average = Lookahead(model.params, 2, lambda progress: progress)
    settings = {
        "update_rule": "adam",
        "optim_config": {"learning_rate": 1e-2},
        "augment": AUGMENT,
        "average": average,
        "accumulate": 3,
        "batch_size": 8,
        "drop_last": False,
        "sampling": "shuffle",
        "num_epochs": 3,
        "tta": "mirror-translate",
        "verbose": False,
    }
    return Solver(model, image_data() if data is None else data, seed=seed, **(settings | kwargs))


class Recorder(CourseModel):
    """Keeps what reaches it."""

    def __init__(self):
        super().__init__()
        self.params["W"] = np.zeros((60, 3), np.float32)
        self.trained, self.scored = [], []

    def loss(self, X, y=None):
        (self.scored if y is None else self.trained).append((X, y))
        flat = X.reshape(len(X), -1).astype(np.float32) / 255
        if y is not None and y.ndim == 2:
            y = y.argmax(axis=1)
        return super().loss(flat, y)


@pytest.mark.parametrize("average", [None, "ema", "lookahead"])
def test_augmented_training_learns_on_every_kind_and_agrees(kind, average):
    ours, numpys = (
        image_solver(kind.backend, average=average, num_epochs=8),
        image_solver(average=average, num_epochs=8),
    )
    ours.train()
    numpys.train()
    # float32 sums in another order, over 24 steps of adam
    np.testing.assert_allclose(ours.loss_history, numpys.loss_history, rtol=1e-3)
    assert ours.best_val_acc > 0.8
    assert len(ours.loss_history) == 64


def test_training_sees_augmented_images_and_evaluation_those_that_are_stored():
    model, seen = Recorder(), []

    def negative(x, batch):
        seen.append((batch.epoch, batch.num_examples, batch.dtype))
        return 255 - x

    solver = Solver(model, image_data(), augment=negative, batch_size=10, num_epochs=2, verbose=False, seed=0)
    solver.train()
    assert seen == [(0, 57, "float32")] * 5 + [(1, 57, "float32")] * 5
    stored = {image.tobytes() for images in (solver.X_train, solver.X_val) for image in images}
    assert all((255 - image).tobytes() in stored for X, _ in model.trained for image in X)
    assert all(image.tobytes() in stored for X, _ in model.scored[:6] for image in X)
    assert all(X.dtype == np.uint8 for X, _ in model.trained + model.scored)


def test_normalized_images_are_seen_in_training_and_evaluation_alike():
    model = Recorder()
    solver = Solver(model, image_data(), augment=[RandomCrop(1), Normalize(100, 200)], num_epochs=1, verbose=False)
    solver.train()
    for X, _ in model.trained + model.scored:
        assert X.dtype == np.float32
        assert -0.5 <= X.min() < 0 < X.max() < 0.5
    model.scored.clear()
    solver.check_accuracy(np.full((1, 3, 4, 5), 100), np.zeros(1, int))
    assert not model.scored[0][0].any()


def test_soft_labels_reach_the_loss():
    model = Recorder()
    data = image_data()
    Solver(model, data, augment=lambda x, batch: setattr(batch, "y", np.eye(3)[batch.y]) or x, verbose=False).train()
    assert all(y.shape == (100, 3) for _, y in model.trained)


def test_batches_come_in_order_with_a_smaller_last_one():
    model, data = Recorder(), image_data()
    solver = Solver(model, data, sampling="sequential", drop_last=False, batch_size=25, num_epochs=2, verbose=False)
    solver.train()
    assert [len(X) for X, _ in model.trained] == [25, 25, 7, 25, 25, 7]
    np.testing.assert_array_equal(np.concatenate([X for X, _ in model.trained[:3]]), data["X_train"])
    np.testing.assert_array_equal(np.concatenate([y for _, y in model.trained[3:]]), data["y_train"])
    assert len(solver.loss_history) == 6


@pytest.mark.parametrize("model", [CourseModel, lambda: make_net(use_batchnorm=False, dropout=0.0)])
def test_two_batches_of_ten_make_the_step_of_one_of_twenty(model):
    small = make_solver(model(), sampling="shuffle", batch_size=10, accumulate=2, schedule="linear")
    large = make_solver(model(), sampling="shuffle", batch_size=20, schedule="linear")
    small.train()
    large.train()
    # float32 sums in another order, over 12 steps of adam
    means = np.reshape(small.loss_history, (-1, 2)).mean(axis=1)
    np.testing.assert_allclose(means, large.loss_history, rtol=1e-4)
    for name, w in large.best_params.items():
        np.testing.assert_allclose(small.best_params[name], w, rtol=1e-3, atol=1e-5)


def test_an_epoch_ends_with_a_step_of_the_batches_that_are_left():
    weights = []
    solver = make_solver(CourseModel(), batch_size=10, accumulate=4, num_epochs=1)
    record = type("Record", (Callback,), {"on_iteration": lambda s, x: weights.append(x.model.params["W"].copy())})
    solver.callbacks.append(record())
    solver.train()
    assert [bool((a != b).any()) for a, b in itertools.pairwise(weights)] == [0, 0, 1, 0, 1]
    assert not weights[0].any()


def test_the_mean_of_a_shorter_step_is_over_its_own_batches():
    small = make_solver(CourseModel(), batch_size=20, accumulate=2, update_rule="sgd", num_epochs=1, sampling="shuffle")
    gradients = []
    loss = small.model.loss

    def recorded(X, y=None):
        out = loss(X, y)
        if y is not None:
            gradients.append(out[1]["W"])
        return out

    small.model.loss = recorded
    small._step()
    small._step()
    before = small.model.params["W"].copy()
    np.testing.assert_allclose(before, -1e-2 * (gradients[0] + gradients[1]) / 2, rtol=1e-6)  # a few roundings
    small._step()
    np.testing.assert_allclose(small.model.params["W"] - before, -1e-2 * gradients[2], rtol=1e-4)  # of a difference


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

    straight = image_solver(kind.backend, average=average, callbacks=[Save()])
    straight.train()
    rest = image_solver(kind.backend, rng=9, seed=9, average=average)
    rest.resume(tmp_path / "c")
    rest.train()
    assert rest.loss_history == straight.loss_history
    assert rest.val_acc_history == straight.val_acc_history
    np.testing.assert_array_equal(kind.to_numpy(rest.model.params.flat), kind.to_numpy(straight.model.params.flat))


@pytest.mark.parametrize("average", ["ema", "lookahead"])
def test_accuracy_is_the_averages_and_so_are_the_best_weights(average):
    solver = image_solver(average=average, num_epochs=2)
    solver.average.decay = 1.0  # so that the average stays where it was
    first = solver.model.params.flat.copy()
    own = []

    class Own(Callback):
        def on_epoch(self, solver, metrics):
            own.append(solver.model.params.flat.copy())

    solver.callbacks.append(Own())
    expected = solver.check_accuracy(solver.X_val, solver.y_val, tta="mirror-translate")
    solver.train()
    assert solver.val_acc_history == [expected] * 3
    np.testing.assert_array_equal(solver.model.params.flat, first)
    assert average == "lookahead" or (own[-1] != first).any()


def test_after_the_end_the_average_goes_on_from_the_best_weights():
    solver = image_solver(average="ema", num_epochs=2)
    solver.train()
    np.testing.assert_array_equal(solver.average.average.flat, solver.model.params.flat)
    updates = solver.average.updates
    solver.train()
    assert solver.average.updates == 2 * updates


def test_a_nan_on_a_queueing_backend_leaves_the_average_whole(monkeypatch):
    monkeypatch.setattr(type(backend.get("numpy")), "asynchronous", property(lambda self: True))
    solver = image_solver(average="ema")

    class Poison(Callback):
        def on_iteration(self, solver):
            if solver.iteration == 12:
                solver.model.params["affine2.W"][0, 0] = math.nan

    solver.callbacks.append(Poison())
    with pytest.warns(RuntimeWarning, match="the loss is nan at iteration 13, first in layer affine2"):
        solver.train()
    assert np.isfinite(solver.model.params.flat).all()
    assert np.isfinite(solver.average.average.flat).all()
    solver.callbacks.clear()
    solver.train()
    assert not solver.diverged
    assert np.isfinite(solver.loss_history[16:]).all()


def test_the_validation_accuracy_is_that_of_the_views(monkeypatch):
    solver = image_solver()
    for level in ("none", "mirror", "mirror-translate"):
        normalized = Normalize(80, 50).evaluate(solver.X_val)
        hits = tta_scores(solver.model.loss, normalized, level).argmax(axis=1) == solver.y_val
        assert solver.check_accuracy(solver.X_val, solver.y_val, tta=level) == hits.mean()
    levels, solver._losses = [], [1.0]
    monkeypatch.setattr(solver, "check_accuracy", lambda *args, tta="none": levels.append(tta) or 0.5)
    solver._check(0, None)
    assert levels == ["none", "mirror-translate"]


def test_an_augmented_step_on_a_queueing_backend_reads_nothing_from_the_device(monkeypatch):
    strict = backend.get("array-api-strict:device1")
    if not strict.is_available():
        pytest.skip(strict.reason)
    monkeypatch.setattr(type(strict), "asynchronous", property(lambda self: True))
    solver = image_solver(strict, average="ema", clip_norm=1.0)
    solver._step()
    array = type(solver.X_train)
    for name in ("__float__", "__int__", "__bool__", "__index__", "to_device"):
        monkeypatch.setattr(array, name, lambda *args: pytest.fail("a value was read from the device"))
    for _ in range(20):  # over the end of two epochs
        solver._step()
    assert solver.iteration == 21


def test_groups_have_rates_and_schedules_of_their_own():
    groups = [ParamGroup("*2.W", "sgd", learning_rate=0.5, schedule="linear"), ParamGroup("*.b", "frozen")]
    solver = image_solver(param_groups=groups, accumulate=1, num_epochs=2, lr_decay=0.5)
    rates = []

    class Rates(Callback):
        def on_iteration(self, solver):
            rates.append([config["learning_rate"] for config in solver.optimizer.groups.values()])

    solver.callbacks.append(Rates())
    biases = solver.model.params["affine1.b"].copy()
    solver.train()
    np.testing.assert_allclose(np.array(rates)[:, 0], [1e-2] * 7 + [5e-3] * 8 + [2.5e-3], rtol=1e-15)
    decay = np.array([1.0] * 7 + [0.5] * 8 + [0.25])
    np.testing.assert_allclose(np.array(rates)[:, 1], 0.5 * decay * (1 - np.arange(1, 17) / 16), rtol=1e-15)
    np.testing.assert_array_equal(solver.model.params["affine1.b"], biases)


def test_setting_the_rate_scales_those_of_all_groups():
    solver = image_solver(param_groups=[ParamGroup("*.b", learning_rate=4e-2)])
    solver.learning_rate = 5e-3
    assert solver.learning_rate == 5e-3
    assert [config["learning_rate"] for config in solver.optimizer.groups.values()] == [5e-3, 2e-2]


@pytest.mark.parametrize("config", [{"learning_rate": 0.0}, {}])
def test_a_rate_that_is_not_there_cannot_be_set(config):
    solver = make_solver(update_rule=lambda w, dw, config: (w, config), optim_config=config)
    with pytest.raises(SettingError, match="Solver: expected a learning_rate other than (None|0.0) to begin with"):
        solver.learning_rate = 0.1


def test_clipped_gradients_make_smaller_steps():
    solver = make_solver(CourseModel(), update_rule="sgd", optim_config={"learning_rate": 1.0}, clip_norm=1e-3)
    solver._step()
    norm = math.sqrt(sum((w.astype(float) ** 2).sum() for w in solver.model.params.values()))
    assert norm == pytest.approx(1e-3, rel=1e-5)  # float32


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
    from xpnn.training import checkpoint

    image_solver(average="ema").save(tmp_path / "c")
    arrays, meta = checkpoint.load(tmp_path / "c")
    del arrays[lost]
    checkpoint.save(tmp_path / "c", arrays, meta)
    solver = image_solver(rng=8, average="ema")
    before = solver.model.params.flat.copy()
    with pytest.raises(CheckpointError, match="c: expected the (average's|accumulated gradient of) "):
        solver.resume(tmp_path / "c")
    np.testing.assert_array_equal(solver.model.params.flat, before)


def test_augmented_training_moves_with_its_model(kind):
    class Move(Callback):
        def on_iteration(self, solver):
            if solver.iteration == 10:
                solver.model.to(kind.backend)

    solver, stays = image_solver(average="ema", callbacks=[Move()]), image_solver(average="ema")
    solver.train()
    stays.train()
    # float32 sums in another order, over 9 steps of adam
    np.testing.assert_allclose(solver.loss_history, stays.loss_history, rtol=1e-4)


def test_a_composition_will_do_for_a_sequence():
    one, other = image_solver(augment=Compose(AUGMENT)), image_solver(augment=AUGMENT)
    one.train()
    other.train()
    assert one.loss_history == other.loss_history
