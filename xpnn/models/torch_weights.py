"""Weights in and out: the state dict of the equal PyTorch net.

A layer says what PyTorch calls its arrays and which it holds transposed (`Layer.torch_names`, `torch_transposed`,
`torch_batched`), a model what becomes of its paths (`Model.torch_key`).
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from xpnn import backend as backends
from xpnn.backend import Array, describe, to_numpy
from xpnn.errors import CheckpointError
from xpnn.layers import Layer

if TYPE_CHECKING:
    from xpnn.models.model import Model

COUNTER = "num_batches_tracked"  # of PyTorch's batch norm, which needs it for a momentum that xpnn does not have


def to_torch_state_dict(model: "Model") -> dict[str, Any]:
    """Return the weights as CPU tensors under PyTorch's names, for ``load_state_dict`` of the equal net.

    Raises
    ------
    BackendUnavailable
        Where PyTorch is not installed.
    """
    torch = backends.get("torch").require()
    arrays, state = model.state_dict(), {}
    for name, key, layer, param in _entries(model):
        array = to_numpy(arrays[name])
        if param in layer.torch_transposed:
            array = array.T
        if param in layer.torch_batched:
            array = array[np.newaxis]
        state[key] = torch.asarray(array, copy=True)
        if param == "running_var":
            state[key.replace("running_var", COUNTER)] = torch.asarray(np.asarray(0))
    return state


def load_torch_state_dict(model: "Model", state: Mapping[str, Array]) -> None:
    """Set the weights from the state dict of the equal PyTorch net: tensors, or arrays of any kind.

    Raises
    ------
    CheckpointError
        When a name is missing or not known, or a shape differs; the model is then unchanged.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"model: expected a dict of tensors by PyTorch's names; received {describe(state)}")
    own, taken = model.state_dict(), {}
    unknown = {key for key in state if not key.endswith(COUNTER)}
    for name, key, layer, param in _entries(model):
        if key not in state:
            raise CheckpointError(f"expected {key}, for {name}; the state dict does not have it")
        unknown.discard(key)
        array, shape = to_numpy(state[key]), tuple(own[name].shape)
        expected = shape[::-1] if param in layer.torch_transposed else shape
        expected = (1, *expected) if param in layer.torch_batched else expected
        if array.shape != expected:
            raise CheckpointError(f"{key}: expected shape {expected}, for {name} {shape}; received {array.shape}")
        taken[name] = (array.T if param in layer.torch_transposed else array).reshape(shape)
    if unknown:
        raise CheckpointError(f"received {', '.join(sorted(unknown))}, which the model does not have")
    model.load_state_dict({**own, **taken})


def _entries(model: "Model") -> Iterator[tuple[str, str, Layer, str]]:
    """For each array that PyTorch knows: our name, PyTorch's, the layer and its name there."""
    for name, layer, param in model.arrays_by_layer():
        if param in layer.torch_names:
            suffix = layer.torch_names[param]
            yield name, model.torch_key(f"{layer.path}.{suffix}" if suffix else layer.path), layer, param
