"""Batch norm against the scale of the first weights: with it, a net learns over a far wider range of scales.

python examples/batchnorm.py                       the embedded digits, some seconds
python examples/batchnorm.py --dataset cifar10     the course's experiment on 1,000 images
"""

from common import at_least, new_parser, read, train
from matplotlib.figure import Figure

from xpnn import FullyConnectedNet, Solver

parser = new_parser(__doc__, "batchnorm.png")
parser.add_argument("--epochs", type=at_least(1), default=10)
parser.add_argument("--scales", type=at_least(2), default=9, help="how many scales from 1e-4 to 1")
args, where, images = read(parser)
images = images.take(min(1000, len(images.X_train)))
mean = images.mean_image.reshape(-1)
scales = [10 ** (4 * i / (args.scales - 1) - 4) for i in range(args.scales)]


def trained(use_batchnorm: bool, weight_scale: float) -> Solver:
    net = FullyConnectedNet(
        [50] * 7,
        input_dim=mean.size,
        use_batchnorm=use_batchnorm,
        weight_scale=weight_scale,
        standardize=(mean, None),
        backend=where,
        rng=0,
    )
    solver = Solver(
        net,
        images.arrays(),
        update_rule="adam",
        optim_config={"learning_rate": 1e-3},
        num_epochs=args.epochs,
        batch_size=50,
        seed=0,
        verbose=False,
    )
    train(solver)
    return solver


figure = Figure(figsize=(12, 3.8), layout="constrained")
best_val, best_train, last_loss = figure.subplots(1, 3)
for use_batchnorm, color in ((False, "#E69F00"), (True, "#0072B2")):
    label = "with batch norm" if use_batchnorm else "without"
    solvers = [trained(use_batchnorm, scale) for scale in scales]
    best_val.semilogx(scales, [max(s.val_acc_history) for s in solvers], "-o", color=color, label=label)
    best_train.semilogx(scales, [max(s.train_acc_history) for s in solvers], "-o", color=color, label=label)
    losses = [sum(s.loss_history[-20:]) / len(s.loss_history[-20:]) for s in solvers]
    last_loss.loglog(scales, losses, "-o", color=color, label=label)
    for scale, solver in zip(scales, solvers, strict=True):
        print(f"{label:16s} weight scale {scale:.0e}  val {max(solver.val_acc_history):.3f}")

for axes, title in ((best_val, "validation accuracy"), (best_train, "training accuracy"), (last_loss, "last loss")):
    axes.set(title=title, xlabel="standard deviation of the first weights")
    axes.grid(alpha=0.25)
best_val.legend(frameon=False)
figure.savefig(args.out, dpi=120)
print(f"figure in {args.out}")
