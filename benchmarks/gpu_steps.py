"""Training on a device: the same nets, batches and updates by xpnn's Solver and by PyTorch, each at its quickest.

The update is Adam; airbench has its recipe's, Muon and Nesterov momentum. Images lie on the device: xpnn keeps bytes
and standardizes those of a batch in the net, PyTorch keeps them standardized in the type that it computes in, channels
last. A batch is drawn beforehand and gathered in the step. Half precision has parameters in float32 (PyTorch's
autocast, with a loss scale for float16), except PyTorch's airbench, whose original is in half throughout.

PyTorch compiled has loss and gradients from torch.compile, and the whole step, gathering and update included, in one
CUDA graph, as xpnn has. The graphs that torch.compile makes itself would leave out the update.
"""

import itertools
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import steps

MEAN, STD = 127.5, 73.9  # of bytes that are all as likely
RATE, EPOCHS = 1e-3, 10_000  # of Adam; more than are ever timed
IMAGES = 50_000  # CIFAR-10's number
CHANNELS, SIDE = 3, 32

MODE = "reduce-overhead"  # of torch.compile: with CUDA graphs
WARM = 5  # steps before a graph is captured
VARIANTS: dict[str, dict[str, Any]] = {
    "xpnn eager": {"graph": False},
    "xpnn graph": {"graph": True},
    "torch eager": {"mode": None},
    "torch compiled": {"mode": MODE},
}

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "oracle"))


class NotThere(Exception):
    """A variant that cannot be measured, in words."""


def pixels(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, CHANNELS, SIDE, SIDE), dtype=np.uint8)
    return images, rng.integers(0, steps.CLASSES, count)


def model_and_training(net: str, batch: int, dtype: str, backend: str) -> tuple[Any, dict[str, Any]]:
    """An xpnn model of bytes, and how the Solver is to train it."""
    dtype = "float32" if dtype == "tf32" else dtype
    if net == "airbench":
        model = steps.xpnn_model(net, dtype=dtype, backend=backend)
        return model, recipe(model, batch, dtype)
    model = steps.xpnn_model(net, dtype=dtype, backend=backend, standardize=(MEAN, STD))
    return model, {"update_rule": "adam", "optim_config": {"learning_rate": RATE}, "batch_size": batch}


def recipe(model: Any, batch: int, dtype: str) -> dict[str, Any]:
    """What airbench's recipe gives the Solver, but for its epochs and augmentation; it also sets the model's loss."""
    from xpnn.losses import softmax_loss
    from xpnn.training.recipes import RECIPES
    from xpnn.training.settings import Settings

    airbench = RECIPES["airbench"]
    settings = Settings.of("cifar10", model="airbench", batch_size=batch, dtype=dtype)
    reduction = airbench.reduction(settings)
    model.loss_function = partial(softmax_loss, label_smoothing=settings.label_smoothing, reduction=reduction)
    config, groups = airbench.optimizer(settings, model)
    names = ("schedule", "sampling", "batch_size")
    return {
        "update_rule": settings.optimizer,
        "optim_config": config,
        "param_groups": groups,
        "reduction": reduction,
        **{name: getattr(settings, name) for name in names},
    }


def optimizer(model: Any, training: dict[str, Any]) -> Any:
    """The Solver's, without one."""
    from xpnn.optim import Optimizer

    rule, groups = training["update_rule"], training.get("param_groups", ())
    return Optimizer(model.params, rule, groups=groups, **training["optim_config"])


def check_graph(solver: Any, wanted: bool) -> None:
    if wanted and (solver.graph_reason is not None or not solver.graph_replays):
        raise NotThere(f"no graph: {solver.graph_reason or 'no step was replayed'}")


def xpnn(
    net: str,
    batch: int,
    dtype: str,
    *,
    graph: bool = False,
    backend: str = "cupy",
    count: int = IMAGES,
    epochs: int = EPOCHS,
    callbacks: Sequence[Any] = (),
) -> Any:
    """Return a Solver, whose steps are to be timed."""
    from xpnn import Solver

    X, y = pixels(count)
    model, training = model_and_training(net, batch, dtype, backend)
    data = {"X_train": X, "y_train": y, "X_val": X[:1], "y_val": y[:1]}
    others = {"num_epochs": epochs, "num_train_samples": 1, "verbose": False, "seed": 0, "callbacks": list(callbacks)}
    return Solver(model, data, **training, **others, graph=graph)


def torch(
    net: str, batch: int, dtype: str, *, mode: str | None = None, device: str = "cuda", count: int = IMAGES
) -> steps.Step:
    """Return a step; `mode` is torch.compile's for loss and gradients, None for none, and for launches one by one."""
    import torch as t

    allow_tf32(dtype == "tf32")
    model, is_airbench = steps.torch_net(net).to(device), net == "airbench"
    if net not in steps.FULLY_CONNECTED:
        model = model.to(memory_format=t.channels_last)
    kind = getattr(t, "float32" if dtype == "tf32" else dtype)
    if is_airbench:
        in_precision(model, kind)
    images, labels = (t.from_numpy(array).to(device) for array in pixels(count))
    rows = ((images.permute(0, 2, 3, 1).to(t.float32) - MEAN) / STD).to(kind).reshape(count, -1)
    del images
    if device == "cuda":
        t.cuda.empty_cache()  # of what preparing the images took
    order = itertools.cycle(t.randint(count, (max(count // batch, 1), batch), device=device).unbind())
    indices = t.empty(batch, dtype=t.int64, device=device)
    x, y = rows.new_empty(batch, rows.shape[1]), labels.new_empty(batch)
    inputs = x if net in steps.FULLY_CONNECTED else x.view(batch, SIDE, SIDE, CHANNELS).permute(0, 3, 1, 2)

    if is_airbench:
        functions = airbench_functions(model, mode, graphs=False)
        training = airbench_training(model, batch, EPOCHS * (count // batch), functions)
        if mode is not None:
            training.keep_rates_on(device)

        def update() -> None:
            training.update(inputs, y)

    else:
        training = None
        optimizer = t.optim.Adam(model.parameters(), lr=RATE, fused=True, capturable=mode is not None)
        scaler = t.amp.GradScaler(device, enabled=dtype == "float16")  # with a fused Adam, nothing waits for it

        def loss() -> Any:
            with t.autocast(device, kind, enabled=kind != t.float32):
                scores = model(inputs)
            return t.nn.functional.cross_entropy(scores.float(), y)

        loss_of = compiled(loss, mode, graphs=False)

        def update() -> None:
            optimizer.zero_grad()
            scaler.scale(loss_of()).backward()
            scaler.step(optimizer)
            scaler.update()

    def work() -> None:
        t.index_select(rows, 0, indices, out=x)
        t.index_select(labels, 0, indices, out=y)
        update()

    launch = work if mode is None else Captured(work, device)

    def step() -> None:
        indices.copy_(next(order))
        if training is not None:
            training.prepare()
        launch()

    return step


def compiled(function: Callable[..., Any], mode: str | None, *, graphs: bool = True) -> Callable[..., Any]:
    """The function by torch.compile in that mode, with or without the mode's CUDA graphs; for None, as it is."""
    import torch as t

    if mode is None:
        return function
    options = t._inductor.list_mode_options(mode) | ({} if graphs else {"triton.cudagraphs": False})
    return t.compile(function, options=options)


class Captured:
    """Work as one CUDA graph, captured at the first call, once it is warm; on a CPU it is done as it is."""

    def __init__(self, work: Callable[[], None], device: str) -> None:
        self.launch, self.is_captured = work, device != "cuda"

    def __call__(self) -> None:
        if not self.is_captured:
            self.launch, self.is_captured = graph_of(self.launch), True
        self.launch()


def graph_of(work: Callable[[], None]) -> Callable[[], None]:
    import torch as t

    stream = t.cuda.Stream()
    stream.wait_stream(t.cuda.current_stream())
    with t.cuda.stream(stream):
        for _ in range(WARM):
            work()
    t.cuda.current_stream().wait_stream(stream)
    graph = t.cuda.CUDAGraph()
    with t.cuda.graph(graph):
        work()
    return graph.replay


def allow_tf32(allowed: bool) -> None:
    """xpnn's float32 is exact unless TF32 is asked for, and so is PyTorch's then."""
    import torch as t

    t.backends.cuda.matmul.allow_tf32 = t.backends.cudnn.allow_tf32 = allowed
    t.backends.cudnn.benchmark = True


def in_precision(net: Any, kind: Any) -> None:
    """The original's: all in one type but for the batch norms, in float32."""
    import torch_nets

    net.to(kind)
    for module in net.modules():
        if isinstance(module, torch_nets.AirbenchBatchNorm):
            module.float()


def airbench_functions(
    net: Any, mode: str | None, *, graphs: bool = True
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The loss of a batch, and Newton-Schulz steps in bfloat16, as in the original; compiled unless mode is None."""
    import torch as t
    import torch_airbench

    def loss(inputs: Any, labels: Any) -> Any:
        return torch_airbench.loss_of(net, inputs, labels)

    def orthogonalize(g: Any) -> Any:
        return torch_airbench.zeropower(g.to(t.bfloat16)).to(g.dtype)

    if mode is None:
        return loss, orthogonalize
    return compiled(loss, mode, graphs=graphs), t.compile(orthogonalize, dynamic=False)


def airbench_training(net: Any, batch: int, total_steps: int, functions: tuple[Callable[..., Any], ...]) -> Any:
    import torch_airbench

    loss, orthogonalize = functions
    rate = 0.24 * (batch / 2000) ** 0.5  # as in xpnn's recipe
    fused = net.head.weight.is_cuda  # on the CPU PyTorch's fused SGD leaves most of an array of half types as it was
    training = torch_airbench.Training(net, batch, total_steps, rate, orthogonalize=orthogonalize, fused=fused)
    training.loss = loss
    return training
