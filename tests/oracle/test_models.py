"""Whole nets against equal nets in PyTorch: weights copied in and out, scores, gradients, ten steps of training."""

import numpy as np
import pytest
import torch_nets
from oracle_torch import torch

from oracles import EPS
from xpnn.errors import CheckpointError
from xpnn.models import Airbench, ResNet, ResNet9, ThreeLayerConvNet, VisionTransformer
from xpnn.optim import Optimizer

CONVNET = {"input_dim": (3, 8, 8), "num_filters": 4, "filter_size": 3, "hidden_dim": 6, "weight_scale": None}
VIT = {"patch": 4, "dim": 12, "depth": 2, "heads": 3}

# Small enough for every backend; name: ours, PyTorch's, the images' shape
NETS = {
    "ThreeLayerConvNet": (
        lambda **o: ThreeLayerConvNet(**CONVNET, **o),
        lambda: torch_nets.ThreeLayerConvNet((3, 8, 8), 4, 3, 6, 10, batchnorm=False),
        (3, 8, 8),
    ),
    "ThreeLayerConvNet with batch norm": (
        lambda **o: ThreeLayerConvNet(**CONVNET, use_batchnorm=True, **o),
        lambda: torch_nets.ThreeLayerConvNet((3, 8, 8), 4, 3, 6, 10, batchnorm=True),
        (3, 8, 8),
    ),
    "ResNet": (
        lambda **o: ResNet(14, widths=(4, 6, 8), input_dim=(3, 12, 12), **o),
        lambda: torch_nets.ResNet(14, widths=(4, 6, 8)),
        (3, 12, 12),
    ),
    "ResNet9": (lambda **o: ResNet9(width=4, **o), lambda: torch_nets.ResNet9(4), (3, 32, 32)),
    "Airbench": (
        lambda **o: Airbench(widths=(8, 10, 12), standardize=(0.0, 1.0), **o),
        lambda: torch_nets.Airbench((8, 10, 12)),
        (3, 32, 32),
    ),
    "VisionTransformer": (
        lambda **o: VisionTransformer(**VIT, input_dim=(3, 16, 16), **o),
        lambda: torch_nets.VisionTransformer(4, 12, 2, 3, shape=(3, 16, 16)),
        (3, 16, 16),
    ),
}


@pytest.fixture(params=NETS.values(), ids=NETS)
def nets(request, kind, dtype):
    """The model, the equal net with weights that PyTorch drew, and the shape of an image."""
    ours, theirs, shape = request.param
    torch.manual_seed(0)
    net = theirs().to(getattr(torch, dtype))
    with torch.no_grad():
        for name, p in net.named_parameters():
            if p.ndim == 1 or name == "pos_embed":  # biases and scales that do something
                p += 0.1 * torch.randn_like(p)
    model = ours(dtype=dtype, backend=kind.backend, rng=0)
    model.load_torch_state_dict(net.state_dict())
    return model, net, shape


def batch(shape, dtype, seed=0, n=6):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, *shape)).astype(dtype), rng.integers(0, 10, n)


def tolerance(model, dtype):
    """Twenty roundings of numbers near 1 for each layer of the net; all scores and gradients are at most some units."""
    return 20 * len(list(model.net.walk(model.input_shape))) * EPS[dtype]


def test_scores_in_test_mode(nets, kind, dtype):
    model, net, shape = nets
    x, _ = batch(shape, dtype)
    expected = net.eval()(torch.from_numpy(x)).detach().numpy()
    kind.assert_close(model.loss(kind(x)), expected, atol=tolerance(model, dtype) * max(1, np.abs(expected).max()))


def test_loss_gradients_and_running_statistics_in_train_mode(nets, kind, dtype):
    model, net, shape = nets
    x, y = batch(shape, dtype)
    expected = torch.nn.functional.cross_entropy(net.train()(torch.from_numpy(x)), torch.from_numpy(y))
    expected.backward()
    loss, grads = model.loss(kind(x), kind(y))
    kind.assert_close(loss, expected.item(), atol=tolerance(model, dtype))
    theirs = {name: p.grad.numpy() for name, p in net.named_parameters() if p.grad is not None}
    ours = torch_names(model, grads)
    assert ours.keys() == theirs.keys()
    for name, grad in theirs.items():
        np.testing.assert_allclose(
            ours[name], grad, rtol=0, atol=10 * tolerance(model, dtype) * max(1, np.abs(grad).max()), err_msg=name
        )
    for name, buffer in net.named_buffers():
        if "running" in name and not isinstance(model, ThreeLayerConvNet):  # the course's variance is the biased one
            received = model.to_torch_state_dict()[name].numpy()
            np.testing.assert_allclose(received, buffer.numpy(), rtol=0, atol=tolerance(model, dtype), err_msg=name)


def torch_names(model, grads):
    """Gradients under PyTorch's names, as NumPy arrays."""
    other = model.params.copy()
    current = {name: model.backend.to_numpy(w).copy() for name, w in model.params.items()}
    for name in other:
        model.params[name] = grads[name]
    state = model.to_torch_state_dict()
    model.params = current
    learned = {key for name, key in _keys(model) if name in current}
    return {key: value.numpy() for key, value in state.items() if key in learned}


def _keys(model):
    from xpnn.models.torch_weights import _entries

    return [(name, key) for name, key, *_ in _entries(model)]


def test_ten_steps_of_training_in_lock_step(nets, kind, dtype):
    model, net, shape = nets
    optimizer = Optimizer(model.params, "sgd_momentum", learning_rate=0.02, momentum=0.5)
    theirs = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.02, momentum=0.5)
    net.train()
    for step in range(10):
        x, y = batch(shape, dtype, seed=step)
        expected = torch.nn.functional.cross_entropy(net(torch.from_numpy(x)), torch.from_numpy(y))
        theirs.zero_grad()
        expected.backward()
        theirs.step()
        loss, grads = model.loss(kind(x), kind(y))
        optimizer.step(grads)
        # roundings grow from step to step, the more the deeper the net
        kind.assert_close(loss, expected.item(), atol=5 * (step + 1) * tolerance(model, dtype))


def test_weights_go_out_as_they_came_in(nets, kind, dtype):
    model, net, _ = nets
    out = model.to_torch_state_dict()
    expected = net.state_dict()
    assert out.keys() == expected.keys()
    for name, tensor in expected.items():
        assert out[name].dtype == tensor.dtype, name
        assert torch.equal(out[name], tensor), name
    net.load_state_dict(out)


def test_state_dicts_that_do_not_fit_are_refused_and_nothing_changes(kind):
    model = ResNet9(width=2, backend=kind.backend, rng=0)
    before = {name: model.backend.to_numpy(a).copy() for name, a in model.state_dict().items()}
    state = torch_nets.ResNet9(2).state_dict()
    with pytest.raises(
        CheckpointError, match=r"expected linear\.weight, for linear\.W; the state dict does not have it"
    ):
        model.load_torch_state_dict({name: t for name, t in state.items() if name != "linear.weight"})
    with pytest.raises(CheckpointError, match=r"received extra\.bias, which the model does not have"):
        model.load_torch_state_dict(state | {"extra.bias": torch.zeros(3)})
    with pytest.raises(
        CheckpointError,
        match=r"linear\.weight: expected shape \(10, 16\), for linear\.W \(16, 10\); received \(10, 17\)",
    ):
        model.load_torch_state_dict(state | {"linear.weight": torch.zeros(10, 17)})
    with pytest.raises(
        CheckpointError, match=r"expected shape \(10, 16\), for linear\.W \(16, 10\); received \(16, 10\)"
    ):
        model.load_torch_state_dict(state | {"linear.weight": torch.zeros(16, 10)})
    for other in (None, [torch.zeros(3)], "weights.pt"):
        with pytest.raises(TypeError, match="^model: expected a dict of tensors by PyTorch's names; received"):
            model.load_torch_state_dict(other)
    for name, array in before.items():
        kind.assert_close(model.state_dict()[name], array)


def test_weights_in_bfloat16_come_in_exactly(kind):
    model = ResNet9(width=2, backend=kind.backend, rng=0)
    state = {name: tensor.bfloat16() for name, tensor in torch_nets.ResNet9(2).state_dict().items()}
    model.load_torch_state_dict(state)
    kind.assert_close(model.params["linear.W"], state["linear.weight"].float().numpy().T)
