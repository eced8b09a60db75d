"""The form in which every data set reaches a model: images and labels in three splits."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from xpnn.errors import DataError


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

    @property
    def mean_image(self) -> npt.NDArray[np.float64]:
        """Mean of the training images, of shape (C, H, W)."""
        return self.X_train.mean(axis=0, dtype=np.float64)

    @property
    def pixel_std(self) -> float:
        """Standard deviation of the training pixels from the mean image; 1 where they do not differ from it."""
        squares = sum(float(np.square(image, dtype=np.float32).sum(dtype=np.float64)) for image in self.X_train)
        variance = squares / self.X_train.size - np.square(self.mean_image).mean()
        return float(np.sqrt(variance)) if variance > 1e-6 else 1.0

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
