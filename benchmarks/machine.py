"""What a benchmark's figures were measured on."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
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
        "xpnn": f"{xpnn.__version__}, {_commit()}",
        **{package: _version(package) for package in ("numpy", "numba", "torch", "jax")},
        "blas": ", ".join(f"{library['internal_api']} {library['version']}" for library in blas),
    }


def describe_device() -> dict[str, Any]:
    """Return the CUDA device, its driver and the versions of what computes there."""
    import cupy

    from xpnn.kernels.cupy import convolution, products

    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(0)
    packages = ("numpy", "torch", "nvmath-python", "nvidia-cudnn-frontend")
    return {
        "device": properties["name"].decode(),
        "memory_mb": properties["totalGlobalMem"] // 10**6,
        "multiprocessors": properties["multiProcessorCount"],
        "driver": _driver(),
        "driver_cuda": runtime.driverGetVersion(),
        "cuda": runtime.runtimeGetVersion(),
        "python": platform.python_version(),
        "xpnn": f"{xpnn.__version__}, {_commit()}",
        **{package: _version(package) for package in packages},
        "cupy": cupy.__version__,  # its package's name carries CUDA's version
        "products": products.describe(),
        "convolutions": convolution.describe(),
    }


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def _commit() -> str:
    """Of the code, with a plus where it, and not only what benchmarks found, has been changed since."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        found = subprocess.run([*git, "describe", "--always"], capture_output=True, text=True, check=True)
        same = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ":/", ":(exclude)results"], check=False)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("XPNN_COMMIT", "of no known commit")  # where the code has come without its history
    return found.stdout.strip() + "+" * bool(same.returncode)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
