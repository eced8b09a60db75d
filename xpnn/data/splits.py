"""The arrays of a split, moved to a backend and checked, so that a training loop can trust them."""

from collections.abc import Mapping

from xpnn.backend import Array, Backend, dtype_name, is_array, is_integer
from xpnn.errors import SettingError
from xpnn.out_of_memory import memory_for


def moved(name: str, x: Array, backend: Backend) -> Array:
    """Return an array of the data on a backend; raise `OutOfMemory`, which names it, where there is no room for it."""
    form = f" {tuple(x.shape)} of {dtype_name(x.dtype)}" if is_array(x) else ""
    size = f", {x.nbytes / 1e6:,.1f} MB" if hasattr(x, "nbytes") else ""
    with memory_for(f"Solver: expected fewer examples, which fit into memory; received {name}{form}{size}"):
        return backend.asarray(x)


def take_split(data: Mapping[str, Array], split: str, backend: Backend, num_classes: int | None) -> tuple[Array, Array]:
    """Return ``X_{split}`` and ``y_{split}`` on a backend.

    Parameters
    ----------
    data : mapping of str to array
        With both names; arrays of any kind.
    split : str
        ``"train"`` or ``"val"``.
    backend : Backend
        Where the arrays are to live.
    num_classes : int or None
        Labels must be below it, where it is known.

    Returns
    -------
    X : array (N, ...)
    y : array (N,) of integers

    Raises
    ------
    SettingError
        When one is missing or empty, they differ in length, or the labels are no integers in range.
    OutOfMemory
        When there is no room for one on the backend.
    """
    for key in (f"X_{split}", f"y_{split}"):
        if key not in data:
            raise SettingError(f"Solver: expected data to have {key}; received {', '.join(data) or 'nothing'}")
    X, y = (moved(f"{name}_{split}", data[f"{name}_{split}"], backend) for name in "Xy")
    if X.ndim == 0 or X.shape[0] == 0 or y.shape != X.shape[:1]:
        shapes = f"{tuple(X.shape)} and {tuple(y.shape)}"
        raise SettingError(f"Solver: expected X_{split} (N, ...) and y_{split} (N,), N > 0; received {shapes}")
    if not is_integer(y):
        raise SettingError(f"Solver: expected integer labels y_{split}; received {dtype_name(y.dtype)}")
    low, high = int(backend.namespace.min(y)), int(backend.namespace.max(y))
    if low < 0 or (num_classes is not None and high >= num_classes):
        expected = "of at least 0" if num_classes is None else f"from 0 to {num_classes - 1}"
        raise SettingError(f"Solver: expected labels y_{split} {expected}; received {low if low < 0 else high}")
    return X, y
