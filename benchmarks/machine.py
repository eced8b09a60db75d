"""What a benchmark's figures were measured on."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np  # noqa: F401 - it brings its BLAS
from threadpoolctl import threadpool_info

import xpnn
from xpnn import backend


def describe(threads: int) -> dict[str, Any]:
    """Return the processor, the number of threads and the versions of what computes."""
    blas = [library for library in threadpool_info() if library["user_api"] == "blas"]
    return {
        "processor": backend.get("numpy").device_name(),
        "threads": threads,
        "python": platform.python_version(),
        "xpnn": xpnn.__version__,
        **{package: _version(package) for package in ("numpy", "numba", "torch", "jax")},
        "blas": ", ".join(f"{library['internal_api']} {library['version']}" for library in blas),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
