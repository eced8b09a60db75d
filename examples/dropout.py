"""Dropout as a regularizer: it fits the training images less and loses nothing on others.

python examples/dropout.py                       200 of the embedded digits, some seconds
python examples/dropout.py --dataset cifar10     the course's experiment on 500 images
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from xpnn import FullyConnectedNet, Solver, backend, data

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--backend", default="auto", help="numpy, cupy, torch, array-api-strict or auto")
parser.add_argument("--dataset", default="digits", choices=["digits", "cifar10"])
parser.add_argument("--data", help="folder of CIFAR-10")
parser.add_argument("--epochs", type=int, help="default 25 for cifar10, 60 for digits")
parser.add_argument("--p", type=float, help="probability to drop; default 0.6 for cifar10, 0.3 for digits")
parser.add_argument("--out", type=Path, default=Path("figures/dropout.png"))
args = parser.parse_args()
args.out.parent.mkdir(parents=True, exist_ok=True)

where = backend.get(args.backend)
is_cifar10 = args.dataset == "cifar10"
if args.epochs is None:
    args.epochs = 25 if is_cifar10 else 60
if args.p is None:
    args.p = 0.6 if is_cifar10 else 0.3
images = data.load(args.dataset, args.data).take(500 if is_cifar10 else 200)
mean = images.mean_image.reshape(-1)

figure = Figure(figsize=(9, 3.8), layout="constrained")
train_axes, val_axes = figure.subplots(1, 2, sharey=True)
for p, color in ((0.0, "#E69F00"), (args.p, "#0072B2")):
    net = FullyConnectedNet(
        [100] * 3,
        input_dim=mean.size,
        dropout=p,
        weight_scale=1e-2 if is_cifar10 else None,  # None: Kaiming's, from the layer's own width
        standardize=(mean, None),
        backend=where,
        rng=0,
    )
    solver = Solver(
        net,
        images.arrays(),
        update_rule="adam",
        optim_config={"learning_rate": 5e-4},
        num_epochs=args.epochs,
        batch_size=100 if is_cifar10 else 20,
        seed=0,
        verbose=False,
    )
    solver.train()
    train_axes.plot(solver.train_acc_history, "-o", markersize=3, color=color, label=f"p = {p:g}")
    val_axes.plot(solver.val_acc_history, "-o", markersize=3, color=color, label=f"p = {p:g}")
    print(f"dropout {p:g}: train {solver.train_acc_history[-1]:.3f}  val {solver.val_acc_history[-1]:.3f}")

for axes, title in ((train_axes, "training accuracy"), (val_axes, "validation accuracy")):
    axes.set(title=title, xlabel="epoch")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
figure.savefig(args.out, dpi=120)
print(f"figure in {args.out}")
