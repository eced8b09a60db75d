"""The form in which every data set reaches a model: images and labels in three splits."""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from xpnn.data.sampling import slices
from xpnn.errors import DataError

PIECE = 2**18  # pixels that the statistics look at together: 2 MB as float64


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels for training, validation and test.

    Parameters
    ----------
    name : str
        Name of the data set, as in ``xpnn.data.DATASETS``.
    X_train, X_val, X_test : ndarray of uint8, shape (N, C, H, W)
        The images of each split.
    y_train, y_val, y_test : ndarray of int64, shape (N,)
        Their labels, each from 0 to ``num_classes - 1``.
    class_names : tuple of str
        A name for each label.

    The statistics of the training pixels are computed once, when one of them is first asked for.

    Raises
    ------
    DataError
        If images are not 4-D, are not as many as their labels, or a label is out of range.
    """

    name: str
    X_train: npt.NDArray[np.uint8]
    y_train: npt.NDArray[np.int64]
    X_val: npt.NDArray[np.uint8]
    y_val: npt.NDArray[np.int64]
    X_test: npt.NDArray[np.uint8]
    y_test: npt.NDArray[np.int64]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        for split in ("train", "val", "test"):
            X, y = getattr(self, f"X_{split}"), getattr(self, f"y_{split}")
            if X.ndim != 4:
                raise DataError(f"{self.name}: expected X_{split} of shape (N, C, H, W); received shape {X.shape}")
            if y.shape != X.shape[:1]:
                raise DataError(
                    f"{self.name}: expected y_{split} of shape ({len(X)},), a label for each image; "
                    f"received shape {y.shape}"
                )
            wrong = np.flatnonzero((y < 0) | (y >= self.num_classes))
            if wrong.size:
                raise DataError(
                    f"{self.name}: expected labels from 0 to {self.num_classes - 1}; "
                    f"received y_{split}[{wrong[0]}] = {y[wrong[0]]}"
                )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image."""
        _, channels, height, width = self.X_train.shape
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @cached_property
    def mean_image(self) -> npt.NDArray[np.float64]:
        """Mean of the training images, of shape (C, H, W)."""
        return _read_only(self._pixel_sums[0] / len(self.X_train))

    @cached_property
    def pixel_std(self) -> float:
        """Standard deviation of the training pixels from the mean image; 1 where they do not differ from it."""
        variance = self._pixel_sums[1].sum() / self.X_train.size - np.square(self.mean_image).mean()
        return float(_std(variance))

    @cached_property
    def channel_mean(self) -> npt.NDArray[np.float64]:
        """Mean of the training pixels of each channel, of shape (C,)."""
        return _read_only(self._pixel_sums[0].sum(axis=(1, 2)) / self.X_train[:, 0].size)

    @cached_property
    def channel_std(self) -> npt.NDArray[np.float64]:
        """Standard deviation of the training pixels of each channel, of shape (C,); 1 where they do not differ."""
        variance = self._pixel_sums[1].sum(axis=(1, 2)) / self.X_train[:, 0].size - np.square(self.channel_mean)
        return _read_only(_std(variance))

    @cached_property
    def _pixel_sums(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Sums of the training images and of their squares: whole numbers that float64 holds exactly."""
        sums, squares = np.zeros(self.input_shape), np.zeros(self.input_shape)
        for piece in slices(len(self.X_train), max(PIECE // math.prod(self.input_shape), 1)):
            x = self.X_train[piece].astype(np.float64)
            sums += x.sum(axis=0)
            squares += np.square(x).sum(axis=0)
        return sums, squares

    def arrays(self) -> dict[str, np.ndarray]:
        """Return ``X_train``, ``y_train``, ``X_val``, ... by name, as the Solver takes them."""
        return {
            f"{kind}_{split}": getattr(self, f"{kind}_{split}") for split in ("train", "val", "test") for kind in "Xy"
        }

    def take(self, num_train: int) -> "Dataset":
        """Return the same data with only the first `num_train` training images.

        Parameters
        ----------
        num_train : int
            From 1 to the number of training images.

        Returns
        -------
        Dataset
            Its arrays are views of this one's.

        Raises
        ------
        DataError
            If `num_train` is out of range.
        """
        if not 1 <= num_train <= len(self.X_train):
            raise DataError(
                f"{self.name}: expected from 1 to {len(self.X_train)} training images; received {num_train}"
            )
        return replace(self, X_train=self.X_train[:num_train], y_train=self.y_train[:num_train])


def _std(variance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Square roots of variances; 1 for one that is zero but for rounding."""
    return np.sqrt(np.where(variance > 1e-6, variance, 1.0))


def _read_only(array: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keep an array that is handed out more than once from being written to."""
    array.flags.writeable = False
    return array
