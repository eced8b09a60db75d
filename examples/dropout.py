"""Dropout as a regularizer: it fits the training images less and loses nothing on others.

python examples/dropout.py                       200 of the embedded digits, some seconds
python examples/dropout.py --dataset cifar10     the course's experiment on 500 images
"""

from common import at_least, new_parser, probability, read, train
from matplotlib.figure import Figure

from xpnn import FullyConnectedNet, Solver

parser = new_parser(__doc__, "dropout.png")
parser.add_argument("--epochs", type=at_least(1), help="default 25 for cifar10, 60 for digits")
parser.add_argument("--p", type=probability, help="probability to drop; default 0.6 for cifar10, 0.3 for digits")
args, where, images = read(parser)
is_cifar10 = args.dataset == "cifar10"
if args.epochs is None:
    args.epochs = 25 if is_cifar10 else 60
if args.p is None:
    args.p = 0.6 if is_cifar10 else 0.3
images = images.take(min(500 if is_cifar10 else 200, len(images.X_train)))
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
    train(solver)
    train_axes.plot(solver.train_acc_history, "-o", markersize=3, color=color, label=f"p = {p:g}")
    val_axes.plot(solver.val_acc_history, "-o", markersize=3, color=color, label=f"p = {p:g}")
    print(f"dropout {p:g}: train {solver.train_acc_history[-1]:.3f}  val {solver.val_acc_history[-1]:.3f}")

for axes, title in ((train_axes, "training accuracy"), (val_axes, "validation accuracy")):
    axes.set(title=title, xlabel="epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
figure.savefig(args.out, dpi=120)
print(f"figure in {args.out}")
