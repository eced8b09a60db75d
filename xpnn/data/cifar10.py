"""CIFAR-10: find it, download it when asked to, check it, read it."""

import os
import re
import zlib
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from xpnn.data.dataset import Dataset
from xpnn.data.safe_pickle import MAX_BYTES, load_arrays
from xpnn.errors import DataError

if TYPE_CHECKING:
    from rich.progress import Progress

Root = str | os.PathLike[str] | None

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
HASH = "md5:c58f30108f718f92721af3b95e74349a"

CLASS_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

_ARCHIVE = "cifar-10-python.tar.gz"
_PLACES = ("cifar-10-batches-py", _ARCHIVE, "cifar-10-batches-bin", "cifar-10-binary.tar.gz")
_META = "batches.meta"
_BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
_FILES = (_META, *_BATCHES, *(f"{batch}.bin" for batch in _BATCHES))

_ROWS = 10_000
_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32


class Cifar10(NamedTuple):
    """The training and test images of CIFAR-10, as the files hold them.

    Attributes
    ----------
    X_train, X_test : ndarray of uint8, shapes (50000, 3, 32, 32) and (10000, 3, 32, 32)
        The images.
    y_train, y_test : ndarray of int64, shapes (50000,) and (10000,)
        Their labels, from 0 to 9.
    class_names : tuple of str
        A name for each label.
    """

    X_train: npt.NDArray[np.uint8]
    y_train: npt.NDArray[np.int64]
    X_test: npt.NDArray[np.uint8]
    y_test: npt.NDArray[np.int64]
    class_names: tuple[str, ...] = CLASS_NAMES


def find_cifar10(root: Root = None) -> Path:
    """Find CIFAR-10 on this machine, in its python or its binary version, unpacked or not.

    Parameters
    ----------
    root : path, optional
        The folder ``cifar-10-batches-py`` or ``cifar-10-batches-bin``, the archive ``cifar-10-python.tar.gz``
        or ``cifar-10-binary.tar.gz``, or a folder that contains one of the four. By default the folder that
        the environment variable ``XPNN_DATA`` names, or else the user's cache.

    Returns
    -------
    Path
        A folder of batches, or an archive.

    Raises
    ------
    DataError
        If there is none.
    """
    place = _place(root)
    for candidate in (place, *(place / name for name in _PLACES)):
        # Unlike Path's, these answer False where a folder must not be read.
        is_archive = os.path.isfile(candidate)
        is_named = candidate.name in _PLACES and os.path.isdir(candidate)
        if is_archive or is_named or any(os.path.isfile(candidate / name) for name in _FILES):
            return candidate
    state = "" if os.path.exists(place) else ", which does not exist"
    raise DataError(
        f"CIFAR-10: looked in {place}{state}; name its folder with `--data FOLDER` or XPNN_DATA, "
        "or download it with `xpnn train cifar10 --download`"
    )


def download_cifar10(root: Root = None, progressbar: bool = True) -> Path:
    """Download the python version of CIFAR-10 (170 MB), unless it is there already.

    Parameters
    ----------
    root : path, optional
        The folder for the archive. By default the one that the environment variable ``XPNN_DATA`` names, or
        else the user's cache.
    progressbar : bool
        Whether to draw a progress bar on the standard error.

    Returns
    -------
    Path
        The archive, whose checksum is the published one.

    Raises
    ------
    DataError
        If the download fails or its checksum is wrong; no part of it is kept.
    """
    import pooch
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    folder = _place(root)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not progressbar) as progress:
        downloader = pooch.HTTPDownloader(progressbar=_ProgressBar(progress), chunk_size=1 << 16)
        try:
            return Path(pooch.retrieve(URL, HASH, fname=_ARCHIVE, path=folder, downloader=downloader))
        except (OSError, ValueError) as error:
            response = getattr(error, "response", None)
            if response is not None:  # pooch leaves it open
                response.close()
            raise DataError(f"CIFAR-10: cannot download {URL} to {folder}: {_one_line(error)}") from None


def read_cifar10(root: Root = None, rows: int = _ROWS) -> Cifar10:
    """Read every image of CIFAR-10 and check every file.

    Parameters
    ----------
    root : path, optional
        As in `find_cifar10`. An archive is read as it is and never unpacked to disk.
    rows : int
        Number of images in each file. The ``num_cases_per_batch`` of ``batches.meta`` takes precedence.

    Returns
    -------
    Cifar10
        Images as uint8 and labels as int64.

    Raises
    ------
    DataError
        If CIFAR-10 is not found, or a file is missing, damaged or not what its name says.
    """
    source = find_cifar10(root)
    files = _read_files(source)
    suffix = "" if any(batch in files for batch in _BATCHES) else ".bin"
    for batch in _BATCHES:
        if batch + suffix not in files:
            raise DataError(f"{source}: expected the file {batch + suffix}; received {', '.join(files) or 'none'}")
    if _META in files:
        rows = _rows_of_meta(files[_META], source / _META)

    images = np.empty((len(_BATCHES) * rows, *_SHAPE), np.uint8)
    labels = np.empty(len(_BATCHES) * rows, np.int64)
    parse = _parse_binary if suffix else _parse_python
    for number, batch in enumerate(_BATCHES):
        path = source / (batch + suffix)
        part = slice(number * rows, (number + 1) * rows)
        images[part], labels[part] = parse(files.pop(path.name), path, rows)
        wrong = np.flatnonzero((labels[part] < 0) | (labels[part] > 9))
        if wrong.size:
            label = labels[part][wrong[0]]
            raise DataError(f"{path}: expected labels from 0 to 9; received {label} for image {wrong[0]}")

    end = 5 * rows
    return Cifar10(images[:end], labels[:end], images[end:], labels[end:])


def load_cifar10(root: Root = None, num_validation: int = 1000) -> Dataset:
    """Load CIFAR-10; the last training images become the validation split.

    Parameters
    ----------
    root : path, optional
        As in `find_cifar10`.
    num_validation : int
        Number of validation images; the other training images remain, at least one.

    Returns
    -------
    Dataset
        ``cifar10``, images (3, 32, 32) of uint8.

    Raises
    ------
    DataError
        As in `read_cifar10`, or if `num_validation` is out of range.
    """
    X, y, X_test, y_test, class_names = read_cifar10(root)
    if not 0 <= num_validation < len(X):
        raise DataError(f"CIFAR-10: expected num_validation from 0 to {len(X) - 1}; received {num_validation}")
    num_train = len(X) - num_validation
    return Dataset(
        name="cifar10",
        X_train=X[:num_train],
        y_train=y[:num_train],
        X_val=X[num_train:],
        y_val=y[num_train:],
        X_test=X_test,
        y_test=y_test,
        class_names=class_names,
    )


def load_CIFAR10(root: Root) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Load CIFAR-10 as the course does: channels last, pixel values as floats.

    Parameters
    ----------
    root : path
        As in `find_cifar10`.

    Returns
    -------
    X_train, y_train, X_test, y_test : ndarray
        Images of float32 and shape (N, 32, 32, 3), labels of int64 and shape (N,).

    Raises
    ------
    DataError
        As in `read_cifar10`.
    """
    data = read_cifar10(root)
    X_train, X_test = (X.transpose(0, 2, 3, 1).astype(np.float32, order="C") for X in (data.X_train, data.X_test))
    return X_train, data.y_train, X_test, data.y_test


def get_CIFAR10_data(
    num_training: int = 49000,
    num_validation: int = 1000,
    num_test: int = 1000,
    subtract_mean: bool = True,
    root: Root = None,
) -> dict[str, np.ndarray]:
    """Load CIFAR-10 as the course's experiments use it: centered on the mean training image, unscaled.

    Parameters
    ----------
    num_training : int
        Number of training images: the first ones.
    num_validation : int
        Number of validation images: those that follow.
    num_test : int
        Number of test images: the first ones.
    subtract_mean : bool
        Whether to subtract the mean of the `num_training` images from all three splits.
    root : path, optional
        As in `find_cifar10`.

    Returns
    -------
    dict
        ``X_train``, ``X_val`` and ``X_test`` of float32 and shape (N, 3, 32, 32); ``y_train``, ``y_val`` and
        ``y_test`` of int64 and shape (N,).

    Raises
    ------
    DataError
        As in `read_cifar10`, or if more images are asked for than there are.
    """
    data = read_cifar10(root)
    if num_training < 1 or num_validation < 0 or num_training + num_validation > len(data.X_train):
        raise DataError(
            f"CIFAR-10: expected num_training from 1 and num_validation from 0, together at most "
            f"{len(data.X_train)}; received {num_training} and {num_validation}"
        )
    if not 0 <= num_test <= len(data.X_test):
        raise DataError(f"CIFAR-10: expected num_test from 0 to {len(data.X_test)}; received {num_test}")

    train = slice(num_training)
    val = slice(num_training, num_training + num_validation)
    test = slice(num_test)
    images = {"X_train": data.X_train[train], "X_val": data.X_train[val], "X_test": data.X_test[test]}
    labels = {"y_train": data.y_train[train], "y_val": data.y_train[val], "y_test": data.y_test[test]}
    centered = {name: X.astype(np.float32) for name, X in images.items()}
    if subtract_mean:
        mean = images["X_train"].mean(axis=0, dtype=np.float64)
        for X in centered.values():
            X -= mean
    return centered | labels


class _ProgressBar:
    """What pooch asks of a progress bar, drawn by rich."""

    def __init__(self, progress: "Progress") -> None:
        self._progress = progress
        self._task = progress.add_task("CIFAR-10", total=None)

    @property
    def total(self) -> float | None:
        return self._progress.tasks[0].total

    @total.setter
    def total(self, total: int) -> None:
        self._progress.update(self._task, total=total or None)

    def update(self, count: int) -> None:
        self._progress.advance(self._task, count)

    def reset(self) -> None:
        self._progress.update(self._task, completed=0)

    def close(self) -> None:
        """Leave the end to the caller's `with`, which comes after a failure too."""


def _place(root: Root) -> Path:
    place = root or os.environ.get("XPNN_DATA")
    if not place:
        import pooch

        place = pooch.os_cache("xpnn")
    try:
        return Path(place).expanduser()
    except RuntimeError as error:  # ~ of a user that there is not
        raise DataError(f"CIFAR-10: expected a folder; received {str(place)!r} ({error})") from None


def _read_files(source: Path) -> dict[str, bytes]:
    """Read the files of CIFAR-10 in a folder or an archive, by their base names."""
    import gzip
    import tarfile

    files = {}
    try:
        if source.is_dir():
            for name in _FILES:
                if (source / name).is_file():
                    with open(source / name, "rb") as file:
                        files[name] = file.read(MAX_BYTES + 1)
        else:
            with gzip.open(source) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
                for member in archive:
                    name = Path(member.name).name
                    if name in _FILES and member.isfile() and (content := archive.extractfile(member)):
                        files[name] = content.read(MAX_BYTES + 1)
                while stream.read(1 << 20):  # to the checksum at the end
                    pass
    except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{source}: expected CIFAR-10; reading it ended in {_one_line(error)}") from None
    return files


def _rows_of_meta(data: bytes, path: Path) -> int:
    rows = load_arrays(BytesIO(data), str(path)).get(b"num_cases_per_batch")
    if not isinstance(rows, int) or not 1 <= rows <= _ROWS:
        raise DataError(f"{path}: expected num_cases_per_batch from 1 to {_ROWS}; received {_describe(rows)}")
    return rows


def _parse_python(data: bytes, path: Path, rows: int) -> tuple[np.ndarray, list[int]]:
    content = load_arrays(BytesIO(data), str(path))
    images, labels, title = (content.get(key) for key in (b"data", b"labels", b"batch_label"))

    # The official archive says "training batch 1 of 5"; other copies say "train batch 1 of 5".
    kind, number = ("test", "1") if path.name == "test_batch" else ("train", path.name[-1])
    expected = rf"{kind}(ing)? batch {number} of \d".encode()
    if not isinstance(title, bytes) or not re.fullmatch(expected, title):
        raise DataError(f"{path}: expected batch_label '{kind} batch {number} of ...'; received {_describe(title)}")
    if not isinstance(images, np.ndarray) or images.shape != (rows, _PIXELS):
        raise DataError(f"{path}: expected data of shape {(rows, _PIXELS)}; received {_describe(images)}")
    if not isinstance(labels, list) or len(labels) != rows or any(type(label) is not int for label in labels):
        raise DataError(f"{path}: expected a list of {rows} int as labels; received {_describe(labels)}")
    return images.reshape(rows, *_SHAPE), labels


def _parse_binary(data: bytes, path: Path, rows: int) -> tuple[np.ndarray, np.ndarray]:
    size = rows * (1 + _PIXELS)
    if len(data) != size:
        raise DataError(f"{path}: expected {size} bytes, {rows} images; received {len(data)} bytes")
    records = np.frombuffer(data, np.uint8).reshape(rows, 1 + _PIXELS)
    return records[:, 1:].reshape(rows, *_SHAPE), records[:, 0]


def _describe(value: object) -> str:
    """Describe what a file holds, in few words whatever its size."""
    match value:
        case int() | None:
            return str(value)
        case bytes():
            return repr(value[:60].decode("latin-1"))
        case np.ndarray():
            return f"shape {value.shape}"
        case list():
            return f"a list of {len(value)} {', '.join(sorted({type(item).__name__ for item in value}))}"
    return type(value).__name__


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
