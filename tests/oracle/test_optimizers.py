"""Update rules, clipping, schedules and averages against PyTorch's over 20 steps; else against their papers."""

import math

import numpy as np
import pytest
from oracle_torch import torch
from torch_airbench import zeropower

from oracles import EPS, normals
from xpnn.optim import EMA, RULES, Lookahead, Optimizer, ParamGroup, newton_schulz, schedules
from xpnn.parameters import Parameters

STEPS = 20
BETAS = (0.8, 0.95)

# Rule: its settings, PyTorch's optimizer, and whether the two agree while the rate changes.
PAIRS = {
    "sgd": ({}, lambda p: torch.optim.SGD(p), True),
    "sgd_momentum": ({"momentum": 0.8}, lambda p: torch.optim.SGD(p, momentum=0.8), False),
    "sgd_nesterov_momentum": (
        {"momentum": 0.8},
        lambda p: torch.optim.SGD(p, momentum=0.8, nesterov=True),
        False,
    ),
    "nesterov": (
        {"momentum": 0.8, "weight_decay": 0.05},
        lambda p: torch.optim.SGD(p, momentum=0.8, nesterov=True, weight_decay=0.05),
        True,
    ),
    "rmsprop": (
        {"decay_rate": 0.9, "epsilon": 1e-3},
        lambda p: torch.optim.RMSprop(p, alpha=0.9, eps=1e-3),
        True,
    ),
    "adam": (
        {"beta1": BETAS[0], "beta2": BETAS[1], "epsilon": 1e-3},
        lambda p: torch.optim.Adam(p, betas=BETAS, eps=1e-3),
        True,
    ),
    "adamw": (
        {"beta1": BETAS[0], "beta2": BETAS[1], "epsilon": 1e-3, "weight_decay": 0.1},
        lambda p: torch.optim.AdamW(p, betas=BETAS, eps=1e-3, weight_decay=0.1),
        True,
    ),
}

# A step has at most eight roundings, of numbers no larger than 8: weights and the sums of gradients in a velocity.
ROUNDINGS = STEPS * 8 * 8

# Newton-Schulz: the slope of five steps at zero, by which an early rounding grows, twice as PyTorch rounds otherwise.
QUINTIC = 2 * 3.4445**5


def shapes_of(seed, ndim=None):
    """A few random shapes, of one to four dimensions unless `ndim` says how many."""
    rng = np.random.default_rng(seed)
    ndims = [ndim] * 3 if ndim else [1, 2, 4]
    return {f"p{i}": tuple(int(n) for n in rng.integers(1, 8 if d == 2 else 6, size=d)) for i, d in enumerate(ndims)}


class Lockstep:
    """The same parameters and gradients here and in PyTorch, which holds the matrices of linear layers transposed."""

    def __init__(self, kind, dtype, shapes, scale=1.0, linear=False):
        self.kind, self.dtype, self.scale, self.linear = kind, dtype, scale, linear
        self.params = Parameters(shapes, kind.backend, dtype)
        self.tensors = {}
        for i, (name, shape) in enumerate(shapes.items()):
            start = normals(shape, i, dtype)
            self.params[name] = kind(start, dtype)
            self.tensors[name] = torch.nn.Parameter(torch.tensor(self.turned(start), dtype=getattr(torch, dtype)))

    def turned(self, array):
        """From one's layout to the other's."""
        return array.T if self.linear else array

    def grads(self, step):
        grads = self.params.like()
        for i, (name, tensor) in enumerate(self.tensors.items()):
            grad = self.scale * normals(tuple(self.params[name].shape), 1000 * (step + 1) + i, self.dtype)
            grads[name] = self.kind(grad, self.dtype)
            tensor.grad = torch.tensor(self.turned(grad), dtype=tensor.dtype)
        return grads

    def assert_equal(self, atol):
        for name, tensor in self.tensors.items():
            self.kind.check(self.params[name], self.dtype)
            self.kind.assert_close(self.params[name], self.turned(tensor.detach().numpy()), atol=atol)


def rate(step, varies=True):
    """A rate that goes up and down."""
    return 0.05 * (1.0 + 0.9 * math.sin(step)) if varies else 0.05


def in_float(monkeypatch):
    """Have PyTorch's Muon compute in the dtype of the parameters, not in bfloat16."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self)


@pytest.mark.parametrize("rule", PAIRS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_rule_takes_the_steps_of_pytorchs_optimizer(kind, dtype, rule, seed):
    settings, make, varies = PAIRS[rule]
    both = Lockstep(kind, dtype, shapes_of(seed))
    ours = Optimizer(both.params, rule, learning_rate=rate(0, varies), **settings)
    theirs = make(list(both.tensors.values()))
    for step in range(STEPS):
        grads = both.grads(step)
        ours.learning_rate = theirs.param_groups[0]["lr"] = rate(step, varies)
        ours.step(grads)
        theirs.step()
        both.assert_equal(ROUNDINGS * EPS[dtype])


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_muon_takes_the_steps_of_pytorchs(kind, dtype, seed, weight_decay, monkeypatch):
    in_float(monkeypatch)
    # beside such gradients the small numbers that the two add to a norm, in different ways, vanish
    both = Lockstep(kind, dtype, shapes_of(seed, ndim=2), scale=1e10, linear=True)
    settings = {"momentum": 0.8, "weight_decay": weight_decay}
    ours = Optimizer(both.params, "muon", learning_rate=rate(0), newton_schulz_steps=5, **settings)
    theirs = torch.optim.Muon(list(both.tensors.values()), ns_steps=5, **settings)
    for step in range(STEPS):
        grads = both.grads(step)
        ours.learning_rate = theirs.param_groups[0]["lr"] = rate(step)
        ours.step(grads)
        theirs.step()
    # rates of up to 0.1, times sqrt(7) for a matrix of one input and seven outputs
    both.assert_equal((ROUNDINGS + STEPS * 0.1 * math.sqrt(7) * QUINTIC) * EPS[dtype])


def test_muon_in_pytorchs_bfloat16_is_near(kind):
    both = Lockstep(kind, "float32", {"wide": (4, 6), "tall": (6, 3)}, linear=True)
    ours = Optimizer(both.params, "muon", learning_rate=0.01, momentum=0.8)
    theirs = torch.optim.Muon(list(both.tensors.values()), lr=0.01, momentum=0.8, weight_decay=0.0)
    for step in range(STEPS):
        grads = both.grads(step)
        ours.step(grads)
        theirs.step()
    # bfloat16 rounds by up to 2**-9, in 15 products a step, of a direction whose singular values are near 1
    both.assert_equal(STEPS * 0.01 * math.sqrt(2) * 15 * 2.0**-9)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5), (1, 7)])
@pytest.mark.parametrize("steps", [0, 3, 5])
def test_newton_schulz_is_airbenchs(kind, dtype, shape, steps):
    g = normals(shape, 3, dtype)
    expected = zeropower(torch.tensor(g, dtype=getattr(torch, dtype)), steps)
    kind.assert_close(newton_schulz(kind(g, dtype), steps), expected.numpy(), atol=QUINTIC * EPS[dtype])


@pytest.mark.parametrize("seed", [0, 1])
def test_muon_with_normalized_weights_takes_airbenchs_steps(kind, dtype, seed):
    both = Lockstep(kind, dtype, shapes_of(seed, ndim=4))
    settings = {"momentum": 0.6, "newton_schulz_steps": 3, "normalize_weights": 1}
    ours = Optimizer(both.params, "muon", learning_rate=rate(0), **settings)
    buffers = {name: torch.zeros_like(p) for name, p in both.tensors.items()}
    for step in range(STEPS):
        grads = both.grads(step)
        ours.learning_rate = rate(step)
        ours.step(grads)
        for name, p in both.tensors.items():
            buffers[name].mul_(0.6).add_(p.grad)
            g = p.grad.add(buffers[name], alpha=0.6)
            p.data.mul_(len(p.data) ** 0.5 / p.data.norm())
            p.data.add_(zeropower(g.reshape(len(g), -1), 3).view(g.shape), alpha=-rate(step))
    both.assert_equal((ROUNDINGS + STEPS * 0.1 * QUINTIC) * EPS[dtype])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_lion_takes_the_steps_of_its_paper(kind, dtype, weight_decay):
    both = Lockstep(kind, dtype, shapes_of(0))
    settings = {"beta1": 0.8, "beta2": 0.95, "weight_decay": weight_decay}
    ours = Optimizer(both.params, "lion", learning_rate=rate(0), **settings)
    w = {name: p.detach().numpy().astype("float64") for name, p in both.tensors.items()}
    m = {name: np.zeros_like(array) for name, array in w.items()}
    for step in range(STEPS):
        grads = both.grads(step)
        ours.learning_rate = rate(step)
        ours.step(grads)
        for name, p in both.tensors.items():
            g = p.grad.numpy().astype("float64")
            update = np.sign(0.8 * m[name] + 0.2 * g)
            w[name] = w[name] - rate(step) * (update + weight_decay * w[name])
            m[name] = 0.95 * m[name] + 0.05 * g
    for name, expected in w.items():
        kind.assert_close(both.params[name], expected, atol=ROUNDINGS * EPS[dtype])


@pytest.mark.parametrize("max_norm", [0.5, 3.0, 1e6])
@pytest.mark.parametrize("flat", [True, False])
def test_clipping_is_clip_grad_norm(kind, dtype, max_norm, flat):
    both = Lockstep(kind, dtype, shapes_of(2))
    params = both.params if flat else dict(both.params)
    ours = Optimizer(params, "sgd_momentum", learning_rate=0.05, clip_norm=max_norm)
    theirs = torch.optim.SGD(both.tensors.values(), lr=0.05, momentum=0.9)
    for step in range(STEPS):
        grads = both.grads(step)
        ours.step(grads if flat else dict(grads))
        torch.nn.utils.clip_grad_norm_(both.tensors.values(), max_norm)
        theirs.step()
    both.params.update(params)
    # the squares of up to 650 numbers are added, by halves in NumPy and PyTorch: some twenty roundings more a step
    both.assert_equal((ROUNDINGS + STEPS * 20 * 8) * EPS[dtype])


def test_groups_are_param_groups(kind, dtype, monkeypatch):
    """As in airbench94_muon: three groups under Nesterov's momentum, a bias that stops early, filters under Muon."""
    in_float(monkeypatch)
    shapes = {"whiten.b": (4,), "conv.W": (2, 3), "norm.beta": (3,), "conv2.W": (5, 2), "head.W": (3, 2)}
    size = 1e10  # of the gradients: the small numbers that the two add to muon's norm vanish beside it
    both = Lockstep(kind, dtype, shapes, scale=size, linear=True)
    bias_rate, head_rate, decay, stop = 0.053 / size, 0.67 / size, 0.004, 12 / STEPS
    biases = {"learning_rate": bias_rate, "weight_decay": decay / bias_rate}
    until = schedules.piecewise((0, 1), (stop, 0), (1, 0))
    ours = Optimizer(
        both.params,
        "nesterov",
        learning_rate=head_rate,
        momentum=0.85,
        weight_decay=decay / head_rate,
        clip_norm=5 * size,
        groups=[
            ParamGroup("whiten.b", schedule=until, **biases),
            ParamGroup("norm.*", **biases),
            ParamGroup("conv*.W", "muon", learning_rate=0.24, momentum=0.6),
        ],
    )
    p = both.tensors
    theirs = torch.optim.SGD(
        [
            {"params": [p["whiten.b"]], "lr": bias_rate, "weight_decay": decay / bias_rate},
            {"params": [p["norm.beta"]], "lr": bias_rate, "weight_decay": decay / bias_rate},
            {"params": [p["head.W"]], "lr": head_rate, "weight_decay": decay / head_rate},
        ],
        momentum=0.85,
        nesterov=True,
    )
    filters = torch.optim.Muon([p["conv.W"], p["conv2.W"]], lr=0.24, momentum=0.6, weight_decay=0.0)
    first = [group["lr"] for group in theirs.param_groups]
    for step in range(STEPS):
        grads = both.grads(step)
        torch.nn.utils.clip_grad_norm_(p.values(), 5 * size)
        t = step / STEPS
        for group, lr, factor in zip(theirs.param_groups, first, (max(0, 1 - t / stop), 1 - t, 1 - t), strict=True):
            group["lr"] = lr * factor
        filters.param_groups[0]["lr"] = 0.24 * (1 - t)
        theirs.step()
        filters.step()
        ours.set_progress(t, "linear")
        ours.step(grads)
    # the norm for clipping has twenty roundings more a step; sqrt(3 / 2) scales the steps of two inputs, three outputs
    both.assert_equal((ROUNDINGS + STEPS * 20 * 8 + STEPS * 0.24 * math.sqrt(1.5) * QUINTIC) * EPS[dtype])


def rates_of(scheduler_of, n):
    """The factors of a scheduler of PyTorch's, before each of n steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = scheduler_of(optimizer)
    rates = []
    for _ in range(n):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step() if len(rates) < n else None
    return rates


@pytest.mark.parametrize("n", [2, 7, 200])
@pytest.mark.parametrize("final", [0.01, 0.5])
def test_exponential_is_exponential_lr(n, final):
    gamma = final ** (1 / n)
    expected = rates_of(lambda o: torch.optim.lr_scheduler.ExponentialLR(o, gamma), n + 1)
    received = [schedules.exponential(final)(i / n) for i in range(n + 1)]
    # the scheduler multiplies n times, by a gamma that is rounded
    assert received == pytest.approx(expected, abs=2 * n * EPS["float64"])


@pytest.mark.parametrize("n", [2, 7, 200])
def test_cosine_is_cosine_annealing_lr(n):
    expected = rates_of(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, n), n + 1)
    # the scheduler goes from one rate to the next, n times; near the end it divides by numbers like (1 / n)²
    assert [schedules.cosine(i / n) for i in range(n + 1)] == pytest.approx(expected, abs=n * 8 * EPS["float64"])


@pytest.mark.parametrize(("n", "share"), [(10, 0.3), (200, 0.25), (200, 0.5)])
def test_one_cycle_is_one_cycle_lr(n, share):
    start, end = 1 / 25, 1e-4
    expected = rates_of(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o, 1.0, total_steps=n, pct_start=share, div_factor=1 / start, final_div_factor=start / end
        ),
        n,
    )
    peak = (share * n - 1) / (n - 1)  # PyTorch counts steps from 0, and has the peak at step share * n - 1
    received = [schedules.one_cycle(peak, start, end)(i / (n - 1)) for i in range(n)]
    assert received == pytest.approx(expected, abs=16 * EPS["float64"])


@pytest.mark.parametrize("n", [10, 200])
def test_step_is_multi_step_lr(n):
    milestones = (n // 2, 3 * n // 4)
    expected = rates_of(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, milestones, gamma=0.1), n)
    received = [schedules.steps([m / n for m in milestones])(i / n) for i in range(n)]
    assert received == pytest.approx(expected, abs=2 * EPS["float64"])


def test_warm_up_is_linear_lr_and_what_follows():
    n, warmup = 40, 10
    expected = rates_of(
        lambda o: torch.optim.lr_scheduler.LambdaLR(
            o,
            lambda i: i / warmup if i < warmup else (n - i) / (n - warmup),  # as in many a training script
        ),
        n + 1,
    )
    received = [schedules.warmup_linear(warmup / n)(i / n) for i in range(n + 1)]
    assert received == pytest.approx(expected, abs=4 * EPS["float64"])


def test_piecewise_is_airbenchs_triangle():
    n, up = 476, int(476 * 0.23)

    def get_lr(step):
        if step < up:
            return 0.2 * (1 - step / up) + step / up
        share = (step - up) / (n - up)
        return 1.0 * (1 - share) + 0.07 * share

    triangle = schedules.piecewise((0, 0.2), (up / n, 1), (1, 0.07))
    assert [triangle(i / n) for i in range(n + 1)] == pytest.approx(
        [get_lr(i) for i in range(n + 1)], abs=4 * n * EPS["float64"]
    )


class Net(torch.nn.Module):
    """Parameters and a batch norm's statistics, for PyTorch's averages."""

    def __init__(self, dtype):
        super().__init__()
        self.fc = torch.nn.Linear(4, 3, dtype=getattr(torch, dtype))
        self.norm = torch.nn.BatchNorm1d(3, dtype=getattr(torch, dtype))

    def set(self, seed, dtype):
        with torch.no_grad():
            for i, tensor in enumerate(t for t in self.state_dict().values() if t.is_floating_point()):
                tensor.copy_(torch.tensor(normals(tuple(tensor.shape), 100 * seed + i, dtype)))


class Copy:
    """The parameters and statistics of a `Net` on a backend."""

    def __init__(self, kind, net, dtype):
        self.kind, self.dtype = kind, dtype
        self.params = Parameters({n: tuple(p.shape) for n, p in net.named_parameters()}, kind.backend, dtype)
        self.read(net)

    def read(self, net):
        self.params.update((n, self.kind(p.detach().numpy(), self.dtype)) for n, p in net.named_parameters())
        statistics = {n: b for n, b in net.named_buffers() if b.is_floating_point()}
        self.state = {n: self.kind.writable(b.numpy(), self.dtype) for n, b in statistics.items()}


@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_ema_is_pytorchs_averaged_model(kind, dtype, decay):
    net = Net(dtype)
    net.set(0, dtype)
    ours = Copy(kind, net, dtype)
    ema = EMA(ours.params, decay, state=lambda: ours.state)
    averaged = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(decay), use_buffers=True
    )
    averaged.update_parameters(net)  # PyTorch's first is a copy
    for step in range(STEPS):
        net.set(step + 1, dtype)
        ours.read(net)
        ema.update()
        averaged.update_parameters(net)
    expected = averaged.module.state_dict()
    for name, average in {**ema.average, **ema.average_state}.items():
        kind.check(average, dtype)
        # three roundings a step of numbers up to 4, and PyTorch's three
        kind.assert_close(average, expected[name].numpy(), atol=STEPS * 6 * 4 * EPS[dtype])


def test_lookahead_is_airbenchs(kind, dtype):
    net = Net(dtype)
    net.set(0, dtype)
    ours = Copy(kind, net, dtype)

    def decay(progress):
        return 0.95**5 * progress**3

    lookahead = Lookahead(ours.params, 5, decay, state=lambda: ours.state)
    slow = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    def update(share):
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                slow[name].lerp_(tensor, 1 - share)
                tensor.copy_(slow[name])

    for step in range(1, STEPS + 3):
        net.set(step, dtype)
        ours.read(net)
        lookahead.update(step / (STEPS + 2))
        if step % 5 == 0:
            update(decay(step / (STEPS + 2)))
    lookahead.finish()
    update(1.0)
    expected = net.state_dict()
    for name, array in {**ours.params, **ours.state}.items():
        kind.check(array, dtype)
        kind.assert_close(array, expected[name].numpy(), atol=STEPS * 6 * 4 * EPS[dtype])


def test_every_rule_has_an_oracle():
    assert {*PAIRS, "lion", "muon"} == set(RULES)
