"""Data sets, real digits that ship with xpnn and CIFAR-10; augmentation for training and for tests."""

from collections.abc import Callable

from xpnn.data.augmentation import (
    AlternatingFlip,
    Batch,
    ColorJitter,
    Compose,
    Cutout,
    Mixup,
    Normalize,
    RandomCrop,
    RandomFlip,
    Transform,
)
from xpnn.data.cifar10 import (
    Root,
    download_cifar10,
    find_cifar10,
    get_CIFAR10_data,
    load_CIFAR10,
    load_cifar10,
)
from xpnn.data.dataset import Dataset
from xpnn.data.digits import load_digits
from xpnn.data.tta import tta_scores
from xpnn.errors import DataError

__all__ = [
    "DATASETS",
    "AlternatingFlip",
    "Batch",
    "ColorJitter",
    "Compose",
    "Cutout",
    "Dataset",
    "Mixup",
    "Normalize",
    "RandomCrop",
    "RandomFlip",
    "Transform",
    "download_cifar10",
    "find_cifar10",
    "get_CIFAR10_data",
    "load",
    "load_CIFAR10",
    "load_cifar10",
    "load_digits",
    "tta_scores",
]

DATASETS: dict[str, Callable[[Root], Dataset]] = {
    "digits": lambda root: load_digits(),
    "cifar10": load_cifar10,
}


def load(name: str, root: Root = None) -> Dataset:
    """Load a data set by its name.

    Parameters
    ----------
    name : str
        A key of `DATASETS`.
    root : path, optional
        Where the data lie, for a data set that does not ship with xpnn.

    Returns
    -------
    Dataset
        The data set.

    Raises
    ------
    DataError
        If there is no data set of this name, or it cannot be read.
    """
    if name not in DATASETS:
        raise DataError(f"expected a data set out of {', '.join(sorted(DATASETS))}; received {name!r}")
    return DATASETS[name](root)
