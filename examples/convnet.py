"""A convolutional net and what its first layer looks for: curves, and the filters as pictures.

python examples/convnet.py                       the embedded digits, some seconds
python examples/convnet.py --dataset cifar10     the course's notebook: 32 filters of 7x7, some minutes
"""

import math

import numpy as np
from common import at_least, new_parser, read
from matplotlib.figure import Figure

from xpnn import Solver
from xpnn.models import ThreeLayerConvNet

parser = new_parser(__doc__, "convnet.png")
parser.add_argument("--images", type=at_least(1), help="train on the first so many; default all")
parser.add_argument("--epochs", type=at_least(1), help="default 3 for cifar10, 10 for digits")
parser.add_argument("--batchnorm", action="store_true", help="spatial batch norm after the convolution")
args, where, images = read(parser)
is_cifar10 = args.dataset == "cifar10"
if args.epochs is None:
    args.epochs = 3 if is_cifar10 else 10

net = ThreeLayerConvNet(
    images.input_shape,
    num_filters=32,
    filter_size=7 if is_cifar10 else 5,
    hidden_dim=500 if is_cifar10 else 100,
    weight_scale=1e-3 if is_cifar10 else 1e-2,  # small, so that filters show what they learned, not how they began
    reg=1e-3,
    use_batchnorm=args.batchnorm,
    standardize=(images.mean_image, None if is_cifar10 else images.pixel_std),
    backend=where,
    rng=0,
)
net.summary()
solver = Solver(
    net,
    images,
    update_rule="adam",
    optim_config={"learning_rate": 1e-3},
    num_epochs=args.epochs,
    batch_size=50,
    seed=0,
    print_every=100,
)
solver.train()
test_acc = solver.check_accuracy(images.X_test, images.y_test)
print(f"best val {solver.best_val_acc:.3f}  test {test_acc:.3f}  {solver.seconds:.0f} s on {where}")


def as_grid(filters: np.ndarray, columns: int = 8) -> np.ndarray:
    """Filters (F, C, k, k), each stretched to 0..1 by itself, as one picture (H, W, C) with white lines between."""
    num, channels, size, _ = filters.shape
    low, high = filters.min(axis=(1, 2, 3), keepdims=True), filters.max(axis=(1, 2, 3), keepdims=True)
    step = size + 1
    picture = np.ones((math.ceil(num / columns) * step + 1, columns * step + 1, channels))
    for i, image in enumerate((filters - low) / (high - low)):
        y, x = i // columns * step + 1, i % columns * step + 1
        picture[y : y + size, x : x + size] = image.transpose(1, 2, 0)
    return picture


figure = Figure(figsize=(12, 3.8), layout="constrained")
loss, accuracy, picture = figure.subplots(1, 3)
loss.plot(solver.loss_history, ".", markersize=3, color="#0072B2")
loss.set(title="training loss", xlabel="iteration")
accuracy.plot(solver.train_acc_history, "-o", markersize=3, color="#E69F00", label="training")
accuracy.plot(solver.val_acc_history, "-o", markersize=3, color="#0072B2", label="validation")
accuracy.set(title="accuracy", xlabel="epoch")
accuracy.xaxis.get_major_locator().set_params(integer=True)
accuracy.legend(frameon=False)
for axes in (loss, accuracy):
    axes.grid(alpha=0.25)
picture.imshow(as_grid(where.to_numpy(net.params["W1"])), cmap="gray")  # three channels are taken for red, green, blue
picture.set_title("filters of the first layer")
picture.set_axis_off()
figure.savefig(args.out, dpi=120)
print(f"figure in {args.out}")
