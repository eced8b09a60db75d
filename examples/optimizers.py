"""Update rules compared: one net, the same first weights, five rules.

python examples/optimizers.py                       the embedded digits, some seconds
python examples/optimizers.py --dataset cifar10     the course's experiment on 4,000 images
"""

from common import at_least, new_parser, read, train

from xpnn import FullyConnectedNet, Solver
from xpnn.training.report import plot_comparison

parser = new_parser(__doc__, "optimizers.png")
parser.add_argument("--epochs", type=at_least(1), default=5)
args, where, images = read(parser)
images = images.take(min(4000, len(images.X_train)))
mean = images.mean_image.reshape(-1)

weight_scale = 5e-2 if args.dataset == "cifar10" else None  # None: Kaiming's, from the layer's own width

learning_rates = {
    "sgd": 1e-2,
    "sgd_momentum": 1e-2,
    "sgd_nesterov_momentum": 1e-2,
    "rmsprop": 2e-4,
    "adam": 1e-3,
}
solvers = {}
for rule, learning_rate in learning_rates.items():
    net = FullyConnectedNet(
        [100] * 5, input_dim=mean.size, weight_scale=weight_scale, standardize=(mean, None), backend=where, rng=0
    )
    solver = Solver(
        net,
        images.arrays(),
        update_rule=rule,
        optim_config={"learning_rate": learning_rate},
        num_epochs=args.epochs,
        batch_size=100,
        seed=0,
        verbose=False,
    )
    train(solver)
    solvers[rule] = solver
    train_acc, val_acc = solver.train_acc_history[-1], solver.val_acc_history[-1]
    print(f"{rule:22s} loss {solver.loss_history[-1]:.3f}  train {train_acc:.3f}  val {val_acc:.3f}")

plot_comparison(args.out, solvers, f"update rules on {args.dataset}, on {where}")
print(f"figure in {args.out}")
