"""What a training step costs beside its arithmetic, counted and not timed."""

import collections
import sys
import tracemalloc
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest

from xpnn import FullyConnectedNet, Model, Solver, ThreeLayerConvNet, backend, kernels, threads
from xpnn.kernels.numpy import convolution
from xpnn.kernels.numpy.loops import COMPILED
from xpnn.kernels.numpy.workspace import forget
from xpnn.layers import (
    Affine,
    BatchNorm,
    Conv,
    Dropout,
    MaxPool,
    Parallel,
    ReLU,
    Residual,
    Sequential,
    conv_backward,
    conv_forward,
)
from xpnn.optim import EMA, Optimizer

pytestmark = pytest.mark.skipif(
    kernels.fast_path("products.matmul", "numpy") is None, reason="the kernels are switched off"
)
MEGABYTE = 2**20


@contextmanager
def tracing():
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def peak_of(call):
    """The most bytes that a call has allocated at a time."""
    with tracing():
        return growth_of(call)


def growth_of(call):
    """The most bytes that were allocated at a time while a call went on, beyond those before; within `tracing`."""
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    call()
    return tracemalloc.get_traced_memory()[1] - before


class Counting:
    """Stands in for a module or a function, and counts the calls of what it has by name, and copies."""

    MAY_COPY = ("ascontiguousarray", "astype", "reshape")

    def __init__(self, real, calls, name=""):
        self.real, self.calls, self.name = real, calls, name

    def __getattr__(self, attribute):
        found = getattr(self.real, attribute)
        name = f"{self.name}.{attribute}" if self.name else attribute
        return Counting(found, self.calls, name) if callable(found) and not isinstance(found, type) else found

    def __call__(self, *args, **kwargs):
        self.calls[self.name] += 1
        result = self.real(*args, **kwargs)
        if self.name in self.MAY_COPY and not np.may_share_memory(result, args[0]):
            self.calls["copies"] += 1
        return result


@pytest.fixture
def calls(monkeypatch):
    """How often a step has called NumPy's functions, and the loops of its kernels, by name."""
    calls = collections.Counter()
    kernels.load("numpy")
    numpy, loops = Counting(np, calls), Counting(convolution.winograd.loops, calls)
    for name, module in list(sys.modules.items()):
        if name.startswith("xpnn.kernels.numpy.") and module is not loops.real and hasattr(module, "np"):
            monkeypatch.setattr(module, "np", numpy)
            if hasattr(module, "loops"):
                monkeypatch.setattr(module, "loops", loops)
    if hasattr(np, "astype"):  # else the standard's functions are not NumPy's own
        monkeypatch.setitem(backend._namespaces, np.ndarray, numpy)
    return calls


# Of softmax; the copy is of bools, whether a class is the example's, as floats.
LOSS = {"max": 1, "maximum": 2, "exp": 1, "log": 1, "sum": 2, "any": 1, "arange": 1, "astype": 2, "copies": 1}


@pytest.mark.skipif(not hasattr(np, "astype"), reason="this NumPy is not the standard's namespace")
def test_a_step_does_each_operation_once_for_each_layer(calls):
    model = FullyConnectedNet([50] * 4, input_dim=60, rng=0)
    optimizer, buffer = Optimizer(model.params, "adam"), model.params.like()
    x, y = np.ones((10, 60), "float32"), np.zeros(10, "int64")
    optimizer.step(model.loss(x, y, buffer)[1])
    calls.clear()
    optimizer.step(model.loss(x, y, buffer)[1])
    layers = {
        "matmul": 5 + 5 + 4,  # forward, weights' and inputs' gradients, the last but of the first layer
        "add.reduce": 5,  # the biases' gradients
        "where_positive": 4,
        "adam": 1,
        "reshape": 4,  # views: the rows, and the axes of what is flat in memory
        "empty_like": 4,  # what ReLU's gradient is written into
    }
    assert calls == layers | LOSS | {"maximum": LOSS["maximum"] + 4}  # ReLU is one


@pytest.mark.skipif(not hasattr(np, "astype"), reason="this NumPy is not the standard's namespace")
def test_a_step_of_a_convolution_copies_its_filters_alone(calls):
    model = ThreeLayerConvNet(rng=0)
    x, y, buffer = np.ones((4, 3, 32, 32), "float32"), np.zeros(4, "int64"), model.params.like()
    calls.clear()
    model.loss(x, y, buffer)
    assert calls["window_max"] == calls["window_max_grad"] == 1
    assert calls["concatenate"] - 1 == calls["stack"] == 0  # one of the sums of blocks
    # The filters as matrices; pooled images, channels last in memory, as rows of the affine layer; labels as floats.
    assert calls["copies"] == 3


@pytest.mark.parametrize("rule", ["sgd", "sgd_momentum", "nesterov", "rmsprop", "adam", "adamw", "lion"])
def test_a_step_allocates_nothing_of_the_size_of_its_weights(rule):
    model = FullyConnectedNet([1000, 1000], input_dim=1000, rng=0)
    optimizer, buffer = Optimizer(model.params, rule), model.params.like()
    x, y = np.ones((10, 1000), "float32"), np.zeros(10, "int64")

    def step():
        optimizer.step(model.loss(x, y, buffer)[1])

    step()  # what is kept from step to step
    largest = model.params["W1"].nbytes
    # ten examples of 1,000 numbers are 40 kB: activations and their gradients of two layers
    assert peak_of(step) < 0.2 * largest


def test_scores_keep_nothing_of_the_layers_before():
    layers = [layer for _ in range(10) for layer in (Affine(100), ReLU())]
    model = Model(Sequential(Residual(*layers), Parallel(Affine(100), Affine(100))), (100,), rng=0)
    x = np.ones((1000, 100), "float32")
    # a layer's input and output, and what two branches add up
    assert peak_of(lambda: model.loss(x)) < 4.5 * x.nbytes


@pytest.mark.parametrize("shape", [(20, 16, 32, 16, 3), (50, 3, 32, 8, 5)])
def test_a_convolution_allocates_its_results_and_chunks(shape):
    n, c, size, f, k = shape
    x, w, b = np.ones((n, c, size, size), "float32"), np.ones((f, c, k, k), "float32"), np.ones(f, "float32")
    convolution.share(lambda part: None, 100)  # threads, if there are any
    made = []

    def passes():
        out, cache = conv_forward(x, w, b, {"pad": k // 2})
        made.extend([out, *conv_backward(out, cache)])

    forget()
    peak = peak_of(passes)
    results = sum(array.nbytes for array in made)
    threads = len(convolution.share(lambda part: None, 100))
    # strips, products, padded images, and gradients by rows, each of a chunk
    assert peak < results + threads * 4 * convolution.STRIPS + MEGABYTE


def allocations_of(call):
    """The sizes in bytes of what a call has allocated, however soon it was freed.

    tracemalloc says how much is held. Read before each of Python's instructions, with its peak since the one before,
    it shows what every method and operator allocates.
    """
    sizes, held = [], 0

    def look(frame, event, arg):
        nonlocal held
        now, peak = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        if peak > held:
            sizes.append(peak - held)
        held, frame.f_trace_opcodes = now, True
        return look

    before = sys.gettrace()
    with tracing():
        sys.settrace(look)
        try:
            call()
        finally:
            sys.settrace(before)
    return sizes


BLOCKWISE = not COMPILED  # NumPy's loops write down what lies between two operations
EXAMPLES = 500
# Layers, the shape of an example, how many numbers it has at least between two layers, and how many in all arrays that
# are made for it in a step: those of the batch, then what forward passes and backward passes return and keep.
STEPS = {
    "affine": (
        lambda: [layer for _ in range(3) for layer in (Affine(100), ReLU())],
        (400,),
        100,
        400 + 3 * 100 * (2 + 2 + BLOCKWISE),
    ),
    "batch norm and dropout": (
        lambda: [layer for _ in range(3) for layer in (Affine(100), BatchNorm(), ReLU(), Dropout(0.25))],
        (400,),
        100,
        # Of a mask its bits, what is kept as floats and that scaled; blocks of a batch norm are a sixth longer.
        400 + 3 * 100 * (3 + 4 + 4 + BLOCKWISE * (1 + 3 * 7 / 6)),
    ),
    "convolution": (
        lambda: [Conv(8, 7, pad=3), MaxPool(2), ReLU()],
        (3, 16, 16),
        512,
        # ReLU's output as rows, and the gradient by it as images lie in memory, are copies. NumPy's loops have a mask
        # as floats for ReLU and for each of the four pixels of a window.
        768 + 2048 + 3 * 512 + (1 + 1 + 1) * 512 + 2048 + BLOCKWISE * 5 * 512,
    ),
    "convolution with windows of 3 x 3": (
        lambda: [Conv(32, 3, pad=1), ReLU(), Conv(32, 3, pad=1), MaxPool(2), ReLU()],
        (32, 8, 8),
        512,
        2048 + 3 * 2048 + 3 * 512 + (1 + 1 + 1) * 512 + 3 * 2048 + BLOCKWISE * (2048 + 5 * 512),
    ),
}


@pytest.mark.parametrize("along", [False, True])  # whether kernels go the way that they go beside shared work
@pytest.mark.parametrize("name", STEPS)
def test_a_step_allocates_what_its_layers_return_and_no_copy_more(monkeypatch, name, along):
    layers, shape, least, numbers = STEPS[name]
    monkeypatch.setattr(threads, "_thread_count", lambda: 1)
    X, y = np.ones((2 * EXAMPLES, *shape), "float32"), np.arange(2 * EXAMPLES) % 2
    data = {"X_train": X, "y_train": y, "X_val": X[:1], "y_val": y[:1]}
    model = Model(Sequential(*layers(), Affine(2)), shape, rng=0)
    solver = Solver(model, data, update_rule="adam", batch_size=EXAMPLES, seed=0, verbose=False)
    with threads.steady():
        if along:
            threads._keep_blas_to_one_thread()
        for _ in range(3):  # what is compiled, and kept for the next step
            solver._step()
        sizes = allocations_of(solver._step)
    step, copy = 4 * EXAMPLES * numbers, 4 * EXAMPLES * least
    total = sum(size for size in sizes if size > copy / 2)  # the rest are vectors, scores of two classes, and Python's
    assert 0.5 * step < total < step + copy / 2


class Plain:
    """A model of the user's own: matrices in a plain dict, which add up to one."""

    def __init__(self, width):
        self.params = {f"W{i}": np.zeros((width, 100), "float32") for i in range(8)}

    def loss(self, X, y=None):
        scores = sum(X @ w for w in self.params.values())
        return scores if y is None else (scores.mean(), dict.fromkeys(self.params, X.T @ (scores - 1)))


def net(width):
    return FullyConnectedNet([width, width], input_dim=width, rng=0)


@pytest.mark.parametrize(
    ("make", "options", "copies"),
    [
        (net, {}, 2),  # the best weights and the last
        (net, {"accumulate": 2, "average": partial(EMA, decay=0.9)}, 4),  # and the last sum of gradients and average
        (Plain, {}, 2 + 1 / 8),  # new arrays take the old ones' place in the dict, one by one
    ],
    ids=["model", "averaged", "plain"],
)
def test_a_training_allocates_copies_of_the_best_and_of_the_last_weights_alone(make, options, copies):
    def solver_of(width):
        X, y, model = np.ones((20, width), "float32"), np.zeros(20, "int64"), make(width)
        data = {"X_train": X, "y_train": y, "X_val": X, "y_val": y}
        own = {key: value(model.params) if callable(value) else value for key, value in options.items()}
        return Solver(model, data, update_rule="adam", batch_size=5, num_epochs=3, verbose=False, **own)

    solver_of(8).train()  # what is imported and compiled
    with tracing():
        solver = solver_of(1000)
        assert growth_of(solver.train) < (copies + 0.2) * sum(w.nbytes for w in solver.model.params.values())
