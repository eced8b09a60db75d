"""First steps of airbench94 on CIFAR-10, here and in PyTorch: the same weights and batches, and so the same losses.

python benchmarks/airbench_parity.py --data FOLDER      needs pytest and torch; some minutes on two cores of a CPU

Both train by the recipe of ``xpnn train cifar10 --model airbench``. PyTorch's side is the transcription of
airbench94_muon.py in tests/oracle, in one precision. The whitening is of the first 5,000 images, crops and flips are
drawn by xpnn and given to both. Exits with 1 where a loss differs by more than 1e-4 of it.

The last column is PyTorch against itself, with the channels last in memory: another order of the same additions. Both
columns grow from step to step: where two pixels are nearly alike a rounding decides which of them max pooling takes,
and so which gradients go where. In float64 that is rare, with ``--dtype float32`` it is not.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "oracle"))

import torch
import torch_airbench
import torch_nets

from xpnn import backend as backends
from xpnn import data
from xpnn.data import AlternatingFlip, Batch, Compose, RandomCrop
from xpnn.layers import softmax_loss
from xpnn.optim import Optimizer
from xpnn.random import Generator
from xpnn.training.recipes import RECIPES
from xpnn.training.settings import Settings

LIMIT = 1e-4  # relative
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder of CIFAR-10")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--lr", type=float, help="Muon's; the recipe's for the batch size by default")
    parser.add_argument("--dtype", default="float64", choices=["float64", "float32"])
    parser.add_argument("--backend", default="numpy")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    recipe, dtype = RECIPES["airbench"], getattr(torch, args.dtype)
    settings = Settings.of("cifar10", model="airbench", batch_size=args.batch_size, lr=args.lr, dtype=args.dtype)
    backend = backends.get(args.backend).require()
    images = data.load_cifar10(args.data)
    total_steps = settings.epochs * (len(images.X_train) // args.batch_size)

    loss = partial(softmax_loss, label_smoothing=settings.label_smoothing, reduction=recipe.reduction(settings))
    model = recipe.build(
        images, widths=settings.widths, dtype=args.dtype, loss=loss, backend=backend, rng=Generator(args.seed)
    )
    config, groups = recipe.optimizer(settings, model)
    optimizer = Optimizer(model.params, settings.optimizer, groups=groups, **config)
    nets = [torch_nets.Airbench(settings.widths).to(dtype, memory_format=layout) for layout in LAYOUTS]
    for net in nets:
        net.load_state_dict(model.to_torch_state_dict())
    trainings = [torch_airbench.Training(net, args.batch_size, total_steps, settings.lr) for net in nets]

    augment, rng = Compose([AlternatingFlip(), RandomCrop(2)]), Generator(args.seed, 1)
    order = rng.permutation(len(images.X_train), backend="numpy")
    seconds, differences = [0.0, 0.0], []
    print(f"{'step':>4s}{'xpnn':>14s}{'PyTorch':>14s}{'difference':>12s}{'its own':>12s}")
    for step in range(args.steps):
        indices = order[step * args.batch_size : (step + 1) * args.batch_size]
        batch = Batch(images.y_train[indices], indices, rng, num_examples=len(images.X_train), dtype=args.dtype)
        x = augment(images.X_train[indices], batch)

        start = time.perf_counter()
        optimizer.set_progress(step / total_steps, settings.schedule)
        ours, grads = model.loss(backend.asarray(x), backend.asarray(batch.y))
        optimizer.step(grads)
        ours = float(ours)
        middle = time.perf_counter()
        inputs, labels = torch_airbench.normalize(torch.from_numpy(x), dtype), torch.from_numpy(batch.y)
        theirs = float(trainings[0].step(inputs, labels))
        seconds = [seconds[0] + middle - start, seconds[1] + time.perf_counter() - middle]
        again = float(trainings[1].step(inputs.contiguous(memory_format=LAYOUTS[1]), labels))

        difference, own = (abs(value - theirs) / abs(theirs) for value in (ours, again))
        differences.append(difference)
        print(f"{step + 1:4d}{ours:14.6f}{theirs:14.6f}{difference:12.1e}{own:12.1e}", flush=True)
    print(f"largest difference {max(differences):.1e}, at most {LIMIT:.0e}; {args.dtype}, batches of {args.batch_size}")
    print(f"xpnn {seconds[0]:.1f} s on {backend}, PyTorch {torch.__version__} {seconds[1]:.1f} s")
    if not all(difference <= LIMIT for difference in differences):  # NaN is none
        raise SystemExit(1)


if __name__ == "__main__":
    main()
