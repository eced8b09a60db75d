"""A layer and the equal PyTorch module with the same parameters, run side by side."""

import numpy as np
from oracle_torch import torch

from xpnn.models import Model

LAYOUTS = ["channels first", "channels last"]


def laid_out(kind, array, layout):
    """An array of the kind; of images, with the channels first or last in memory."""
    if layout == "channels first" or array.ndim != 4:
        return kind(array)
    return kind.xp.permute_dims(kind(np.ascontiguousarray(array.transpose(0, 2, 3, 1))), (0, 3, 1, 2))


def draw(seed, *shapes, dtype="float64"):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def as_torch_has(layer, name, array):
    """An array of the layer, as the equal module holds it."""
    return array.T if name in layer.torch_transposed else array


def give_parameters(kind, layer, module, input_shape, dtype, seed):
    """Build a model of the layer, and draw the parameters and state of both; return the module in the dtype."""
    model = Model(layer, input_shape, dtype=dtype, backend=kind.backend, rng=0)
    rng = np.random.default_rng(seed)
    arrays = {name: rng.standard_normal(tuple(a.shape)).astype(dtype) for name, a in model.state_dict().items()}
    if "running_var" in arrays:
        arrays["running_var"] = 0.5 + arrays["running_var"] ** 2
    model.load_state_dict(arrays)
    own = {layer.torch_names[name]: torch.from_numpy(as_torch_has(layer, name, a)) for name, a in arrays.items()}
    module = module.to(getattr(torch, dtype))
    module.load_state_dict({"num_batches_tracked": torch.tensor(0), **own} if "running_var" in arrays else own)
    return module


def assert_equal_layers(kind, layer, module, x, dout, atol, *, train=True, layout="channels first", call=None):
    """Compare outputs, and all gradients by the parameters and the input."""
    module.train(train)
    module.zero_grad()
    tx = torch.from_numpy(x)
    if x.dtype.kind == "f":
        tx.requires_grad_()
    expected = (call or module)(tx)
    expected.backward(torch.from_numpy(dout))
    out, cache = layer.forward(laid_out(kind, x, layout), train=train)
    kind.check(out, dout.dtype.name, tuple(expected.shape))
    kind.assert_close(out, expected.detach().numpy(), atol=atol)
    dx, grads = layer.backward(laid_out(kind, dout, layout), cache)
    if x.dtype.kind == "f":
        kind.check(dx, x.dtype.name, x.shape)
        kind.assert_close(dx, tx.grad.numpy(), atol=atol)
    parameters = dict(module.named_parameters())
    assert grads.keys() == layer.params.keys()
    for name, grad in grads.items():
        truth = parameters[layer.torch_names[name]].grad.numpy()
        kind.check(grad, dout.dtype.name)
        kind.assert_close(grad, as_torch_has(layer, name, truth), atol=atol)
