"""What the settings of a run build: its data, its model, its Solver."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from xpnn import backend as backends
from xpnn import data
from xpnn.data import Batch, Compose, Dataset, tta_scores
from xpnn.errors import CheckpointError, SettingError
from xpnn.losses import softmax_loss
from xpnn.models import Model
from xpnn.models.model import best_labels
from xpnn.optim import EMA
from xpnn.out_of_memory import memory_for
from xpnn.random import Generator
from xpnn.training import checkpoint
from xpnn.training.callbacks import Callback
from xpnn.training.folder import RunFolder
from xpnn.training.recipes import RECIPES
from xpnn.training.settings import Settings, transforms
from xpnn.training.solver import Solver


def load_data(settings: Settings) -> Dataset:
    """Return the data set of a run."""
    dataset = data.load(settings.dataset, settings.data)
    return dataset if settings.num_train is None else dataset.take(settings.num_train)


def build_model(settings: Settings, dataset: Dataset) -> Model:
    """Return the untrained model of a run; it takes the data set's raw images.

    Raises
    ------
    SettingError
        When the images are not of a size that the net takes.
    """
    recipe = RECIPES[settings.model]
    size, (_, height, width) = recipe.image_size, dataset.input_shape
    if size and (height, width) != (size, size):
        expected = f"another than {settings.model}, whose images are {size} x {size} pixels"
        raise SettingError(f"--model: expected {expected}; those of {dataset.name} are {height} x {width}")
    options = {
        "reg": settings.reg,
        "dtype": settings.dtype,
        "backend": backends.get(settings.backend),
        "rng": settings.seed,
        "standardize": recipe.statistics(dataset, settings.preprocess),
    }
    net = {name: getattr(settings, name) for name in recipe.takes}
    try:
        model = recipe.build(dataset, **net, **options)
    except SettingError:
        raise
    except ValueError as error:  # of the layer that an image, or what becomes of it, does not fit
        raise SettingError(f"--model {settings.model}: {error}") from None
    model.loss_function = partial(
        softmax_loss, label_smoothing=settings.label_smoothing, reduction=recipe.reduction(settings)
    )
    return model


@memory_for("--num-train: expected fewer images or a smaller net, which fit into memory together; received more")
def build_solver(settings: Settings, model: Model, dataset: Dataset, callbacks: Sequence[Callback] = ()) -> Solver:
    """Return the Solver of a run; it prints nothing by itself.

    Raises
    ------
    SettingError
        When the images are not of a size that the augmentation takes.
    OutOfMemory
        When there is no room for the images, or for what is kept of each parameter.
    """
    config, groups = RECIPES[settings.model].optimizer(settings, model)
    return Solver(
        model,
        dataset.arrays(),
        update_rule=settings.optimizer,
        optim_config=config,
        param_groups=groups,
        clip_norm=settings.clip_norm,
        average=None if settings.ema is None else EMA(model.params, settings.ema, state=lambda: model.state),
        accumulate=settings.accumulate,
        reduction=RECIPES[settings.model].reduction(settings),
        lr_decay=settings.lr_decay,
        schedule=settings.schedule,
        batch_size=settings.batch_size,
        num_epochs=settings.epochs,
        sampling=settings.sampling,
        drop_last=settings.drop_last,
        augment=_augmentation(settings, dataset),
        tta=settings.tta,
        callbacks=callbacks,
        seed=settings.seed,
        verbose=False,
    )


def _augmentation(settings: Settings, dataset: Dataset) -> Compose:
    """The transforms of a run, tried on an image; what they cut out gets the mean color."""
    fill = tuple(np.rint(dataset.channel_mean).tolist())
    augment = Compose(transforms(settings.augment, fill))
    batch = Batch(dataset.y_train[:1], np.arange(1), Generator(0), num_examples=1, num_classes=dataset.num_classes)
    try:
        augment(dataset.X_train[:1], batch)
    except ValueError as error:
        raise SettingError(f"--augment: {error}") from None
    return augment


def load_best(folder: RunFolder, changes: Mapping[str, Any]) -> tuple[Model, Dataset, dict[str, Any]]:
    """Return the best model of a run, its data set, and what best.safetensors says of it.

    `changes` replaces settings that may differ from training: ``backend`` and ``data``.
    """
    settings = dataclasses.replace(folder.read_settings(), **changes)
    dataset = load_data(settings)
    arrays, meta = checkpoint.load(folder.best)
    model = build_model(settings, dataset)
    try:
        model.load_state_dict(arrays)
    except CheckpointError as error:
        raise CheckpointError(f"{folder.best}: {error}") from None
    return model, dataset, meta


def predictions(model: Model, X: npt.NDArray[Any], tta: str = "none", batch_size: int = 500) -> npt.NDArray[Any]:
    """Return the label with the highest score for each image, on the host.

    Parameters
    ----------
    X : ndarray (N, C, H, W)
    tta : str
        Test-time augmentation, as for `xpnn.data.tta_scores`.
    """
    backend = model.backend
    labels, _ = best_labels(lambda x: tta_scores(model.loss, backend.asarray(x), tta), X, batch_size, backend)
    return backend.to_numpy(labels)
