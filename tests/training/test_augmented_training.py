"""Training on augmented images, with averages of the weights, accumulated and clipped gradients, parameter groups."""

import itertools
import math

import numpy as np
import pytest

from oracles import normals
from training.solvers import AUGMENT, CourseModel, image_data, image_solver, make_data, make_net, make_solver
from xpnn import Model, Solver, backend
from xpnn.data.augmentation import Compose, Normalize, RandomCrop
from xpnn.data.tta import tta_scores
from xpnn.errors import SettingError
from xpnn.layers import Affine, BatchNorm, Sequential
from xpnn.optim import EMA, ParamGroup
from xpnn.training import Callback


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


def first_step(model, **kwargs):
    """The weights after one step of plain gradient descent on 50 of the examples in order."""
    data = make_data()
    data |= {"X_train": data["X_train"][:50], "y_train": data["y_train"][:50]}
    settings = {"sampling": "sequential", "drop_last": False, "num_epochs": 1, "seed": 0, "verbose": False}
    solver = Solver(model, data, optim_config={"learning_rate": 0.1}, **(settings | kwargs))
    for _ in range(solver.iterations_per_epoch):
        solver._step()
    return solver.model.params


class Summed(CourseModel):
    """Its loss is a sum over the examples."""

    def loss(self, X, y=None):
        if y is None:
            return super().loss(X)
        loss, grads = super().loss(X, y)
        return len(y) * loss, {name: len(y) * grad for name, grad in grads.items()}


@pytest.mark.parametrize("accumulate", [3, 8])
@pytest.mark.parametrize(
    ("model", "reduction"),
    [(CourseModel, "mean"), (Summed, "sum"), (lambda: make_net(use_batchnorm=False, dropout=0.0), "mean")],
)
def test_batches_of_unlike_sizes_and_of_any_number_make_the_step_of_one_large_batch(model, reduction, accumulate):
    small = first_step(model(), reduction=reduction, batch_size=20, accumulate=accumulate)
    large = first_step(model(), batch_size=50)
    for name, w in large.items():
        # float32 sums in another order, of 50 numbers of size 1
        np.testing.assert_allclose(small[name], w, rtol=1e-5, atol=5e-6)


def test_a_shorter_step_at_the_end_of_an_epoch_goes_as_far_for_each_image_where_the_loss_is_a_sum():
    solver = make_solver(
        Summed(), batch_size=20, accumulate=2, reduction="sum", update_rule="sgd", num_epochs=1, sampling="sequential"
    )
    for images, batches in ((slice(40), 2), (slice(40, 60), 1)):
        before = {name: w.copy() for name, w in solver.model.params.items()}
        _, grads = solver.model.loss(solver.X_train[images], solver.y_train[images])
        for _ in range(batches):
            solver._step()
        for name, w in solver.model.params.items():
            # a difference of numbers of size 1, in float32
            np.testing.assert_allclose(w - before[name], -1e-2 * grads[name], rtol=1e-5, atol=2e-7)


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
