"""Recorded steps, by CUDA graphs without a device: that they do what steps launched one by one do."""

import contextlib
import copy
import functools
import gc
import importlib
import io
import itertools
import pickle
import sys
import weakref

import cublaslt_on_cpu as lt
import cudnn_on_cpu
import numpy as np
import pytest
import stand_in
from rich.console import Console
from stand_in import KernelError

import test_cuda
from test_kernels import normals
from training.solvers import image_data, make_data, make_solver
from xpnn import Model, Solver, kernels
from xpnn import backend as backends
from xpnn.backend import CuPy, get
from xpnn.data import Dataset
from xpnn.data.augmentation import (
    AlternatingFlip,
    ColorJitter,
    Compose,
    Cutout,
    Mixup,
    Normalize,
    RandomCrop,
    RandomFlip,
)
from xpnn.errors import OutOfMemory, SettingError
from xpnn.kernels import fast_path
from xpnn.layers import Affine, BatchNorm, Dropout, Layer, ReLU, Sequential
from xpnn.losses import softmax_loss
from xpnn.models import FullyConnectedNet, ThreeLayerConvNet
from xpnn.optim import EMA, Optimizer, ParamGroup, averaging
from xpnn.random import Generator
from xpnn.recording import record, varying
from xpnn.training import Callback, Checkpoints, EarlyStopping, MetricsLog, report
from xpnn.training import solver as solver_module
from xpnn.training.recordable import may_change
from xpnn.training.recorder import RecordedStep
from xpnn.training.report import ProgressBar
from xpnn.training.run import build_model, build_solver
from xpnn.training.settings import Settings


@pytest.fixture(autouse=True)
def unwatched(monkeypatch):
    """Whole trainings: what their kernels access is looked at elsewhere."""
    monkeypatch.setattr(stand_in, "watched", False)


@pytest.fixture
def cupy(request):
    """The stand-in for CuPy with cuBLASLt beside it: CuPy's own products cannot be recorded."""
    module = request.getfixturevalue("without_cublaslt")
    lt.install()
    return module


without_cublaslt = test_cuda.cupy


def recorder():
    return fast_path("recording.record", "cupy")


# ---- recorded work


def test_work_is_recorded_once_and_done_at_each_call(cupy):
    x, calls = cupy.asarray(normals(5)), []

    def work():
        calls.append(1)
        return cupy.exp(x) * 2

    recorded = recorder()(work)
    for shift in (0, 1):
        x[...] = cupy.asarray(normals(5) + shift)
        np.testing.assert_array_equal(recorded().get(), np.exp(normals(5) + shift) * 2)
    assert calls == [1]


@pytest.mark.parametrize("type_", ["int64", "uint64", "float32", "float64"])
def test_numbers_that_vary_are_those_of_their_call(cupy, type_):
    counted = iter(range(100))

    def work():
        first = varying(lambda: next(counted), dtype=type_) + cupy.zeros((), type_)
        pair = varying(lambda: (next(counted), next(counted)), 2, type_) + cupy.zeros(2, type_)
        return first, pair

    recorded = recorder()(work)
    for call in range(3):
        first, pair = recorded()
        assert [first.get(), *pair.get()] == [3 * call, 3 * call + 1, 3 * call + 2]
        assert first.dtype == pair.dtype == type_


@pytest.mark.parametrize(("n", "kernel"), [(1, "put<32>"), (32, "put<32>"), (33, "put<480>"), (480, "put<480>")])
def test_all_numbers_that_vary_come_with_one_launch(cupy, n, kernel):
    counted = iter(range(2 * n))
    recorded = recorder()(lambda: [varying(lambda: next(counted), dtype="int64") + 0 for _ in range(n)])
    assert [int(x) for x in recorded()] == list(range(n))
    stand_in.launches.clear()
    assert [int(x) for x in recorded()] == list(range(n, 2 * n))
    assert [launch.kernel for launch in stand_in.launches] == [kernel, "graph"]


def test_a_struct_of_another_size_is_refused(cupy):
    """The driver would read as many bytes as the kernel's has."""
    numbers, places = np.arange(32, dtype="uint64"), cupy.zeros(32, "uint64")
    graph = importlib.import_module("xpnn.kernels.cupy.graph")
    graph.GRAPH.launch("put<32>", (1,), (3,), (places, numbers.view([("numbers", "uint64", 32)])))
    assert places.get().tolist() == [0, 1, 2] + 29 * [0]
    with pytest.raises(KernelError, match="expected argument 1 as struct2048; received struct2304"):
        graph.GRAPH.launch("put<32>", (1,), (3,), (places, np.zeros(36, "uint64").view([("numbers", "uint64", 36)])))


def test_there_are_so_many_places(cupy):
    with pytest.raises(RuntimeError, match="480 places"):
        recorder()(lambda: [varying(lambda: 1) for _ in range(481)])
    assert varying(lambda: 1) == 1  # nothing is being recorded any more


def test_random_numbers_go_on_from_call_to_call(cupy):
    recorded_rng, rng = Generator(3), Generator(3)
    recorded = recorder()(
        lambda: (recorded_rng.integers(0, 99, 5, "cupy"), recorded_rng.dropout_mask(7, 0.5, "float32", "cupy"))
    )
    assert recorded_rng.counter == 0
    for _ in range(3):
        integers, mask = recorded()
        np.testing.assert_array_equal(integers.get(), rng.integers(0, 99, 5, "numpy"))
        np.testing.assert_array_equal(mask.get(), rng.dropout_mask(7, 0.5, "float32", "numpy"))
    assert recorded_rng.counter == rng.counter


def test_work_without_a_device_to_record_it_is_done_at_each_call():
    counted = iter(range(9))
    assert [record(lambda: varying(lambda: next(counted)))() for _ in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("work", "refused"),
    [
        (lambda cupy, x: float(x[0]), "a copy to the host"),
        (lambda cupy, x: cupy.asarray([1.0]), "a copy from the host"),
        (lambda cupy, x: x[x > 0], "an index whose length nobody knows"),
        (lambda cupy, x: x @ x, "cuBLAS"),
    ],
)
def test_the_stand_in_refuses_what_a_device_does(cupy, work, refused):
    x = cupy.asarray(normals(3))
    with pytest.raises(KernelError, match=refused):
        recorder()(lambda: work(cupy, x))
    assert float(x[0]) == normals(3)[0]  # and is not capturing any more


def test_the_stand_in_misses_an_array_that_is_gone(cupy):
    x = cupy.asarray(normals(3))
    recorded = recorder()(lambda x=[x]: x.pop() + 1)
    recorded()
    del x
    with pytest.raises(KernelError, match="somebody else's"):
        recorded()


def test_the_stand_in_computes_nothing_while_it_captures(cupy):
    x = cupy.asarray(normals(3))
    seen = []

    def work():
        x[...] = x + 1
        y = x * 2
        seen.append(y.view(np.ndarray).copy())
        return y

    recorded = recorder()(work)
    assert not seen[0].any()
    np.testing.assert_array_equal(x.get(), normals(3))
    np.testing.assert_array_equal(recorded().get(), (normals(3) + 1) * 2)


# ---- steps of a Solver


IN_STEPS = {
    "update_rule": "adam",
    "optim_config": {"learning_rate": 1e-2},
    "num_epochs": 3,
    "lr_decay": 0.5,
    "seed": 5,
    "verbose": False,
}


def trained(graph, model=None, data=None, before=None, **kwargs):
    """A solver after its training, and how many graphs were launched."""
    settings = IN_STEPS | {"batch_size": 10}
    model = dense() if model is None else model
    solver = Solver(model, make_data() if data is None else data, graph=graph, **(settings | kwargs))
    stand_in.launches.clear()
    solver.train()
    return solver, sum(launch.kernel == "graph" for launch in stand_in.launches)


def dense(**kwargs):
    settings = {"dropout": 0.25, "use_batchnorm": True, "weight_scale": None, "rng": 3} | kwargs
    return FullyConnectedNet([8, 8], 6, 3, backend="cupy", **settings)


def of_images(**kwargs):
    net = Sequential(Affine(8), BatchNorm(), ReLU(), Affine(3))
    return Model(net, (60,), rng=3, backend="cupy", **kwargs)


def assert_same_training(plain, recorded):
    np.testing.assert_array_equal(recorded.loss_history, plain.loss_history)
    assert recorded.val_acc_history == plain.val_acc_history
    for name, array in plain.arrays().items():
        np.testing.assert_array_equal(recorded.arrays()[name].get(), array.get(), err_msg=name)
    assert recorded.model.rng_state == plain.model.rng_state
    assert recorded._augmentation.state == plain._augmentation.state
    counts = [{key: c.get("t") for key, c in s.optimizer.groups.items()} for s in (plain, recorded)]
    assert counts[0] == counts[1]


AUGMENT = [
    AlternatingFlip(),
    RandomCrop(2),
    Cutout(2),
    ColorJitter(0.2, 0.2),
    Normalize(80, (50, 50, 51)),
    RandomFlip(),
]
IMAGES = {"data": image_data(), "augment": AUGMENT, "sampling": "shuffle", "batch_size": 8}


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (dense, {}),
        (lambda: dense(reg=0.1, dropout=0.0), {"update_rule": "sgd_momentum", "clip_norm": 0.5}),
        (lambda: dense(dtype="float64"), {"update_rule": "lion"}),
        (lambda: dense(dtype="float16"), {"update_rule": "nesterov"}),
        (
            dense,
            {"param_groups": [ParamGroup("b*", learning_rate=0.5, schedule="cosine"), ParamGroup("W1", "frozen")]},
        ),
        (dense, {"sampling": "shuffle", "drop_last": False, "batch_size": 13}),
        (of_images, IMAGES),
        (lambda: of_images(dtype="float16"), IMAGES | {"drop_last": False}),
    ],
    ids=["adam", "clipped", "double", "half", "groups", "rest", "images", "half images"],
)
def test_replayed_steps_are_those_launched_one_by_one(cupy, make, settings):
    plain, none = trained(False, make(), **settings)
    recorded, replays = trained(True, make(), **settings)
    assert none == 0
    assert plain.graph_reason == "graph=False was asked for"
    assert recorded.graph_reason is None
    per_epoch = recorded.X_train.shape[0] // recorded.batch_size
    assert replays == 3 * per_epoch - 2
    assert_same_training(plain, recorded)


def watched(solver):
    """What each step of its training launches, and what it waits for."""
    launched, waits = [], []

    def step(real=solver._step):
        stand_in.launches.clear()
        before = len(stand_in.waits)
        real()
        launched.append([launch.kernel for launch in stand_in.launches])
        waits.append(stand_in.waits[before:])

    solver._step = step
    solver.train()
    return launched, waits


def test_a_replayed_step_is_a_few_launches(cupy):
    launched, _ = watched(Solver(dense(), make_data(), batch_size=10, num_epochs=1, graph=True, verbose=False))
    assert launched[-3:] == 3 * [["put<32>", "graph"]]
    assert len(launched[0]) > 10


def test_training_waits_for_its_accuracies_and_losses_alone(cupy):
    solver, _ = trained(True, num_epochs=2)
    stand_in.waits.clear()
    solver.num_epochs = 3
    solver.train()
    rehearsed = 4 * ["copy from the host"]  # the epoch, both dropouts, Adam
    # an epoch: its losses, and the accuracy on both splits
    assert stand_in.waits == [*rehearsed, *3 * ["get", "item", "item"]]


class SlowDevice(Callback):
    """A device that falls behind the host, until that has waited for something else, and again."""

    only_looks = True

    def on_iteration(self, solver):
        stand_in.clock.work(1.0)
        if solver.iteration in (7, 11):
            stand_in.clock.host = stand_in.clock.device


def test_lines_and_the_progress_bar_wait_for_no_loss(cupy, capsys):
    bar = ProgressBar(Console(file=io.StringIO()))
    bar.INTERVAL = 0.0
    callbacks = [bar, SlowDevice()]
    solver = Solver(dense(), make_data(), batch_size=5, num_epochs=1, graph=True, print_every=1, callbacks=callbacks)
    printed, shown, waits = [], [], []

    def iterate(real=solver._iterate):
        stand_in.waits.clear()
        real()
        printed.append(capsys.readouterr().out.splitlines())
        shown.append(bar._progress.tasks[0].fields["loss"])
        waits.append(stand_in.waits[:])

    solver._iterate = iterate
    solver.train()
    losses = solver.loss_history
    expected = [f"(Iteration {i} / 12) loss: {loss:f}" for i, loss in enumerate(losses, 1)]
    assert [line for lines in printed for line in lines if "Iteration" in line] == expected
    # Accuracies are checked after the first and the last; what was fetched before the 8th and the 12th is there then.
    assert [sum("Iteration" in line for line in lines) for lines in printed] == [1, *6 * [0], 6, *3 * [0], 5]
    assert shown == [*7 * ["-"], *4 * [f"{losses[0]:.4f}"], f"{np.mean(losses[1:9]):.4f}"]
    assert waits[2:11] == 9 * [[]]


def test_lines_come_before_a_training_says_that_it_was_stopped(cupy, capsys):
    class Stops(Callback):
        only_looks = True

        def on_iteration(self, solver):
            stand_in.clock.work(1.0)
            if solver.iteration == 5:
                solver.stop("enough")

    solver = Solver(dense(), make_data(), batch_size=5, num_epochs=1, print_every=1, callbacks=[Stops()])
    solver.train()
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("(Epoch")]
    losses = [f"(Iteration {i} / 12) loss: {loss:f}" for i, loss in enumerate(solver.loss_history, 1)]
    assert lines == [*losses, "Stopped at iteration 5 / 12: enough"]
    assert len(losses) == 5


def test_memory_that_numbers_are_on_their_way_to_is_nobody_elses(cupy):
    backend = backends.get("cupy")
    backend.fetch(cupy.ones(3))
    gc.collect()
    assert backend.fetch(cupy.full(2, 7.0)).to_numpy().tolist() == [7, 7]


def test_a_solver_is_copied_with_losses_that_are_on_their_way(cupy):
    solver, copies = Solver(dense(), make_data(), batch_size=5, num_epochs=1, print_every=1), []
    solver.callbacks.append(SlowDevice())

    def iterate(real=solver._iterate):
        real()
        if solver.iteration == 5:
            del solver._iterate  # which no pickle has
            copies.extend([pickle.loads(pickle.dumps(solver)), copy.deepcopy(solver)])

    solver._iterate = iterate
    solver.train()
    for each in copies:
        assert [float(loss.to_numpy()) for _, loss in each._lines] == solver.loss_history[1:5]


def test_lines_that_an_error_came_before_are_not_those_of_the_next_training(cupy, capsys):
    class Fails(Callback):
        only_looks = True

        def on_iteration(self, solver):
            if solver.iteration == 5:
                stand_in.clock.host = self.reached  # the fourth loss is there, and not the fifth
                raise ValueError
            self.reached = stand_in.clock.work(1.0)

    solver = Solver(dense(), make_data(), batch_size=5, num_epochs=1, print_every=1, callbacks=[Fails()])
    with pytest.raises(ValueError):  # noqa: PT011
        solver.train()
    solver.callbacks.clear()
    solver.train()
    out = capsys.readouterr().out
    assert [f"(Iteration {i} / 12)" in out for i in range(1, 13)] == [i != 5 for i in range(1, 13)]


def test_a_loss_that_is_no_number_ends_an_epoch_soon(cupy, monkeypatch):
    monkeypatch.setattr(solver_module, "PATIENCE", 0.0)
    data = make_data()
    data["X_train"] = data["X_train"].copy()
    data["X_train"][5] = np.nan
    settings = {"batch_size": 1, "sampling": "sequential", "num_epochs": 1, "verbose": False}
    solver = Solver(FullyConnectedNet([8], 6, 3, backend="cupy", rng=0), data, **settings, callbacks=[SlowDevice()])
    with pytest.warns(RuntimeWarning, match="the loss is nan at iteration 6"):
        solver.train()
    assert solver.iteration == 12  # of 60: the device, asked for the second time after the 8th, has caught up then


def test_the_mean_of_losses_is_that_of_the_last_ones(cupy):
    means = []

    class Means(Callback):
        only_looks = True

        def on_iteration(self, solver):
            means.append([float(solver.fetch_loss(count).to_numpy()) for count in (1, 3, 100)])

    solver = Solver(dense(), make_data(), batch_size=5, num_epochs=1, verbose=False, callbacks=[Means()])
    with pytest.raises(SettingError, match="Solver: expected an iteration before its loss is fetched"):
        solver.fetch_loss()
    with pytest.raises(SettingError, match="expected count to be a whole number of at least 1; received 0"):
        solver.fetch_loss(0)
    solver.train()
    losses = solver.loss_history
    np.testing.assert_allclose(means[0], 3 * [losses[0]], rtol=1e-6)
    for i, found in enumerate(means[1:], 1):  # the first is read by the accuracy check
        expected = [np.mean(losses[max(i + 1 - count, 1) : i + 1]) for count in (1, 3, 100)]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_weights_that_are_averaged_are_those_of_each_replay(cupy):
    averages = []
    for graph in (False, True):
        model = dense()
        solver, _ = trained(graph, model, average=EMA(model.params, 0.8))
        averages.append({name: array.get() for name, array in solver.average.state_dict().items()})
    for name, array in averages[0].items():
        np.testing.assert_array_equal(averages[1][name], array, err_msg=name)


def test_training_goes_on_from_where_it_was(cupy, tmp_path):
    """Trained on, and resumed in another solver, whose arrays are others."""
    results = []
    for graph in (False, True):
        solver, _ = trained(graph)
        solver.train()
        solver.save(tmp_path / "last.safetensors")
        other = Solver(
            dense(), make_data(), update_rule="adam", batch_size=10, num_epochs=9, graph=graph, verbose=False
        )
        other.resume(tmp_path / "last.safetensors")
        other.train()
        assert other.graph_reason == (None if graph else "graph=False was asked for")
        results.append(other)
    assert_same_training(*results)


def test_a_solver_and_what_it_recorded_go_with_its_last_name(cupy):
    gc.disable()
    try:
        solver, _ = trained(True)
        gone = weakref.ref(solver)
        assert len(CuPy.pools) == 0
        del solver
        assert gone() is None
    finally:
        gc.enable()


class Replaces(Callback):
    """Loads weights after an epoch: the layers' state is in other arrays then."""

    def __init__(self, arrays):
        self.arrays = arrays

    def on_epoch(self, solver, metrics):
        if metrics["epoch"] == 1 and self.arrays is not None:
            solver.model.load_state_dict(self.arrays)


class Looks(Callback):
    only_looks = True

    def on_epoch(self, solver, metrics):
        pass

    on_iteration = Callback.on_iteration


class Changes(Looks):
    """What its base says does not hold for what it adds."""

    def on_epoch(self, solver, metrics):
        solver.model.net.layers["dropout1"].dropout_param["p"] = 0.8


def with_methods(**methods):
    callback = Callback()
    vars(callback).update(methods)
    return callback


@pytest.mark.parametrize(
    ("make", "replays"),
    [
        (Looks, 16),  # of 18
        (Changes, 11),
        (lambda: with_methods(on_epoch=Changes().on_epoch.__get__(Changes())), 11),
        (lambda: with_methods(on_epoch=Changes().on_epoch, only_looks=True), 16),
    ],
)
def test_steps_are_recorded_anew_where_a_callback_may_change_something(cupy, make, replays):
    assert trained(True, callbacks=[make()])[1] == replays


@pytest.mark.parametrize(
    "type_", [Checkpoints, EarlyStopping, MetricsLog, report.EpochLines, report.ProgressBar, report.Curves]
)
def test_callbacks_of_xpnn_change_nothing(type_):
    assert not any(may_change(type_.__new__(type_), method) for method in ("on_epoch", "on_iteration"))


def test_what_a_callback_changes_after_an_epoch_holds(cupy):
    plain, recorded = (trained(graph, callbacks=[Changes()])[0] for graph in (False, True))
    assert_same_training(plain, recorded)


def test_a_solver_may_be_pickled_and_copied_in_a_callback(cupy):
    class Copies(Callback):
        only_looks = True

        def on_epoch(self, solver, metrics):
            callbacks, solver.callbacks = solver.callbacks, []
            copies.extend([pickle.loads(pickle.dumps(solver)), copy.deepcopy(solver)])
            solver.callbacks = callbacks

    copies = []
    solver, replays = trained(True, callbacks=[Copies()])
    assert replays == 16
    for each in copies[-4:-2]:  # of the second epoch
        each.train()
        assert_same_training(solver, each)


def test_memory_that_a_recording_leaves_too_short_is_given_back(cupy, monkeypatch):
    """Here for the rest of each epoch, which is not recorded."""
    solver = Solver(
        dense(), make_data(), batch_size=13, sampling="shuffle", drop_last=False, num_epochs=3, verbose=False
    )
    pools = []

    def loss(model, X, y=None, real=Model.loss, **options):
        if X.shape[0] < 13 and y is not None and len(CuPy.pools):
            pools.extend(pool._pool for pool in CuPy.pools)
            raise MemoryError("out of memory")
        return real(model, X, y, **options)

    monkeypatch.setattr(Model, "loss", loss)
    with pytest.warns(RuntimeWarning, match="memory is short beside a recorded step; steps are launched one by one"):
        solver.train()
    assert solver.graph_reason == "memory is short beside a recorded step"
    assert solver.epoch == 3
    assert len(pools) == 1
    assert pools[0].total_bytes() == 0


def test_a_recorded_step_that_leaves_no_memory_for_an_accuracy_check_is_given_up(cupy, monkeypatch):
    settings = {"num_train_samples": 20, "num_val_samples": 20}  # drawn at random, and not again
    plain, _ = trained(False, **settings)
    tried = []

    def loss(model, X, y=None, real=Model.loss, **options):
        if y is None and len(CuPy.pools):
            tried.append(X.shape[0])
            raise MemoryError("out of memory")
        return real(model, X, y, **options)

    monkeypatch.setattr(Model, "loss", loss)
    with pytest.warns(RuntimeWarning, match="memory is short beside a recorded step; steps are launched one by one"):
        short, replays = trained("auto", **settings)
    assert tried == [20, 10, 5, 2, 1]
    assert replays == 4  # of the first epoch
    assert_same_training(plain, short)


SHORT = "ignore:Solver. memory is short beside a recorded step:RuntimeWarning"


@pytest.mark.filterwarnings(SHORT)
@pytest.mark.parametrize("where", ["loss", "order", "replay", "average", "averaged weights"])
def test_a_step_that_memory_was_too_short_for_is_taken_again_with_the_same_numbers(cupy, monkeypatch, where):
    """For the gradients of an epoch's rest, once everything has been drawn, an epoch's order, or a recorded loss.

    Or for an average, which is no part of the graph.
    """
    settings = {"data": image_data(), "augment": AUGMENT, "sampling": "shuffle", "drop_last": False, "batch_size": 9}

    def make():
        net = Sequential(Affine(8), BatchNorm(), ReLU(), Dropout(dropout_param={"p": 0.5, "mode": "train"}), Affine(3))
        return Model(net, (60,), rng=3, backend="cupy")

    def settings_of(model):
        average = EMA(model.params, 0.5) if "average" in where else None
        return settings | {"average": average}

    model = make()
    plain, _ = trained(False, model, **settings_of(model))
    failed = []

    def runs_short(function, when=lambda *args: True):
        def wrapped(*args, **kwargs):
            result = function(*args, **kwargs)
            if len(CuPy.pools) and not failed and when(*args):
                failed.append(where)
                raise MemoryError("out of memory")
            return result

        return wrapped

    if where == "loss":
        monkeypatch.setattr(Model, "loss", runs_short(Model.loss, lambda *args: len(args) > 2 and len(args[1]) < 9))
    elif where == "order":
        monkeypatch.setattr(solver_module, "epoch_order", runs_short(solver_module.epoch_order))
    elif where == "average":
        monkeypatch.setattr(averaging, "_arrays", runs_short(averaging._arrays))
    elif where == "averaged weights":
        monkeypatch.setattr(averaging, "copied", runs_short(averaging.copied))
    else:
        calls = iter(range(99))  # of a replay; the first goes well

        def of_replay(*args):
            return sys._getframe(2).f_code is RecordedStep.__call__.__code__ and next(calls) > 0

        monkeypatch.setattr(cupy, "empty", runs_short(cupy.empty, of_replay))
    model = make()
    tried, replays = trained("auto", model, **settings_of(model))
    assert failed == [where]
    assert replays > 0
    assert_same_training(plain, tried)


@pytest.mark.filterwarnings(SHORT)
def test_a_step_that_memory_is_too_short_for_twice_is_as_if_it_had_not_been(cupy, monkeypatch):
    """With a recorded step and then without; and once there is room, it is taken with the same numbers."""
    settings = {"data": image_data(), "augment": AUGMENT, "sampling": "shuffle", "drop_last": False, "batch_size": 9}

    def make():
        return Model(Sequential(Affine(8), BatchNorm(), Dropout(0.5), Affine(3)), (60,), rng=3, backend="cupy")

    plain, _ = trained(False, make(), **settings)
    loss, failed = Model.loss, []

    def short(self, X, y=None, *args, **kwargs):
        result = loss(self, X, y, *args, **kwargs)
        if y is not None and len(X) < 9 and len(failed) < 2 and (failed or len(CuPy.pools)):
            failed.append(1)
            raise MemoryError("out of memory")
        return result

    monkeypatch.setattr(Model, "loss", short)
    solver = Solver(make(), **IN_STEPS, graph="auto", **settings)
    with pytest.raises(OutOfMemory) as error:
        solver.train()
    assert "out of memory" in str(error.value)
    solver.train()
    assert len(failed) == 2
    assert_same_training(plain, solver)


@pytest.mark.parametrize("graph", [False, "auto"])
def test_a_batch_whose_update_fails_is_counted_though_it_be_the_last_before_a_recording(cupy, monkeypatch, graph):
    solver, steps = Solver(dense(), make_data(), **IN_STEPS, batch_size=10, graph=graph), []

    def short(self, *args, step=Optimizer.step, **kwargs):
        step(self, *args, **kwargs)
        steps.append(1)
        if len(steps) == 2:
            raise MemoryError("out of memory")

    monkeypatch.setattr(Optimizer, "step", short)
    with pytest.raises(OutOfMemory):
        solver.train()
    assert solver.iteration == len(steps) == 2


def test_the_peak_of_memory_is_the_most_that_was_held_whatever_is_free_since(cupy):
    backend, pool = get("cupy"), cupy.get_default_memory_pool()
    before = backend.peak_memory()
    assert before == pool.total_bytes()
    x = cupy.empty(10**6, "uint8")
    assert backend.peak_memory() == before + 10**6
    del x
    y = cupy.empty(10**6, "uint8")  # where that was
    assert backend.peak_memory() == before + 10**6
    del y
    cupy.empty(3 * 10**6, "uint8")  # nobody looks while it is there
    backend.free_memory()
    assert pool.total_bytes() == pool.used_bytes()
    assert backend.peak_memory() == before + 3 * 10**6


def test_the_peak_of_memory_has_the_pool_of_what_is_recorded(cupy):
    backend, x = get("cupy"), cupy.zeros(10**6, "float32")
    recorded = recorder()(lambda: x + 1)
    assert backend.peak_memory() >= cupy.get_default_memory_pool().total_bytes() + 4 * 10**6
    recorded.release()
    assert sum(pool.total_bytes() for pool in CuPy.pools) == 0


def test_a_recorded_step_that_is_given_up_counts_for_the_peak_of_its_epoch(cupy, monkeypatch):
    held, log = [], []

    class Metrics(Callback):
        only_looks = True

        def on_epoch(self, solver, metrics):
            log.append(metrics)

    def loss(model, X, y=None, real=Model.loss, **options):
        if len(CuPy.pools) and y is not None and X.shape[0] < 13:
            much = cupy.empty(10**7, "uint8")
            held.append(sum(pool.total_bytes() for pool in (cupy.get_default_memory_pool(), *CuPy.pools)))
            raise MemoryError(f"out of memory beside {much.nbytes} bytes")
        return real(model, X, y, **options)

    monkeypatch.setattr(Model, "loss", loss)
    settings = {"batch_size": 13, "sampling": "shuffle", "drop_last": False, "num_epochs": 1, "callbacks": [Metrics()]}
    with pytest.warns(RuntimeWarning, match="memory is short beside a recorded step"):
        trained("auto", FullyConnectedNet([1000], 6, 3, backend="cupy", rng=0), **settings)
    assert log[0]["peak_mb"] < 2
    assert log[-1]["peak_mb"] == round(held[0] / 1e6, 1) > 10


def test_accuracies_are_the_same_where_memory_is_too_short_for_so_many_examples_at_a_time(cupy):
    pool, solver = cupy.get_default_memory_pool(), make_solver(dense(), num_train_samples=None)
    X, y = solver.X_train, solver.y_train
    enough = solver.check_accuracy(X, y)
    pool.set_limit(size=pool.used_bytes() + 2500)
    assert solver.check_accuracy(X, y) == enough
    assert solver._at_a_time < len(X)


def test_data_that_the_device_has_no_room_for_are_named(cupy):
    pool, model = cupy.get_default_memory_pool(), dense()
    pool.set_limit(size=pool.used_bytes() + 1000)
    with pytest.raises(OutOfMemory) as error:
        make_solver(model)
    expected = "expected fewer examples, which fit into memory; received X_train (60, 6) of float32, 0.0 MB"
    assert str(error.value).startswith(f"Solver: {expected} (Out of memory allocating 1,440 bytes (limit set to: ")


@pytest.mark.parametrize("work", [lambda: 1, lambda: 1 / 0])
def test_memory_is_given_back_where_a_recording_goes_or_fails(cupy, monkeypatch, work):
    freed = []
    monkeypatch.setattr(cupy.cuda.MemoryPool, "free_all_blocks", lambda self: freed.append(self))
    with contextlib.suppress(ZeroDivisionError):
        recorder()(work)
    assert [pool for pool in freed if pool is not cupy.get_default_memory_pool()]


def test_weights_may_be_replaced_between_epochs(cupy):
    arrays = {name: array.get() for name, array in trained(False)[0].model.state_dict().items()}
    (plain, _), (recorded, replays) = (trained(graph, callbacks=[Replaces(arrays)]) for graph in (False, True))
    assert_same_training(plain, recorded)
    assert replays == 3 * (6 - 2) - 1  # recorded anew after each of the callback's epochs, the first iteration's too


def test_a_loss_that_is_no_number_ends_both(cupy, monkeypatch):
    monkeypatch.setattr(solver_module, "PATIENCE", 1e9)  # at the end of the epoch
    data = make_data()
    data["X_train"][7] = np.nan
    results = []
    for graph in (False, True):
        with pytest.warns(RuntimeWarning, match="the loss is nan"):
            results.append(trained(graph, data=data, sampling="sequential", batch_size=5)[0])
    assert results[0].diverged
    assert results[0].stop_reason == results[1].stop_reason
    np.testing.assert_array_equal(*(solver.loss_history for solver in results))
    for name, array in results[0].model.params.items():
        np.testing.assert_array_equal(results[1].model.params[name].get(), array.get())


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("rate", [1e6, 1e12, 1e30])
def test_training_that_diverges_ends_with_weights_that_are_numbers(cupy, graph, rate):
    """Though cuBLASLt's ReLU hides from the loss what is no number."""
    model = FullyConnectedNet([8, 8, 8], 6, 3, weight_scale=None, rng=3, backend="cupy")
    settings = {"update_rule": "sgd", "optim_config": {"learning_rate": rate}, "num_epochs": 6}
    with pytest.warns(RuntimeWarning, match="the loss is"):
        solver, _ = trained(graph, model, **settings)
    assert solver.diverged
    assert np.isfinite(model.params.flat.get()).all()


# ---- steps that are not recorded


class Doubled(Layer):
    def forward(self, x, train=False):
        return 2 * x, None

    def backward(self, dout, cache, input_grad=True):
        return 2 * dout, {}


class Watching(Callback):
    def on_iteration(self, solver):
        pass


def with_layer(layer):
    return Model(Sequential(Affine(8), Sequential(layer), Affine(3)), (6,), backend="cupy", rng=3)


def own_loss(scores, y):
    raise NotImplementedError


def own_rule(w, dw, config):
    return w - 0.1 * dw, config


@functools.wraps(softmax_loss)
def wrapping_loss(scores, y):
    return softmax_loss(scores, y)


class SlottedLoss:
    __slots__ = ()

    def __call__(self, scores, y):
        return softmax_loss(scores, y)


class OwnOptimizer(Optimizer):
    pass


def with_dropout(**param):
    return with_layer(Dropout(dropout_param={"p": 0.5, "mode": "train", **param}))


@pytest.mark.parametrize(
    ("make", "settings", "reason"),
    [
        (
            lambda: with_layer(Doubled()),
            {},
            "sequential1.doubled1 (Doubled) is not xpnn's own, and may do what no device can record",
        ),
        (lambda: of_images(loss=own_loss), IMAGES, "own_loss is not xpnn's own"),
        (lambda: of_images(loss=SlottedLoss()), IMAGES, "SlottedLoss is not xpnn's own"),
        (
            dense,
            {"callbacks": [Watching()]},
            "Watching is called after each batch, and does not say",
        ),
        (of_images, IMAGES | {"augment": [lambda x, batch: x]}, "<lambda> is not xpnn's own"),
        (of_images, IMAGES | {"augment": [Mixup(0.3)]}, "Mixup decides on the host what differs from step to step"),
        (lambda: dense(seed=3), {}, "dropout1 (Dropout) decides on the host"),
        (dense, {"accumulate": 2}, "a step takes several batches"),
        (lambda: of_images(loss=wrapping_loss), IMAGES, "softmax_loss is not xpnn's own"),
        (of_images, IMAGES | {"augment": [Compose([lambda x, batch: x])]}, "<lambda> is not xpnn's own"),
        (dense, {"callbacks": [with_methods(on_iteration=print)]}, "Callback is called after each batch"),
        (lambda: with_dropout(rng=5), {}, "sequential1.dropout1 (Dropout) decides on the host"),
        (lambda: with_dropout(rng=None), {}, "sequential1.dropout1 (Dropout) decides on the host"),
        (dense, {"update_rule": own_rule}, "own_rule is not xpnn's own"),
        (lambda: FullyConnectedNet([8], 6, 3, backend="numpy"), {}, "numpy records no steps"),
    ],
)
def test_what_keeps_steps_from_being_recorded_is_said(cupy, make, settings, reason):
    settings = {"data": make_data(), "verbose": False, **settings}
    solver = Solver(make(), **settings)
    assert solver.graph_reason.startswith(reason)
    with pytest.raises(SettingError, match="Solver: expected steps that can be recorded, for graph=True; "):
        Solver(make(), graph=True, **settings)


@pytest.mark.parametrize("part", [lambda s: s.model, lambda s: s.model.net.layers["relu1"], lambda s: s.optimizer])
def test_a_method_set_on_an_object_keeps_steps_from_being_recorded(cupy, part):
    solver = Solver(dense(), make_data(), num_epochs=1, batch_size=10, verbose=False)
    name = next(name for name in ("loss", "forward", "step") if hasattr(part(solver), name))
    vars(part(solver))[name] = getattr(part(solver), name)
    solver.train()
    assert "not xpnn's own" in solver.graph_reason
    assert solver.graph_replays == 0


class GoesToTheHost(Callback):
    def on_epoch(self, solver, metrics):
        if metrics["epoch"] == 1:
            solver.model.to("numpy")


def test_a_model_may_leave_the_device_in_mid_training(cupy):
    solver, replays = trained("auto", callbacks=[GoesToTheHost()])
    assert replays == solver.graph_replays == 6 - 2 - 1
    assert solver.graph_reason == "numpy records no steps"
    assert solver.epoch == 3


def test_an_optimizer_of_the_users_own_keeps_steps_from_being_recorded(cupy):
    solver = Solver(dense(), make_data(), num_epochs=1, batch_size=10, verbose=False)
    solver.optimizer = OwnOptimizer(solver.model.params, "sgd")
    solver.train()
    assert solver.graph_reason.startswith("OwnOptimizer is not xpnn's own")


def test_nothing_is_recorded_without_kernels(cupy, monkeypatch):
    monkeypatch.setenv("XPNN_FAST", "0")
    fast_path.cache_clear()
    assert Solver(dense(), make_data()).graph_reason == "cupy records no steps"


@pytest.mark.parametrize("graph", [None, "on", 1])
def test_a_wrong_graph_is_refused(graph):
    with pytest.raises(SettingError, match=f"Solver: expected graph to be True, False or 'auto'; received {graph!r}"):
        Solver(FullyConnectedNet([8], 6, 3), make_data(), graph=graph)


def test_a_recording_that_fails_changes_nothing(without_cublaslt, monkeypatch):
    monkeypatch.setitem(kernels.TABLE, ("recording.obstacle", "cupy"), lambda: None)
    fast_path.cache_clear()
    plain, _ = trained(False)
    failure = "recording failed: a graph that is being captured cannot have cuBLAS"
    with pytest.warns(RuntimeWarning, match=f"Solver: {failure}; steps are launched one by one") as warned:
        tried, replays = trained("auto", callbacks=[Replaces(None)])
    assert len(warned) == 1  # and not after each epoch
    assert replays == 0
    assert tried.graph_reason == failure
    assert_same_training(plain, tried)
    with pytest.raises(SettingError, match="for graph=True; recording failed"):
        trained(True)


def test_products_of_cupys_own_keep_steps_from_being_recorded(without_cublaslt):
    reason = "products by cupy.matmul cannot be recorded; pip install nvmath-python"
    assert Solver(dense(), make_data()).graph_reason == reason


# ---- the models


TINY = {
    "fc": {"hidden": (8, 8), "batchnorm": True, "dropout": 0.2},
    "convnet": {"filters": 4, "hidden": (8,)},
    "resnet20": {"widths": (4, 4, 4)},
    "resnet9": {"widths": (4,)},
    "airbench": {"widths": (4, 4, 4), "augment": "alternating-flip,crop:2"},
    "vit": {"dim": 8, "depth": 1, "heads": 2, "patch": 16},
}


def of_recipe(model, dtype, graph):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (24, 3, 32, 32), dtype=np.uint8), rng.integers(0, 10, 24)
    splits = [array[part] for part in (slice(16), slice(16, 24), slice(0)) for array in (images, labels)]
    dataset = Dataset("cifar10", *splits, tuple("abcdefghij"))
    settings = Settings.of("cifar10", model=model, epochs=2, batch_size=4, dtype=dtype, backend="cupy", **TINY[model])
    solver = build_solver(settings, build_model(settings, dataset), dataset)
    solver._recorder.graph = graph
    _, waits = watched(solver)
    first = 2 if graph else 1  # steps that bring to the device what is kept there, or is rehearsed
    assert waits[first:] == [[]] * (len(waits) - first)
    return solver


@pytest.mark.parametrize(
    ("model", "dtype_"),
    [*itertools.product(TINY, ("float32", "float16")), ("fc", "bfloat16"), ("airbench", "bfloat16")],
)
def test_every_model_is_recorded_and_no_step_waits(cupy, model, dtype_):
    if dtype_ == "bfloat16":
        pytest.importorskip("ml_dtypes")
    cudnn_on_cpu.install()
    recorded, plain = (of_recipe(model, dtype_, graph) for graph in (True, False))
    assert_same_training(plain, recorded)


@pytest.mark.parametrize("graph", [False, True])
def test_convolutions_are_timed_in_the_first_step_alone(cupy, monkeypatch, graph):
    cudnn_on_cpu.install()
    monkeypatch.setattr(cudnn_on_cpu, "has_exact_plans", True)
    monkeypatch.setattr(cudnn_on_cpu, "plans", [cudnn_on_cpu.Candidate(2.0), cudnn_on_cpu.Candidate(1.0)])
    model = ThreeLayerConvNet((3, 4, 5), num_filters=2, filter_size=3, hidden_dim=4, backend="cupy")
    _, waits = watched(Solver(model, image_data(), batch_size=5, num_epochs=1, graph=graph, verbose=False))
    cudnn = importlib.import_module("xpnn.kernels.cupy.cudnn")
    assert waits[0].count("event") == 2 * 2 * (1 + cudnn.ROUNDS)  # forward and filters' gradient, two plans each
    assert len(waits) > 3
    assert not any("event" in step for step in waits[1:])
    assert cudnn_on_cpu.indices[-1] == 1
