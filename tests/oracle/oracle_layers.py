"""A layer, or a net of layers, and the equal PyTorch module with the same parameters, run side by side."""

import numpy as np
from oracle_torch import torch

from xpnn.models import Model

LAYOUTS = ["channels first", "channels last"]


def laid_out(kind, array, layout):
    """An array of the kind; with the channels, or whatever the second axis is, first or last in memory."""
    if layout == "channels first" or array.ndim < 3:
        return kind(array)
    return kind.xp.moveaxis(kind(np.ascontiguousarray(np.moveaxis(array, 1, -1))), -1, 1)


def draw(seed, *shapes, dtype="float64"):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def torch_names(net, input_shape):
    """For each array of the layers within: its name, the name in the equal module, the layer and its name there."""
    for layer, _ in net.walk(input_shape):
        start = f"{layer.path}." if layer.path else ""
        for name, theirs in layer.torch_names.items():
            if name in layer.params or name in layer.state:
                yield start + name, (start + theirs).rstrip("."), layer, name


def as_torch_has(layer, name, array):
    """An array of the layer, as the equal module holds it."""
    if name in layer.torch_batched:
        return array[None]
    return array.T if name in layer.torch_transposed else array


def give_parameters(kind, layer, module, input_shape, dtype, seed):
    """Build a model of the layer, and draw the parameters and state of both; return the module in the dtype."""
    model = Model(layer, input_shape, dtype=dtype, backend=kind.backend, rng=0)
    rng = np.random.default_rng(seed)
    arrays = {name: rng.standard_normal(tuple(a.shape)).astype(dtype) for name, a in model.state_dict().items()}
    if "running_var" in arrays:
        arrays["running_var"] = 0.5 + arrays["running_var"] ** 2
    model.load_state_dict(arrays)
    own = {
        theirs: torch.from_numpy(as_torch_has(owner, key, arrays[name]))
        for name, theirs, owner, key in torch_names(layer, input_shape)
    }
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
    _, without_dx = layer.backward(laid_out(kind, dout, layout), cache, input_grad=False)
    parameters = dict(module.named_parameters())
    learned = [entry for entry in torch_names(layer, x.shape[1:]) if entry[3] in entry[2].params]
    assert grads.keys() == without_dx.keys() == {name for name, *_ in learned}
    for name, theirs, owner, key in learned:
        for grad in (grads[name], without_dx[name]):
            kind.check(grad, dout.dtype.name, tuple(owner.params[key].shape))
            own, truth = as_torch_has(owner, key, kind.to_numpy(grad)), parameters[theirs].grad.numpy()
            np.testing.assert_allclose(own, truth, rtol=0, atol=atol, err_msg=name)
