"""Where memory is short, less is done at a time, or the error says what would fit."""

import pickle
import weakref

import numpy as np
import pytest

from training.solvers import CourseModel, image_data, make_net, make_solver
from xpnn import Model, Solver
from xpnn import backend as backends
from xpnn.data.augmentation import RandomCrop
from xpnn.errors import OutOfMemory
from xpnn.layers import Affine, BatchNorm, Dropout, Layer, Sequential
from xpnn.optim import EMA, Lookahead, averaging
from xpnn.out_of_memory import in_parts, memory_for, shortage_in
from xpnn.training import Callback
from xpnn.training import solver as solver_module
from xpnn.training.run import predictions


class Room(Layer):
    """Has room for so many examples in training, and for so many when they are only scored."""

    def __init__(self, most, scored=10**9):
        super().__init__("")
        self.most, self.scored = most, scored
        self.sizes = []  # of what was scored

    def output_shape(self, input_shape):
        return input_shape

    def forward(self, x, train=False):
        if not train:
            self.sizes.append(x.shape[0])
        if x.shape[0] > (self.most if train else self.scored):
            raise MemoryError("Unable to allocate 3.64 TiB")
        return x, None

    def backward(self, dout, cache, input_grad=True):
        return dout, {}


def model_with(room):
    return Model(Sequential(Affine(8), BatchNorm(), Dropout(0.5), room, Affine(3)), (6,), rng=0)


def scored(model):
    """How many examples went through it at a time, in test mode."""
    return model.net.layers["room1"].sizes


def solver_with_room(most, **settings):
    return make_solver(model_with(Room(most)), **({"batch_size": 40} | settings))


@pytest.mark.parametrize(("most", "fits"), [(39, 20), (20, 20), (19, 10), (1, 1)])
def test_the_error_names_a_batch_that_fits(most, fits):
    expected = f"Solver: expected batch_size {fits}, whose gradients fit into memory; received 40 "
    with pytest.raises(OutOfMemory) as error:
        solver_with_room(most).train()
    assert str(error.value) == expected + "(Unable to allocate 3.64 TiB)"
    solver_with_room(most, batch_size=fits, num_epochs=1).train()


def test_where_no_batch_fits_the_model_is_too_large():
    with pytest.raises(OutOfMemory, match="expected a smaller model; received 40 "):
        solver_with_room(0).train()


def test_a_model_of_the_users_own_is_not_tried(monkeypatch):
    model = CourseModel()
    monkeypatch.setattr(model, "loss", lambda X, y=None: Room(0).forward(X, train=True))
    with pytest.raises(OutOfMemory, match="expected a batch_size for which memory suffices; received 10 "):
        make_solver(model).train()


def test_trying_changes_nothing():
    solver = solver_with_room(19)
    state, rng_state = solver.model.state, None

    def step():
        nonlocal rng_state
        rng_state = solver.model.rng_state
        raise MemoryError

    params = {name: np.array(w) for name, w in solver.model.params.items()}
    solver._step = step
    with pytest.raises(OutOfMemory, match="batch_size 10"):
        solver.train()
    assert solver.model.rng_state == rng_state
    for name, value in solver.model.state.items():
        assert value is state[name]
    for name, w in solver.model.params.items():
        np.testing.assert_array_equal(w, params[name])


def test_what_the_failed_work_held_is_free_again():
    held = []

    def work():
        array = np.zeros(3)
        held.append(weakref.ref(array))
        raise MemoryError("none is left\nof it")

    assert shortage_in(work) == "none is left of it"
    assert held[0]() is None


def test_other_errors_go_through():
    with pytest.raises(ZeroDivisionError):
        shortage_in(lambda: 1 / 0)


def test_work_that_fits_is_done():
    done = []
    assert shortage_in(lambda: done.append(1)) == ""
    assert done == [1]


# Steps


def test_a_batch_whose_update_fails_is_counted_with_its_epoch(tmp_path):
    solver = make_solver(num_epochs=3)
    step = solver.optimizer.step

    def short(*args, **kwargs):
        if solver.iteration == 6:
            raise MemoryError("Unable to allocate 3.64 TiB")
        step(*args, **kwargs)

    solver.optimizer.step = short
    with pytest.raises(OutOfMemory):
        solver.train()
    assert (solver.iteration, solver.epoch) == (6, 1)
    solver.optimizer.step = step
    solver.train()
    assert (solver.iteration, solver.epoch, len(solver.val_acc_history)) == (18, 3, 4)
    solver.save(tmp_path / "a.safetensors")
    make_solver(num_epochs=5).resume(tmp_path / "a.safetensors")


def short_once(function, when=lambda: True):
    """The function, which does its work and once, when that is so, has no memory for the result."""
    failed = []

    def wrapped(*args, **kwargs):
        result = function(*args, **kwargs)
        if not failed and when():
            failed.append(1)
            raise MemoryError("Unable to allocate 3.64 TiB")
        return result

    return wrapped


@pytest.mark.parametrize("where", ["order", "backward"])
def test_a_batch_that_failed_is_tried_again_with_the_same_numbers(monkeypatch, where):
    """Its epoch's order, augmentation, dropout and the statistics of batch norm."""
    settings = {"data": image_data(), "augment": RandomCrop(1), "sampling": "shuffle", "batch_size": 8}

    def make():
        net = Sequential(Affine(8), BatchNorm(), Dropout(0.5), Affine(3))
        return Solver(Model(net, (60,), rng=3), num_epochs=3, seed=5, verbose=False, **settings)

    plain, solver = make(), make()
    plain.train()
    at = 2 * solver.iterations_per_epoch
    if where == "order":
        short = short_once(solver_module.epoch_order, lambda: solver.iteration == at)
        monkeypatch.setattr(solver_module, "epoch_order", short)
    else:
        solver.model.net.backward = short_once(solver.model.net.backward, lambda: solver.iteration == at)
    with pytest.raises(OutOfMemory):
        solver.train()
    assert solver.iteration == at
    solver.train()
    assert solver.loss_history == plain.loss_history
    assert solver.val_acc_history == plain.val_acc_history


def test_an_order_for_which_memory_is_short_after_resuming_is_that_of_the_epoch(monkeypatch, tmp_path):
    plain, first, solver = (make_solver(sampling="shuffle") for _ in range(3))
    plain.train()
    first.callbacks = [StopAt(8)]
    first.train()
    first.save(tmp_path / "a.safetensors")
    solver.resume(tmp_path / "a.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(solver_module, "epoch_order", short_once(solver_module.epoch_order))
        with pytest.raises(OutOfMemory):
            solver.train()
    solver.train()
    assert solver.loss_history == plain.loss_history


class StopAt(Callback):
    def __init__(self, iteration):
        self.at = iteration

    def on_iteration(self, solver):
        if solver.iteration == self.at:
            solver.stop("enough")


def test_an_average_for_which_memory_was_short_misses_no_update(monkeypatch):
    models = make_net(), make_net()
    solver, plain = (make_solver(model, average=EMA(model.params, 0.5)) for model in models)
    plain.train()
    monkeypatch.setattr(averaging, "_arrays", short_once(averaging._arrays, lambda: solver.iteration == 3))
    with pytest.raises(OutOfMemory, match=r"^Solver: expected memory for the average of the weights; received too"):
        solver.train()
    assert (solver.iteration, solver.average.updates) == (3, 2)
    solver.train()
    assert (solver.iteration, solver.average.updates) == (24, 24)
    np.testing.assert_array_equal(solver.average.average.flat, plain.average.average.flat)


def test_what_was_left_of_a_batch_that_failed_is_no_matter_after_resuming(monkeypatch, tmp_path):
    """The average's update, and what the batch had drawn."""

    def make():
        model = make_net()
        return make_solver(model, average=EMA(model.params, 0.5), sampling="shuffle")

    first, plain, solver, other = (make() for _ in range(4))
    first.callbacks = [StopAt(6)]
    first.train()
    first.save(tmp_path / "a.safetensors")
    plain.resume(tmp_path / "a.safetensors")
    plain.train()
    with monkeypatch.context() as patch:
        patch.setattr(averaging, "_arrays", short_once(averaging._arrays, lambda: solver.iteration == 3))
        with pytest.raises(OutOfMemory):
            solver.train()
    other.model.net.backward = short_once(other.model.net.backward, lambda: other.iteration == 2)
    with pytest.raises(OutOfMemory):
        other.train()
    for each in (solver, other):
        each.resume(tmp_path / "a.safetensors")
        with monkeypatch.context() as patch:
            patch.setattr(solver_module, "epoch_order", short_once(solver_module.epoch_order))
            with pytest.raises(OutOfMemory):
                each.train()
        each.train()
        assert each.loss_history == plain.loss_history
        assert each.average.updates == plain.average.updates
        np.testing.assert_array_equal(each.average.average.flat, plain.average.average.flat)


def test_weights_that_look_ahead_for_which_memory_was_short_go_back_as_they_would_have(monkeypatch):
    backend = backends.get("numpy")
    weights = [{name: np.zeros(3) for name in "ab"} for _ in range(2)]
    averages = [Lookahead(params, every=1, decay=0.5) for params in weights]
    for params in weights:
        params.update({name: np.ones(3) for name in "ab"})
    averages[0].update()
    with monkeypatch.context() as patch:
        calls = iter(range(9))
        patch.setattr(backend, "asarray", short_once(backend.asarray, lambda: next(calls) == 1))
        with pytest.raises(MemoryError):
            averages[1].update()
    averages[1].update()
    assert [average.updates for average in averages] == [1, 1]
    for name in "ab":
        np.testing.assert_array_equal(weights[0][name], weights[1][name])


# Accuracy checks


def test_a_last_smaller_part_that_fails_says_nothing_of_the_others():
    failed = []

    def work(start, stop):
        if start == 8 and not failed:
            failed.append(1)
            raise MemoryError
        return stop

    assert in_parts(work, 10, 8, backends.get("numpy")) == ([8, 9, 10], 8)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_check_that_is_broken_off_has_drawn_nothing(monkeypatch, error):
    solver, plain = (make_solver(num_train_samples=10, num_val_samples=10, num_epochs=2) for _ in range(2))
    plain.train()
    real, calls = solver.check_accuracy, []

    def check(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:  # in the second check, once the first sample is drawn
            raise error
        return real(*args, **kwargs)

    solver.check_accuracy = check
    with pytest.raises(OutOfMemory if error is MemoryError else error):
        solver.train()
    solver.train()
    assert solver.train_acc_history == plain.train_acc_history
    assert solver.val_acc_history == plain.val_acc_history


def test_where_memory_is_too_short_for_a_check_fewer_examples_are_scored_at_a_time():
    solver, roomy = (make_solver(model_with(room), num_epochs=2) for room in (Room(60, 20), Room(60)))
    for each in (solver, roomy):
        each.train()
    assert solver.val_acc_history == roomy.val_acc_history
    assert solver.train_acc_history == roomy.train_acc_history
    sizes = scored(solver.model)
    # 60 and 30 are too many; every later check is of 15 at once.
    assert sizes == [60, 30, *(3 * [15, 15, 15, 15, 15, 15])]


def test_a_copy_knows_how_many_examples_there_is_room_for():
    solver = make_solver(model_with(Room(60, 20)), num_epochs=1)
    solver.train()
    solver = pickle.loads(pickle.dumps(solver))
    sizes = scored(solver.model)
    sizes.clear()
    solver.check_accuracy(solver.X_val, solver.y_val)
    assert sizes == [15, 15]


def test_there_may_be_more_room_where_the_model_moves_to():
    pytest.importorskip("array_api_strict")
    solver = make_solver(model_with(Room(60, 20)))
    solver.check_accuracy(solver.X_val, solver.y_val)
    sizes = scored(solver.model)
    sizes.clear()
    solver.model.to("array-api-strict")
    solver.model.net.layers["room1"].scored = 10**9
    solver.check_accuracy(solver.X_val, solver.y_val)
    assert sizes == [30]


def test_a_check_with_a_batch_size_of_its_own_is_no_matter_of_the_others():
    solver = make_solver(model_with(Room(60, 20)))
    sizes = scored(solver.model)
    solver.check_accuracy(solver.X_val, solver.y_val, batch_size=10)
    solver.check_accuracy(solver.X_val, solver.y_val)
    assert sizes == [10, 10, 10, 30, 15, 15]


def test_predictions_take_fewer_examples_where_memory_is_short():
    X = np.random.default_rng(0).standard_normal((50, 6)).astype("float32")
    model, roomy = model_with(Room(0, 20)), model_with(Room(0))
    np.testing.assert_array_equal(model.predict(X), roomy.predict(X))
    np.testing.assert_array_equal(predictions(model, X), roomy.predict(X))
    assert scored(model) == 2 * [50, 25, 12, 12, 12, 12, 2]


def test_where_memory_is_too_short_for_one_example_the_error_says_so():
    expected = "expected memory for the scores of one example; received too little (Unable to allocate 3.64 TiB)"
    with pytest.raises(OutOfMemory) as error:
        model_with(Room(0, 0)).predict(np.zeros((9, 6), "float32"))
    assert str(error.value) == f"model: {expected}"


def test_memory_is_given_back_before_less_is_tried():
    events = []

    class Backend:
        def free_memory(self):
            events.append("freed")

    def work(start, stop):
        events.append((start, stop))
        if stop - start > 3:
            raise MemoryError
        return stop

    assert in_parts(work, 10, 8, Backend()) == ([2, 4, 6, 8, 10], 2)
    assert events == [(0, 8), "freed", (0, 4), "freed", (0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]


@pytest.mark.parametrize("averaged", [False, True])
def test_a_check_that_no_memory_is_left_for_ends_the_training_with_one_line(averaged):
    model = model_with(Room(60, 0))
    solver = make_solver(model, average=EMA(model.params, 0.5) if averaged else None)
    with pytest.raises(OutOfMemory) as error:
        solver.train()
    assert str(error.value) == (
        "Solver: expected memory to measure accuracies and keep the best weights; received too little "
        "(model: expected memory for the scores of one example; received too little (Unable to allocate 3.64 TiB))"
    )
    assert solver.val_acc_history == []


def test_weights_that_cannot_be_copied_are_one_line(monkeypatch):
    def copied(arrays):
        raise MemoryError("Unable to allocate 3.64 TiB")

    monkeypatch.setattr(solver_module, "copied", copied)
    solver = make_solver()
    with pytest.raises(
        OutOfMemory, match=r"^Solver: expected memory to measure accuracies and keep the best weights; received too"
    ):
        solver.train()
    assert (solver.val_acc_history, solver.best_params) == ([], {})


@pytest.mark.parametrize("average", [EMA, Lookahead])
def test_weights_come_back_in_the_averages_place_where_there_is_room_for_nothing(monkeypatch, average):
    model = make_net()
    solver = make_solver(model, average=average(model.params, decay=0.5), num_train_samples=10)
    backend, size, after = backends.get("numpy"), model.params.flat.nbytes, []

    def copied(arrays):
        def short(x, *args, copy=False, **kwargs):
            if copy and getattr(x, "nbytes", 0) >= size:
                raise MemoryError("Unable to allocate 3.64 TiB")
            return type(backend).asarray(backend, x, *args, copy=copy, **kwargs)

        monkeypatch.setattr(backend, "asarray", short)
        raise MemoryError("Unable to allocate 3.64 TiB")

    def step(real=solver._step):
        real()
        after.append(model.params.flat.copy())

    solver._step = step
    drawn = solver._evaluation.state
    monkeypatch.setattr(solver_module, "copied", copied)
    with pytest.raises(OutOfMemory):
        solver.train()
    np.testing.assert_array_equal(model.params.flat, after[0])
    assert not np.array_equal(model.params.flat, solver.average.average.flat) or average is Lookahead
    assert solver._evaluation.state == drawn


def test_the_last_weights_that_cannot_be_copied_are_one_line(monkeypatch):
    solver, copied = make_solver(), solver_module.copied

    def short(arrays):
        if solver.epoch == solver.num_epochs and solver.is_whole:
            raise MemoryError("Unable to allocate 3.64 TiB")
        return copied(arrays)

    monkeypatch.setattr(solver_module, "copied", short)
    with pytest.raises(
        OutOfMemory,
        match=r"^Solver: expected memory for a copy of the last weights, which the model keeps; received too",
    ):
        solver.train()


def test_what_memory_was_too_short_for_is_said_and_what_was_held_is_free_again():
    held = []

    def work():
        array = np.zeros(3)
        held.append(weakref.ref(array))
        raise MemoryError

    with pytest.raises(OutOfMemory) as error, memory_for("expected more"):
        work()
    assert str(error.value) == "expected more (out of memory)"
    assert held[0]() is None


# Data and models


@pytest.fixture
def a_backend_with_room(monkeypatch):
    """A function that leaves a backend room for arrays of so many bytes at most, or for those of any size."""

    def leave(name, most):
        backend = backends.get(name)
        if not backend.is_available():
            pytest.skip(backend.reason)

        def short(real):
            def call(x, *args, **kwargs):
                result = real(x, *args, **kwargs)
                itemsize = np.dtype(backends.dtype_name(result.dtype)).itemsize
                if np.prod(result.shape) * itemsize > most:
                    raise MemoryError("Unable to allocate 3.64 TiB")
                return result

            return call

        for method in ("asarray", "zeros"):
            monkeypatch.setattr(backend, method, short(getattr(type(backend), method).__get__(backend)))

    return leave


def test_data_that_do_not_fit_are_named_with_their_size(a_backend_with_room):
    model = make_net()
    a_backend_with_room("numpy", 60 * 6 * 4 - 1)
    with pytest.raises(OutOfMemory) as error:
        make_solver(model)
    assert str(error.value) == (
        "Solver: expected fewer examples, which fit into memory; "
        "received X_train (60, 6) of float32, 0.0 MB (Unable to allocate 3.64 TiB)"
    )


def test_a_model_that_moves_to_where_its_data_do_not_fit_is_trained_once_they_do(a_backend_with_room):
    solver, plain = make_solver(), make_solver()
    solver.train()
    plain.train()
    a_backend_with_room("array-api-strict", 60 * 6 * 4 - 1)
    solver.model.to("array-api-strict")
    with pytest.raises(OutOfMemory, match=r"^Solver: expected fewer examples, .*; received X_train \(60, 6\) of "):
        solver.train()
    assert (solver.iteration, solver.backend.name) == (24, "numpy")
    a_backend_with_room("array-api-strict", 10**9)
    for each in (solver, plain):
        each.train()
    np.testing.assert_allclose(solver.loss_history, plain.loss_history, rtol=1e-4)


@pytest.mark.parametrize("of", ["gradients", "sums", "rule", "average"])
def test_a_model_that_moves_to_where_its_gradients_do_not_fit_is_trained_once_they_do(monkeypatch, of):
    if not backends.get("array-api-strict").is_available():
        pytest.skip("array-api-strict is not installed")
    solver, plain = (
        make_solver(model, accumulate=2, average=EMA(model.params, 0.5)) for model in (make_net(), make_net())
    )
    for each in (solver, plain):
        each.train()
        each.model.to("array-api-strict")

    def short(*args):
        raise MemoryError("Unable to allocate 3.64 TiB")

    with monkeypatch.context() as patch:
        owner, name = {
            "gradients": (solver.model.params, "like"),
            "sums": (solver._accumulated.sum, "move"),
            "rule": (solver.optimizer, "follow"),
            "average": (solver.average, "follow"),
        }[of]
        patch.setattr(owner, name, short)
        with pytest.raises(OutOfMemory, match=r"^Solver: expected memory for gradients and what the update rule keeps"):
            solver.train()
    assert solver.iteration == 24
    for each in (solver, plain):
        each.train()
    assert solver.loss_history == plain.loss_history


def test_a_model_moves_as_a_whole_or_not_at_all(a_backend_with_room):
    if not backends.get("array-api-strict").is_available():
        pytest.skip("array-api-strict is not installed")
    model, x = model_with(Room(60)), np.ones((2, 6), "float32")
    scores, average = model.loss(x), EMA(model.params, 0.5, state=lambda: model.state)
    for most in (100, 20):  # room for statistics and not for weights, and for nothing
        a_backend_with_room("array-api-strict", most)
        with pytest.raises(OutOfMemory) as error:
            model.to("array-api-strict")
        assert str(error.value) == (
            "model: expected memory on array-api-strict for 99 parameters; received too little "
            "(Unable to allocate 3.64 TiB)"
        )
        np.testing.assert_array_equal(model.loss(x), scores)
    a_backend_with_room("array-api-strict", 10**9)
    model.to("array-api-strict")
    a_backend_with_room("array-api-strict", 20)
    for _ in range(2):
        with pytest.raises(MemoryError):
            average.update()
    a_backend_with_room("array-api-strict", 10**9)
    average.update()
    assert average.updates == 1


def test_images_whose_accuracy_is_asked_for_and_that_do_not_fit_are_named(a_backend_with_room):
    solver = make_solver()
    a_backend_with_room("numpy", 1000)
    with pytest.raises(OutOfMemory, match=r"^Solver: expected fewer examples, .*; received X \(60, 6\) of float32"):
        solver.check_accuracy(np.zeros((60, 6), "float32"), np.zeros(60, "int64"))


def test_a_model_that_does_not_fit_says_so(a_backend_with_room):
    a_backend_with_room("numpy", 100)
    with pytest.raises(OutOfMemory) as error:
        make_net()
    assert str(error.value) == (
        "model: expected memory for the parameters and to draw the first weights; received too little "
        "(Unable to allocate 3.64 TiB)"
    )


def test_a_model_whose_rule_keeps_too_much_says_so(monkeypatch):
    def optimizer(*args, **kwargs):
        raise MemoryError("Unable to allocate 3.64 TiB")

    monkeypatch.setattr(solver_module, "Optimizer", optimizer)
    with pytest.raises(OutOfMemory) as error:
        make_solver()
    assert str(error.value) == (
        "Solver: expected memory for gradients and what the update rule keeps; received too little "
        "(Unable to allocate 3.64 TiB)"
    )
