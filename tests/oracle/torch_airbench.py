"""The training of airbench94_muon.py in PyTorch, transcribed; by default on the CPU and in one precision.

Source: Jordan, https://github.com/KellerJordan/cifar10-airbench.
"""

from oracle_torch import torch
from torch.nn import functional as F

CIFAR_MEAN = torch.tensor((0.4914, 0.4822, 0.4465), dtype=torch.float64)
CIFAR_STD = torch.tensor((0.2470, 0.2435, 0.2616), dtype=torch.float64)


def normalize(images, dtype=torch.float32):
    """What the net sees of bytes (N, 3, H, W)."""
    mean, std = (v.to(images.device, dtype).view(3, 1, 1) for v in (CIFAR_MEAN, CIFAR_STD))
    return (images.to(dtype) / 255 - mean) / std


def whitening_filters(images, size=2, eps=5e-4):
    """The filters of the first convolution, from normalized images."""
    c = images.shape[1]
    patches = images.unfold(2, size, 1).unfold(3, size, 1).transpose(1, 3).reshape(-1, c, size, size)
    patches = patches.reshape(len(patches), -1)
    covariance = patches.T @ patches / len(patches)
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance, UPLO="U")
    filters = eigenvectors.T.reshape(-1, c, size, size) / torch.sqrt(eigenvalues.view(-1, 1, 1, 1) + eps)
    return torch.cat((filters, -filters))


def zeropower(g, steps=3, eps=1e-7):
    """The original's `zeropower_via_newtonschulz5`, in g's precision and not in bfloat16."""
    a, b, c = (3.4445, -4.7750, 2.0315)
    x = g / (g.norm() + eps)
    if g.size(0) > g.size(1):
        x = x.T
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if g.size(0) > g.size(1) else x


class Muon(torch.optim.Optimizer):
    def __init__(self, params, lr, momentum, orthogonalize=zeropower):
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self.orthogonalize = orthogonalize

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                g, state = p.grad, self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(g)
                buffer = state["momentum_buffer"]
                buffer.mul_(group["momentum"]).add_(g)
                g = g.add(buffer, alpha=group["momentum"])
                p.mul_(len(p) ** 0.5 / p.norm())
                step, lr = self.orthogonalize(g.reshape(len(g), -1)).view(g.shape), group["lr"]
                if isinstance(lr, torch.Tensor):  # of which the host knows no number
                    p.sub_(lr * step)
                else:
                    p.add_(step, alpha=-lr)


def loss_of(net, inputs, labels):
    return F.cross_entropy(net(inputs), labels, label_smoothing=0.2, reduction="sum")


class Training:
    """The original's optimizers and schedules; `step` trains on a batch of normalized images and returns the loss."""

    def __init__(self, net, batch_size, total_steps, filter_lr=0.24, *, orthogonalize=zeropower, fused=False):
        self.net, self.total_steps, self.whiten_bias_steps, self.steps = net, total_steps, 3 / 8 * total_steps, 0
        bias_lr, head_lr, wd = 0.053, 0.67, 2e-6 * batch_size
        filters = [p for p in net.parameters() if p.ndim == 4 and p.requires_grad]
        norm_biases = [p for n, p in net.named_parameters() if "norm" in n and p.requires_grad]
        groups = [
            {"params": [net.whiten.bias], "lr": bias_lr, "weight_decay": wd / bias_lr},
            {"params": norm_biases, "lr": bias_lr, "weight_decay": wd / bias_lr},
            {"params": [net.head.weight], "lr": head_lr, "weight_decay": wd / head_lr},
        ]
        self.optimizers = [
            torch.optim.SGD(groups, lr=head_lr, momentum=0.85, nesterov=True, fused=fused),
            Muon(filters, filter_lr, momentum=0.6, orthogonalize=orthogonalize),
        ]
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]

    def loss(self, inputs, labels):
        return loss_of(self.net, inputs, labels)

    def keep_rates_on(self, device):
        """Keep learning rates on a device, where a graph that has captured `update` reads them."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = torch.tensor(group["lr"], device=device)

    def step(self, inputs, labels):
        self.prepare()
        return self.update(inputs, labels)

    def prepare(self):
        """What differs from step to step: the rates, and that the first bias stays as it is from a step on."""
        self.net.train()
        self.net.whiten.bias.requires_grad_(self.steps < self.whiten_bias_steps)
        first, *others = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        set_rate(first, first["initial_lr"] * (1 - self.steps / self.whiten_bias_steps))
        for group in others:
            set_rate(group, group["initial_lr"] * (1 - self.steps / self.total_steps))
        self.steps += 1

    def update(self, inputs, labels):
        loss = self.loss(inputs, labels)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        self.net.zero_grad(set_to_none=True)
        return loss.detach()  # on the device: nothing waits


def set_rate(group, rate):
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate
