"""The time below which no program brings a training step on a device: its operations and bytes, over what was measured.

Operations are the multiplications and additions of matrix products and convolutions, forward and backward, and of the
update where it multiplies matrices. Bytes are what has to pass through memory even if all else is computed on the way:
the factors and results of each product once in each direction, and the update's parameters, gradients and state. What
stays in a cache from one step to the next does not have to: a small net may come below.
"""

import math
from typing import Any, NamedTuple

SIZES = {"float32": 4, "tf32": 4, "float16": 2, "bfloat16": 2}  # bytes of a number
SINGLE = 4  # of parameters, gradients and state


class Demand(NamedTuple):
    operations: int
    bytes: int


def of_step(model: Any, batch: int, size: int, optimizer: Any) -> Demand:
    """What a step of an xpnn model asks for, with images and activations in numbers of `size` bytes."""
    operations = numbers = 0
    is_first = True  # its input is the images, of which nobody wants the gradient
    for layer, shape in model.net.walk(model.input_shape):
        if not layer.flops(shape):
            continue
        learns = "W" in layer.param_specs(shape)
        weights = math.prod((layer.param_specs(shape) | layer.state_specs(shape))["W"].shape)
        inputs, outputs = batch * math.prod(shape), batch * math.prod(layer.output_shape(shape))
        operations += batch * layer.flops(shape) * (1 + learns + (not is_first))
        numbers += inputs + weights + outputs  # forward
        numbers += outputs + inputs * learns + (weights + inputs) * (not is_first)  # backward
        is_first = False
    moved = 0
    for name, config in optimizer.configs().items():
        w = model.params[name]
        state = sum(hasattr(value, "shape") for value in config.values())
        moved += math.prod(w.shape) * (4 + 2 * state)  # gradient written and read, the others read and written
        if "newton_schulz_steps" in config:
            operations += config["newton_schulz_steps"] * newton_schulz(w.shape[0], math.prod(w.shape[1:]))
    return Demand(operations, size * numbers + SINGLE * moved)


def newton_schulz(rows: int, columns: int) -> int:
    """The operations of one of Muon's steps: ``x xᵀ``, its square, and that times x."""
    m, n = sorted((rows, columns))
    return 2 * m * m * n + 2 * m**3 + 2 * m * m * n


def milliseconds(demand: Demand, operations_per_s: float, bytes_per_s: float) -> float:
    return 1e3 * max(demand.operations / operations_per_s, demand.bytes / bytes_per_s)
