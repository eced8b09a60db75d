"""Checkpoints: arrays in a safetensors file, everything else as JSON in its header. Written whole or not at all."""

import json
import os
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from xpnn.backend import Array, to_numpy
from xpnn.errors import CheckpointError

FORMAT = 1


def write_whole(path: str | os.PathLike[str], write: Callable[[str], object]) -> None:
    """Call `write` with the name of a temporary file by `path`, then move it into place; an OSError names `path`."""
    path, partial = Path(path), ""
    try:
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
        os.close(handle)
        write(partial)
        os.chmod(partial, 0o666 & ~_umask())  # mkstemp's files are private
        os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
    finally:
        if partial:
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
        text = json.dumps({"format": FORMAT, **meta})
    except TypeError as error:  # a setting of a rule of the user's own
        raise CheckpointError(f"{path}: cannot be written ({error})") from None
    header = {"xpnn": text, "checksum": _checksum(text, host)}
    try:
        write_whole(path, lambda partial: save_file(host, partial, metadata=header))
    except SafetensorError as error:
        raise CheckpointError(f"{path}: cannot be written ({error})") from None


def _checksum(text: str, arrays: Mapping[str, Array]) -> str:
    """Return the CRC-32 of all that a checkpoint holds."""
    import numpy as np

    total = zlib.crc32(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        total = zlib.crc32(f"{name} {array.dtype.name} {array.shape}".encode(), total)
        total = zlib.crc32(array.reshape(-1).view(np.uint8), total)
    return f"{total:08x}"


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return the NumPy arrays and the meta of a checkpoint.

    Raises
    ------
    CheckpointError
        When there is no such file, or it is damaged, or is none of xpnn's.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with open(path, "rb"):  # of what it cannot open, safetensors says that it is missing
            pass
        with safe_open(str(path), framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            header = file.metadata() or {}
        meta = json.loads(header["xpnn"])
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: expected a checkpoint of xpnn; it cannot be read ({error})") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise CheckpointError(f"{path}: expected checkpoint format {FORMAT}; received {meta!r:.60}")
    received = _checksum(header["xpnn"], arrays)
    expected = header.get("checksum", received)  # files of early versions have none
    if received != expected:
        raise CheckpointError(f"{path}: expected checksum {expected}; received {received}: the file is damaged")
    return arrays, meta


def prefixed(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return the arrays under names that begin with ``prefix/``."""
    return {f"{prefix}/{name}": array for name, array in arrays.items()}


def section(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return the arrays whose names begin with ``prefix/``, without it."""
    start = prefix + "/"
    return {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}
