"""The training loop: the course's contract, and what goes beyond it."""

import itertools
import json
import math
import signal
import tempfile

import numpy as np
import pytest

from training.solvers import CourseModel, Spy, clouds, make_data, make_net, make_solver
from xpnn import Model, Solver, backend
from xpnn.data import load_digits
from xpnn.data.augmentation import RandomFlip
from xpnn.errors import SettingError
from xpnn.layers import Affine, Dropout, Layer, ReLU, Sequential
from xpnn.models import FullyConnectedNet
from xpnn.optim import EMA, ParamGroup
from xpnn.training import Callback, EarlyStopping, MetricsLog
from xpnn.training import solver as solver_module


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


@pytest.mark.parametrize(("batch_size", "expected"), [(10, 100), (150, 150)])
def test_check_accuracy_looks_at_a_hundred_examples_at_a_time_or_at_as_many_as_training(batch_size, expected):
    sizes, model = [], CourseModel()
    solver = make_solver(model, batch_size=batch_size)
    loss = model.loss
    model.loss = lambda X, y=None: sizes.append(len(X)) or loss(X, y)
    X, y = clouds(2 * expected + 1)
    solver.check_accuracy(X, y)
    solver.check_accuracy(X, y, batch_size=expected + 1)
    assert sizes == [expected, expected, 1, expected + 1, expected]


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


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_rule_that_compares_gradients_with_those_before_goes_where_it_would_with_copies(accumulate):
    def rprop(keep):
        def rule(w, dw, config):
            last, rate = config.get("last", np.zeros_like(dw)), config.get("rate", np.full_like(dw, 1e-3))
            config["rate"] = rate * np.where(dw * last < 0, 0.5, 1.2)
            config["last"] = keep(dw)
            return w - config["rate"] * np.sign(dw), config

        return rule

    settings = {"optim_config": {}, "accumulate": accumulate}
    kept, copied = (make_solver(update_rule=rprop(keep), **settings) for keep in (lambda dw: dw, np.copy))
    kept.train()
    copied.train()
    assert kept.loss_history == copied.loss_history


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
    keys = "epoch iteration loss train_acc val_acc learning_rate seconds peak_mb"
    assert list(metrics) == keys.split()


@pytest.mark.filterwarnings("ignore:(invalid|overflow)")
def test_a_loss_that_is_no_number_ends_training_where_memory_is_too_short_to_say_where(monkeypatch):
    def short(self, row):
        raise MemoryError

    solver = make_solver(num_epochs=1, update_rule="sgd", optim_config={"learning_rate": 1e30})
    monkeypatch.setattr(Solver, "_first_nonfinite", short)
    with pytest.warns(RuntimeWarning, match="the loss is"):
        solver.train()
    assert solver.diverged
    assert len(solver.loss_history) == solver.iteration


def test_the_mean_of_losses_is_that_of_as_many_as_there_are():
    solver = make_solver(num_epochs=1)
    solver.train()
    losses = solver.loss_history
    for count in (1, 3, 100):
        assert float(solver.fetch_loss(count).to_numpy()) == pytest.approx(np.mean(losses[-count:]))
    with pytest.raises(SettingError, match="expected count to be a whole number of at least 1; received 2.5"):
        solver.fetch_loss(2.5)


def test_early_stopping_waits_as_long_as_it_was_told():
    solver = make_solver(update_rule="sgd", optim_config={"learning_rate": 1e-30}, num_epochs=50)
    solver.model.params = {name: np.zeros(w.shape) for name, w in solver.model.params.items()}
    solver.callbacks.append(EarlyStopping(3))
    solver.train()
    assert solver.epoch == 3
    assert solver.stop_reason == "validation accuracy has not risen for 3 epochs"


@pytest.mark.parametrize("patience", [0, 1.5, "a"])
def test_a_patience_is_a_whole_number_of_epochs(patience):
    with pytest.raises(SettingError, match="EarlyStopping: expected patience, a whole number of at least 1"):
        EarlyStopping(patience)


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


@pytest.mark.filterwarnings("ignore:invalid value")  # NumPy's
@pytest.mark.parametrize("make", [make_net, CourseModel])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_nan_among_the_data_is_not_laid_at_a_layers_door(make, value):
    data = make_data()
    data["X_train"][:, 2] = value
    solver = Solver(make(), data, num_epochs=1, verbose=False)
    with pytest.warns(RuntimeWarning, match="the loss is nan at iteration 1: the data hold NaN or infinity; training"):
        solver.train()


def test_an_interrupt_that_is_ignored_stays_ignored():
    solver = make_solver(num_epochs=1)

    class Interrupt(Callback):
        def on_iteration(self, solver):
            signal.raise_signal(signal.SIGINT)

    solver.callbacks.append(Interrupt())
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        solver.train()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, previous)
    assert (solver.epoch, solver.stop_reason) == (1, "")


def test_a_folder_that_takes_no_files_is_refused_before_training(tmp_path, monkeypatch):
    def refuse(**kwargs):
        raise PermissionError(13, "Permission denied", "temporary")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(SettingError, match=r"checkpoint_name in a folder .*/run' \(Permission denied\)$"):
        make_solver(checkpoint_name=str(tmp_path / "run"))


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


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"learning_rate": 1}, "unknown settings 'learning_rate'"),
        ({"update_rule": "sdg"}, "expected one of sgd, .*received 'sdg'"),
        ({"optim_config": {"lr": 1}}, "expected settings among learning_rate.*received 'lr'"),
        ({"batch_size": 0}, "batch_size to be a whole number of at least 1; received 0"),
        ({"num_epochs": 1.5}, "num_epochs to be a whole number of at least 1; received 1.5"),
        ({"sampling": "all"}, "sampling to be one of replacement, shuffle, sequential; received 'all'"),
        ({"reduction": "none"}, "reduction to be one of mean, sum; received 'none'"),
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


def test_a_data_set_will_do_for_its_arrays():
    digits = load_digits().take(50)
    solver = Solver(FullyConnectedNet([4], 64, 10, rng=0), digits, num_epochs=1, seed=0, verbose=False)
    solver.train()
    assert solver.X_train.shape == (50, 1, 8, 8)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"optim_config": {"learning_rate": "fast"}},
            "adam: expected learning_rate to be a number of at least 0; .*'fast'",
        ),
        ({"optim_config": [1]}, r"Solver: expected optim_config to be a dict of settings; received \[1\]"),
        ({"optim_config": {1: 2}}, "Solver: expected optim_config to be a dict of settings; received {1: 2}"),
        ({"param_groups": ["*.b"]}, r"expected groups to be a sequence of ParamGroup; received \['\*.b'\]"),
        ({"callbacks": [3]}, r"Solver: expected callbacks to be a sequence of Callback; received \[3\]"),
        ({"callbacks": Callback()}, "Solver: expected callbacks to be a sequence of Callback; received <"),
        ({"augment": RandomFlip}, r"Solver: expected augment to be made, as in RandomFlip\(\); received the class"),
        ({"augment": [RandomFlip]}, r"Solver: expected augment to be made, as in RandomFlip\(\); received the class"),
        ({"lr_decay": "a"}, "Solver: expected lr_decay to be a number above 0; received 'a'"),
        ({"lr_decay": 0}, "Solver: expected lr_decay to be a number above 0; received 0"),
        ({"lr_decay": math.nan}, "Solver: expected lr_decay to be a number above 0; received nan"),
        ({"checkpoint_name": "nowhere/run"}, "checkpoint_name in a folder .* be written to; .*'nowhere/run' .No such"),
        ({"model": object()}, "expected a model with a dict of params; received object"),
        ({"batch_size": None}, "expected batch_size to be a whole number of at least 1; received None"),
    ],
)
def test_what_a_solver_cannot_work_with_is_named(kwargs, message):
    with pytest.raises(SettingError, match=message):
        make_solver(**kwargs)


def test_a_text_is_no_flag():
    with pytest.raises(TypeError, match="Solver: expected drop_last, True or False; received 'no'"):
        make_solver(drop_last="no")
    assert make_solver(drop_last=np.bool_(True)).drop_last is True


def test_labels_of_another_number_are_refused():
    solver = make_solver()
    with pytest.raises(SettingError, match=r"check_accuracy: .*received \(30, 6\) and \(1,\)"):
        solver.check_accuracy(solver.X_val, solver.y_val[:1])


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


def test_a_callback_may_set_the_learning_rate():
    class Halve(Callback):
        def on_epoch(self, solver, metrics):
            solver.learning_rate /= 2

    spy = Spy()
    solver = make_solver(num_epochs=2, callbacks=[spy, Halve()])
    solver.train()
    assert [e["learning_rate"] for e in spy.events if isinstance(e, dict)] == [1e-2, 5e-3, 2.5e-3]


def test_the_seconds_of_a_check_include_its_last_step(monkeypatch):
    monkeypatch.setattr(solver_module.time, "perf_counter", itertools.count().__next__)  # a second a look
    spy = Spy()
    make_solver(num_epochs=1, batch_size=1000, callbacks=[spy]).train()
    seconds = [event["seconds"] for event in spy.events if isinstance(event, dict)]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0


def test_metrics_have_no_nan(tmp_path):
    MetricsLog(tmp_path / "m").on_epoch(None, {"epoch": 1, "loss": math.nan, "learning_rate": None})
    assert json.loads((tmp_path / "m").read_text()) == {"epoch": 1, "loss": None, "learning_rate": None}


class Noise(Layer):
    """With a generator of NumPy's, which Solver and Model know nothing of."""

    def __init__(self):
        super().__init__("")
        self.rng = np.random.default_rng(0)

    def forward(self, x, train=False):
        return x + self.rng.standard_normal(x.shape).astype(x.dtype) * train, None

    def backward(self, dout, cache, input_grad=True):
        return dout, {}


def test_a_layer_of_the_users_own_may_have_another_kind_of_generator():
    solver = make_solver(Model(Sequential(Affine(8), Noise(), ReLU(), Affine(3)), (6,), rng=0), num_epochs=1)
    solver.train()
    assert solver.iteration == 6


def test_the_warning_of_a_loss_that_is_no_number_says_so_whatever_has_ended_the_training():
    class Stop(Callback):
        def on_iteration(self, solver):
            if solver.iteration == 3:
                solver.stop("enough")
                solver._unread.append(np.asarray(np.nan))  # as a device has it still

    solver = make_solver(callbacks=[Stop()])
    with pytest.warns(RuntimeWarning, match=r"^Solver: the loss is nan at iteration 4.*; training stopped$"):
        solver.train()
    assert (solver.stop_reason, solver.diverged) == ("enough", True)
