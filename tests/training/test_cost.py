"""What a training step costs beside its arithmetic, counted and not timed."""

import tracemalloc

import numpy as np
import pytest

from xpnn import FullyConnectedNet, Model, kernels
from xpnn.kernels.numpy import convolution
from xpnn.kernels.numpy.workspace import forget
from xpnn.layers import Affine, Parallel, ReLU, Residual, Sequential, conv_backward, conv_forward
from xpnn.optim import Optimizer

pytestmark = pytest.mark.skipif(
    kernels.fast_path("products.matmul", "numpy") is None, reason="the kernels are switched off"
)
MEGABYTE = 2**20


def peak_of(call):
    """The most bytes that a call has allocated at a time."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


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
