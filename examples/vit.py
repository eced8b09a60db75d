"""A small vision transformer, and what it learns of where a patch lies.

python examples/vit.py                       the embedded digits, some seconds
python examples/vit.py --dataset cifar10     with flips and crops; for a GPU, or --images 6000 --epochs 5 on a CPU

On CIFAR-10 the embeddings of neighbors come to resemble each other. On digits, four patches a side, they hardly do.
"""

import math

import numpy as np
from common import at_least, new_parser, read
from matplotlib.figure import Figure

from xpnn import Solver
from xpnn.data import RandomCrop, RandomFlip
from xpnn.models import VisionTransformer
from xpnn.optim import ParamGroup

parser = new_parser(__doc__, "vit.png")
parser.add_argument("--images", type=at_least(1), help="train on the first so many; default all")
parser.add_argument("--epochs", type=at_least(1), default=15)
args, where, images = read(parser)
is_cifar10 = args.dataset == "cifar10"

net = VisionTransformer(
    patch=4 if is_cifar10 else 2,
    dim=64,
    depth=4 if is_cifar10 else 2,
    heads=4,
    input_dim=images.input_shape,
    standardize=(images.mean_image, images.pixel_std),
    backend=where,
    rng=0,
)
print(net)
solver = Solver(
    net,
    images,
    update_rule="adamw",
    optim_config={"learning_rate": 1e-3 if is_cifar10 else 3e-3, "weight_decay": 0.05},
    # Weight decay is for matrices: not for biases, the norms' gamma and beta, or positions.
    param_groups=[ParamGroup(["*.b*", "*.gamma", "positions.*"], weight_decay=0.0)],
    clip_norm=1.0,
    schedule="warmup-cosine:0.1",
    augment=[RandomFlip(), RandomCrop(4, mode="zero")] if is_cifar10 else None,  # a digit's mirror image is none
    sampling="shuffle",
    num_epochs=args.epochs,
    batch_size=128 if is_cifar10 else 50,
    seed=0,
    print_every=100,
)
solver.train()
test_acc = solver.check_accuracy(images.X_test, images.y_test)
print(f"best val {solver.best_val_acc:.3f}  test {test_acc:.3f}  {solver.seconds:.0f} s on {where}")

# The cosine of the angle between the embeddings of each two positions, as a map (side, side) for each position.
positions = where.to_numpy(net.params["positions.W"])
directions = positions / np.linalg.norm(positions, axis=1, keepdims=True)
side = math.isqrt(len(positions))
maps = (directions @ directions.T).reshape(side, side, side, side)
rows, columns = np.indices((side, side))
near = np.abs(rows[:, :, None, None] - rows) + np.abs(columns[:, :, None, None] - columns)
print(f"cosine of neighbors {maps[near == 1].mean():+.3f}, of positions further apart {maps[near > 1].mean():+.3f}")

# Tiles with a white line between; a position has the cosine 1 with itself, which is left white too.
picture = np.full((side, side + 1, side, side + 1), np.nan)
picture[:, :side, :, :side] = np.where(near == 0, np.nan, maps).transpose(0, 2, 1, 3)
picture = picture.reshape(side * (side + 1), -1)[:-1, :-1]

figure = Figure(figsize=(12, 3.8), layout="constrained")
loss, accuracy, similarity = figure.subplots(1, 3)
loss.plot(solver.loss_history, ".", markersize=3, color="#0072B2")
loss.set(title="training loss", xlabel="iteration")
accuracy.plot(solver.train_acc_history, "-o", markersize=3, color="#E69F00", label="training")
accuracy.plot(solver.val_acc_history, "-o", markersize=3, color="#0072B2", label="validation")
accuracy.set(title="accuracy", xlabel="epoch")
accuracy.xaxis.get_major_locator().set_params(integer=True)
accuracy.legend(frameon=False)
for axes in (loss, accuracy):
    axes.grid(alpha=0.25)
limit = np.nanmax(np.abs(picture))
shown = similarity.imshow(picture, cmap="RdBu_r", vmin=-limit, vmax=limit)
similarity.set_title("cosine of each position to all others")
similarity.set_axis_off()
figure.colorbar(shown, ax=similarity)
figure.savefig(args.out, dpi=120)
print(f"figure in {args.out}")
