"""Whole trainings of airbench on CIFAR-10: seconds and test accuracy, by xpnn and by PyTorch, by the same recipe.

The images lie on the device. The time is that of the whitening, the first weights, the training, and the accuracy over
mirrored and shifted views of the 10,000 test images. One training before that is not timed: it compiles and tunes. Both
train on all 50,000 images. xpnn's Solver looks at one image after each epoch, within the time.

PyTorch's side is the transcription of airbench94_muon.py in tests/oracle, with the original's way to make batches. The
original compiles in the mode max-autotune, which takes minutes: ``gpu.py --mode max-autotune``.
"""

import time
from collections.abc import Iterator
from typing import Any

import gpu_steps
from gpu_steps import VARIANTS

BATCH, TTA, WHITENING = 2000, "mirror-translate", 5000


def train(variant: str, dtype: str, data: str, epochs: int, runs: int, **options: Any) -> dict[str, list[float]]:
    """Seconds and test accuracy of each training."""
    from xpnn.data.cifar10 import read_cifar10

    images = read_cifar10(data)[:4]
    training = (_Xpnn if variant.startswith("xpnn") else _Torch)(images, dtype, epochs, **VARIANTS[variant] | options)
    found: dict[str, list[float]] = {"seconds": [], "accuracy": []}
    for seed in range(runs + 1):
        training.synchronize()
        start = time.perf_counter()
        accuracy = training.run(seed)
        if seed > 0:
            found["seconds"].append(time.perf_counter() - start)
            found["accuracy"].append(accuracy)
    return found


class _Xpnn:
    def __init__(
        self,
        images: tuple[Any, ...],
        dtype: str,
        epochs: int,
        *,
        graph: bool,
        backend: str = "cupy",
        batch: int = BATCH,
        widths: tuple[int, ...] = (64, 256, 256),
    ) -> None:
        from xpnn import backend as backends

        self.backend = backends.get(backend).require()
        self.whitened = images[0][:WHITENING]
        self.X, self.y, self.X_test, self.y_test = map(self.backend.asarray, images)
        self.dtype, self.epochs, self.batch, self.widths, self.graph = dtype, epochs, batch, widths, graph

    def synchronize(self) -> None:
        self.backend.synchronize()

    def run(self, seed: int) -> float:
        from xpnn import Airbench, Solver
        from xpnn.data import AlternatingFlip, RandomCrop
        from xpnn.training import Callback

        class Test(Callback):  # the weights of the last step: afterwards the Solver puts its best ones back
            def on_train_end(self, solver: Solver) -> None:
                accuracy.append(solver.check_accuracy(*test, tta=TTA))

        accuracy: list[float] = []
        test = self.X_test, self.y_test
        model = Airbench(self.whitened, widths=self.widths, dtype=self.dtype, backend=self.backend, rng=seed)
        solver = Solver(
            model,
            {"X_train": self.X, "y_train": self.y, "X_val": self.X_test[:1], "y_val": self.y_test[:1]},
            **gpu_steps.recipe(model, self.batch, self.dtype),
            graph=self.graph,
            num_epochs=self.epochs,
            augment=[AlternatingFlip(), RandomCrop(2)],
            num_train_samples=1,
            callbacks=[Test()],
            seed=seed,
            verbose=False,
        )
        solver.train()
        gpu_steps.check_graph(solver, self.graph)
        return accuracy[0]


class _Torch:
    def __init__(
        self,
        images: tuple[Any, ...],
        dtype: str,
        epochs: int,
        *,
        mode: str | None,
        device: str = "cuda",
        batch: int = BATCH,
        widths: tuple[int, ...] = (64, 256, 256),
    ) -> None:
        import torch
        import torch_airbench
        import torch_nets

        gpu_steps.allow_tf32(False)
        self.kind, self.epochs, self.batch, self.device = getattr(torch, dtype), epochs, batch, device
        X, y, X_test, y_test = (torch.tensor(array, device=device) for array in images)
        last = {"memory_format": torch.channels_last}
        self.X, self.X_test = (torch_airbench.normalize(x, self.kind).contiguous(**last) for x in (X, X_test))
        self.y, self.y_test = y, y_test
        self.whitened = torch_airbench.normalize(X[:WHITENING])
        self.net = torch_nets.Airbench(widths).to(device).to(**last)
        gpu_steps.in_precision(self.net, self.kind)
        self.functions = gpu_steps.airbench_functions(self.net, mode)
        self.scores = gpu_steps.compiled(lambda x: views(self.net, x), mode)
        self.graphs = mode is not None

    def synchronize(self) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()

    def run(self, seed: int) -> float:
        import torch

        torch.manual_seed(seed)
        first_weights(self.net, self.whitened)
        total = self.epochs * (len(self.X) // self.batch)
        training = gpu_steps.airbench_training(self.net, self.batch, total, self.functions)
        for inputs, labels in batches(self.X, self.y, self.batch, self.epochs):
            if self.graphs:
                torch.compiler.cudagraph_mark_step_begin()
            training.step(inputs, labels)
        self.net.eval()
        with torch.inference_mode():
            parts = zip(self.X_test.split(self.batch), self.y_test.split(self.batch), strict=True)
            right = sum((self.scores(x).argmax(1) == y).sum() for x, y in parts)
        return int(right) / len(self.y_test)


def first_weights(net: Any, images: Any) -> None:
    """The original's."""
    import torch
    import torch_airbench

    with torch.no_grad():
        for module in net.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            if isinstance(module, torch.nn.Conv2d) and module is not net.whiten:
                torch.nn.init.dirac_(module.weight[: module.in_channels])
        net.head.weight.mul_(1 / net.head.weight.std())
        net.whiten.weight.copy_(torch_airbench.whitening_filters(images))


def batches(X: Any, y: Any, size: int, epochs: int) -> Iterator[tuple[Any, Any]]:
    """Each image flipped at random once and in every second epoch, and cut out anew of its reflection."""
    import torch

    flipped = torch.where(torch.rand(len(X), 1, 1, 1, device=X.device) < 0.5, X.flip(-1), X)
    padded = torch.nn.functional.pad(flipped, (2,) * 4, "reflect")
    for epoch in range(epochs):
        images = crops(padded, 2)
        images = images.flip(-1) if epoch % 2 else images
        for indices in torch.randperm(len(X), device=X.device).split(size):
            if len(indices) == size:
                yield images[indices], y[indices]


def crops(padded: Any, reach: int) -> Any:
    """A cut-out of each image, shifted by up to `reach` pixels each way."""
    import torch

    n, _, height, width = padded.shape
    shifts = torch.randint(2 * reach + 1, (2, n, 1), device=padded.device)
    size = height - 2 * reach, width - 2 * reach
    rows, columns = (shifts[axis] + torch.arange(size[axis], device=padded.device) for axis in (0, 1))
    last = padded.permute(0, 2, 3, 1)  # the channels are last in memory, and so they stay
    each = torch.arange(n, device=padded.device)[:, None, None]
    return last[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def views(net: Any, x: Any) -> Any:
    """The original's second level: the image, and shifted by a pixel up left and down right, each mirrored, too."""
    import torch

    def mirrored(x: Any) -> Any:
        return 0.5 * net(x) + 0.5 * net(x.flip(-1))

    padded = torch.nn.functional.pad(x, (1,) * 4, "reflect")
    height, width = x.shape[2:]
    up_left, down_right = (padded[:, :, i : i + height, i : i + width] for i in (0, 2))
    return 0.5 * mirrored(x) + 0.25 * (mirrored(up_left) + mirrored(down_right))
