"""Models, data and callbacks that several tests of the Solver train with."""

import numpy as np

from xpnn import Model, Solver
from xpnn.data.augmentation import AlternatingFlip, ColorJitter, Cutout, Mixup, Normalize, RandomCrop
from xpnn.layers import Affine, BatchNorm, ReLU, Sequential
from xpnn.models import FullyConnectedNet
from xpnn.optim import EMA, Lookahead
from xpnn.training import Callback


def clouds(num=60, classes=3, features=6, seed=0):
    """Well separated clouds of points, one per class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, num)
    X = 4 * np.eye(classes, features)[y] + rng.standard_normal((num, features))
    return X.astype(np.float32), y


def make_data():
    X, y = clouds(60)
    X_val, y_val = clouds(30, seed=1)
    return {"X_train": X, "y_train": y, "X_val": X_val, "y_val": y_val}


def make_net(where="numpy", **kwargs):
    settings = {"dropout": 0.25, "use_batchnorm": True, "weight_scale": None, "rng": 3} | kwargs
    return FullyConnectedNet([8, 8], 6, 3, backend=where, **settings)


def make_solver(model=None, **kwargs):
    settings = {
        "update_rule": "adam",
        "optim_config": {"learning_rate": 1e-2},
        "batch_size": 10,
        "num_epochs": 4,
        "seed": 5,
        "verbose": False,
    }
    return Solver(make_net() if model is None else model, make_data(), **(settings | kwargs))


class Spy(Callback):
    def __init__(self):
        self.events = []

    def on_train_start(self, solver):
        self.events.append("start")

    def on_iteration(self, solver):
        self.events.append(solver.iteration)

    def on_epoch(self, solver, metrics):
        self.events.append(metrics)

    def on_train_end(self, solver):
        self.events.append("end")


class CourseModel:
    """A linear classifier in the course's style: a plain dict of arrays, and a loss."""

    def __init__(self):
        self.params = {"W": np.zeros((6, 3), np.float32), "b": np.zeros(3, np.float32)}

    def loss(self, X, y=None):
        scores = X @ self.params["W"] + self.params["b"]
        if y is None:
            return scores
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        loss = -np.log(p[np.arange(len(y)), y]).mean()
        p[np.arange(len(y)), y] -= 1
        return loss, {"W": X.T @ p / len(y), "b": p.sum(axis=0) / len(y)}


def image_data():
    """Small images of bytes, one of three colors the brightest, another one in each class."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 87)
    X = rng.integers(0, 100, (87, 3, 4, 5))
    X[np.arange(87), y] += 60
    return {"X_train": X[:57].astype("uint8"), "y_train": y[:57], "X_val": X[57:].astype("uint8"), "y_val": y[57:]}


AUGMENT = [AlternatingFlip(), RandomCrop(2), Cutout(2), ColorJitter(0.2, 0.2), Normalize(80, (50, 50, 50)), Mixup(0.3)]


def image_solver(where="numpy", rng=3, seed=5, average=None, data=None, use_batchnorm=False, **kwargs):
    """A solver that does everything it can to images, ends of epochs that nothing divides included."""
    norms = [BatchNorm()] if use_batchnorm else []
    model = Model(Sequential(Affine(8), *norms, ReLU(), Affine(3)), (60,), rng=rng, backend=where)
    if average == "ema":
        average = EMA(model.params, 0.8, state=lambda: model.state)
    elif average == "lookahead":
        average = Lookahead(model.params, 2, lambda progress: progress)
    settings = {
        "update_rule": "adam",
        "optim_config": {"learning_rate": 1e-2},
        "augment": AUGMENT,
        "average": average,
        "accumulate": 3,
        "batch_size": 8,
        "drop_last": False,
        "sampling": "shuffle",
        "num_epochs": 3,
        "tta": "mirror-translate",
        "verbose": False,
    }
    return Solver(model, image_data() if data is None else data, seed=seed, **(settings | kwargs))
