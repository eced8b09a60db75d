"""Fine-tuning: a net that knows five classes learns five others from a few examples. Does it pay?

python examples/finetune.py                       digits 0 to 4, then 5 to 9, some seconds
python examples/finetune.py --dataset cifar10     the first five classes, then the others, some minutes

On CIFAR-10 it does. On digits it does not: a new net comes as far on validation images and further on test images, as
few strokes are soon learned and the filters that 0 to 4 have taught are worth little more than random ones to 5 to 9.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from common import at_least, new_parser, read, train
from matplotlib.figure import Figure

from xpnn import Model, Solver, data
from xpnn.layers import Affine, Conv, MaxPool, ReLU, Sequential, Standardize
from xpnn.optim import ParamGroup
from xpnn.training import checkpoint

parser = new_parser(__doc__, "finetune.png")
parser.add_argument("--images", type=at_least(1), help="take the first so many training images; default all")
parser.add_argument(
    "--shots", type=at_least(1), help="examples of each new class; default 100 for cifar10, 5 for digits"
)
parser.add_argument(
    "--epochs", type=at_least(1), help="of each stage, from scratch twice as many; default 8 for cifar10, 20 for digits"
)
args, where, images = read(parser)
is_cifar10 = args.dataset == "cifar10"
epochs, shots = args.epochs, args.shots
if epochs is None:
    epochs = 8 if is_cifar10 else 20
if shots is None:
    shots = 100 if is_cifar10 else 5
standardize = images.mean_image, images.pixel_std


def only(first: int, shots: int | None = None) -> data.Dataset:
    """The five classes from `first` on, as labels 0 to 4; of each, the first so many training images."""
    arrays = {}
    for split in ("train", "val", "test"):
        X, y = getattr(images, f"X_{split}"), getattr(images, f"y_{split}") - first
        chosen = [np.flatnonzero(y == label)[: shots if split == "train" else None] for label in range(5)]
        rows = np.sort(np.concatenate(chosen))
        arrays |= {f"X_{split}": X[rows], f"y_{split}": y[rows]}
    return replace(images, class_names=images.class_names[first : first + 5], **arrays)


def new_net(rng: int) -> Model:
    net = Sequential(
        Standardize(*standardize),
        Conv(32, 3, pad="same", name="conv1"),
        ReLU(),
        MaxPool(2),
        Conv(64, 3, pad="same", name="conv2"),
        ReLU(),
        MaxPool(2),
        Conv(64, 3, pad="same", name="conv3"),
        ReLU(),
        Affine(5, name="head"),
    )
    return Model(net, images.input_shape, backend=where, rng=rng)


def report(
    what: str, net: Model, images: data.Dataset, epochs: int, rate: float, groups: Sequence[ParamGroup] = ()
) -> Solver:
    solver = Solver(
        net,
        images,
        update_rule="adam",
        optim_config={"learning_rate": rate},
        param_groups=groups,
        num_epochs=epochs,
        batch_size=min(50, len(images.X_train) // 5),
        seed=0,
        verbose=False,
    )
    train(solver)
    test_acc = solver.check_accuracy(images.X_test, images.y_test)
    print(f"{what:36s} val {solver.best_val_acc:.3f}  test {test_acc:.3f}")
    return solver


old, new = only(0), only(5, shots)
if min(len(old.X_train), len(new.X_train)) < 5:
    parser.error(f"argument --images: expected 5 or more of the old and of the new classes; received {args.images}")
print(f"old classes: {', '.join(old.class_names)}; {len(old.X_train)} training images")
print(f"new classes: {', '.join(new.class_names)}; {len(new.X_train)} training images")

# A net that knows the old classes; its weights go to a file.
teacher = new_net(rng=0)
report("old classes", teacher, old, epochs, 1e-3)
weights = args.out.with_suffix(".safetensors")
checkpoint.save(weights, teacher.state_dict(), {"classes": old.class_names})

# The same body with a new head: of the file everything but the head, of the new net its head.
arrays, _ = checkpoint.load(weights)
body = {name: array for name, array in arrays.items() if not name.startswith("head.")}
student = new_net(rng=1)
student.load_state_dict({**student.state_dict(), **body})

frozen = [ParamGroup("conv?.*", rule="frozen")]
head = report("new classes, the head alone", student, new, epochs, 3e-3, frozen)
whole = report("... then all, at a lower rate", student, new, epochs, 3e-4)
scratch = report("new classes, from scratch", new_net(rng=1), new, 2 * epochs, 3e-3)

figure = Figure(figsize=(6, 4), layout="constrained")
axes = figure.subplots()
for solver, label, start, color in (
    (head, "the head alone", 0, "#E69F00"),
    (whole, "then all, at a lower rate", epochs, "#0072B2"),
    (scratch, "from scratch", 0, "#009E73"),
):
    checked = range(start, start + len(solver.val_acc_history))
    axes.plot(checked, solver.val_acc_history, "-o", markersize=3, color=color, label=label)
axes.set(
    title=f"{len(new.X_train)} examples of the {len(new.class_names)} new classes",
    xlabel="epoch",
    ylabel="validation accuracy",
)
axes.xaxis.get_major_locator().set_params(integer=True)
axes.grid(alpha=0.25)
axes.legend(frameon=False)
figure.savefig(args.out, dpi=120)
print(f"weights in {weights}\nfigure in {args.out}")
