"""The handwritten digits that ship with xpnn: real images for a first run, without a download."""

from importlib.resources import files

import numpy as np

from xpnn.data.dataset import Dataset

_NUM_TRAIN, _NUM_VALIDATION = 1297, 250


def load_digits() -> Dataset:
    """Load the 1,797 handwritten digits of the UCI repository.

    Images are (1, 8, 8) with values from 0 to 16: 1,297 for training, 250 for validation and 250 for test,
    drawn by a fixed permutation.

    Returns
    -------
    Dataset
        ``digits``, with the class names "0" to "9".

    References
    ----------
    E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
    1998, https://doi.org/10.24432/C50P49. Licensed under CC BY 4.0.
    """
    with (files("xpnn.data") / "digits.npz").open("rb") as file, np.load(file, allow_pickle=False) as stored:
        images, labels = stored["images"], stored["labels"]

    # Philox's bits are the same in every NumPy version; a Generator's shuffle need not be.
    order = np.argsort(np.random.Philox(key=0).random_raw(len(images)), kind="stable")
    X = images[order, np.newaxis]
    y = labels[order].astype(np.int64)
    end = _NUM_TRAIN + _NUM_VALIDATION
    return Dataset(
        name="digits",
        X_train=X[:_NUM_TRAIN],
        y_train=y[:_NUM_TRAIN],
        X_val=X[_NUM_TRAIN:end],
        y_val=y[_NUM_TRAIN:end],
        X_test=X[end:],
        y_test=y[end:],
        class_names=tuple("0123456789"),
    )
