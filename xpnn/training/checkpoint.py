"""Checkpoints: arrays in a safetensors file, everything else as JSON in its header. Written whole or not at all."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from xpnn.backend import Array, to_numpy
from xpnn.errors import CheckpointError

FORMAT = 1


def write_whole(path: str | os.PathLike[str], write: Callable[[str], object]) -> None:
    """Call `write` with the name of a temporary file beside `path`, then move it into place."""
    path = Path(path)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    try:
        write(partial)
        os.chmod(partial, 0o666 & ~_umask())  # mkstemp's files are private
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save(path: str | os.PathLike[str], arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
    """Write arrays of any backend, and `meta`, which JSON must be able to hold, to `path`."""
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    host = {name: np.asarray(to_numpy(array), order="C") for name, array in arrays.items()}
    try:
        header = {"xpnn": json.dumps({"format": FORMAT, **meta})}
    except TypeError as error:  # a setting of a rule of the user's own
        raise CheckpointError(f"{path}: cannot be written ({error})") from None
    try:
        write_whole(path, lambda partial: save_file(host, partial, metadata=header))
    except SafetensorError as error:
        raise CheckpointError(f"{path}: cannot be written ({error})") from None


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return the NumPy arrays and the meta of a checkpoint.

    Raises
    ------
    CheckpointError
        When there is no such file, or it is damaged, or is none of xpnn's.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            header = file.metadata() or {}
        meta = json.loads(header["xpnn"])
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file") from None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: expected a checkpoint of xpnn; it cannot be read ({error})") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise CheckpointError(f"{path}: expected checkpoint format {FORMAT}; received {meta!r:.60}")
    return arrays, meta


def prefixed(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return the arrays under names that begin with ``prefix/``."""
    return {f"{prefix}/{name}": array for name, array in arrays.items()}


def section(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return the arrays whose names begin with ``prefix/``, without it."""
    start = prefix + "/"
    return {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}
