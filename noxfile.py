"""Every check of the project; plain ``nox`` runs all that the machine can.

nox                 everything below; kernels on x86-64 Linux only, cupy where there is a CUDA device
nox -s cupy         the suite on a GPU; fails, and does not skip, where there is none
"""

import json
import os
import platform
import shutil
import sys
from pathlib import Path

import nox

TEST = ["pytest>=8", "hypothesis>=6"]
WORKERS = ["pytest-xdist>=3.6"]  # a process for each core, of one thread
TORCH = ["torch==2.13.0"]
# CUDA's compiler, and the bindings of the libraries, whose names and numbers the tests compare: not the libraries.
CUDA = ["cupy-cuda13x>=14.2", "ml-dtypes", "nvidia-cuda-nvrtc>=13", "nvidia-cuda-runtime>=13"]
CUDA += ["nvmath-python>=1.0", "cuda-bindings>=13.0.1,<14", "nvidia-cudnn-frontend==1.23.0"]
CUDA_TESTS = "test_cu*.py"  # on an emulation of CUDA: the session `kernels`
OTHERS = f"--ignore-glob=tests/{CUDA_TESTS}"
THREADED = ["tests/test_threads.py", "tests/test_kernels.py", "tests/training/test_cost.py"]
OLDEST = {"3.11": "2.0.0", "3.12": "2.0.0", "3.13": "2.1.0", "3.14": "2.3.2"}  # numpy, by Python

HAS_GPU = Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None
HAS_NVRTC = sys.platform == "linux" and platform.machine() == "x86_64"  # CUDA's compiler is on PyPI, and needs no GPU

nox.options.sessions = ["lint", "oldest", "fast", "kinds", "examples", "build"]
nox.options.sessions += ["kernels"] * HAS_NVRTC + ["cupy"] * HAS_GPU
nox.options.reuse_venv = "no"


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff and mypy."""
    session.install("ruff==0.17.6", "mypy==2.4.1", "numpy", ".")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")


@nox.session
def oldest(session: nox.Session) -> None:
    """The suite on the oldest NumPy, read-only arrays included, and no other library."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    session.install(".", *TEST, *WORKERS, f"numpy=={OLDEST[python]}")
    _shared_out(session, OTHERS, "--backend", "numpy")


@nox.session
def fast(session: nox.Session) -> None:
    """The suite on NumPy with the loops that numba compiles."""
    session.install(".[test,fast]", *WORKERS)
    _shared_out(session, OTHERS, "--backend", "numpy")
    if not session.posargs:
        session.run("pytest", "--backend", "numpy", *THREADED)  # with all threads that there are


@nox.session
def kinds(session: nox.Session) -> None:
    """The suite on every kind of array that needs no GPU, the newest of each, also compared with PyTorch."""
    session.install(".[test]", *WORKERS, *TORCH)
    session.run("python", "-c", "import array_api_strict, torch")  # or their tests would be skipped
    _shared_out(session, OTHERS, XPNN_DEMAND_TORCH="1")


@nox.session
def cupy(session: nox.Session) -> None:
    """The suite on CuPy, for the CUDA version of the driver."""
    driver = session.run("nvidia-smi", external=True, silent=True) or ""
    session.install(".[test,cuda12,cudnn12]" if "CUDA Version: 12" in driver else ".[test,cuda13,cudnn]")
    session.run("python", "-c", "import cupy; assert cupy.cuda.runtime.getDeviceCount() > 0, 'no CUDA device'")
    session.run("pytest", "--backend", "cupy", OTHERS, *session.posargs)
    session.run("xpnn", "check", "--backend", "cupy")


@nox.session
def kernels(session: nox.Session) -> None:
    """Every CUDA source compiles for every architecture, and their arithmetic is right on the CPU; no GPU needed."""
    session.install(".[test]", *WORKERS, *CUDA)
    tests = ["tests/test_kernels.py", *map(str, sorted(Path("tests").glob(CUDA_TESTS)))]
    _shared_out(session, *tests, XPNN_DEMAND_CUDA="1")


@nox.session
def examples(session: nox.Session) -> None:
    """Every example on the embedded digits."""
    session.install(".")
    folder = Path(session.create_tmp())
    for script in sorted(set(Path("examples").glob("*.py")) - {Path("examples/common.py")}):
        session.run("python", str(script), "--backend", "numpy", "--out", str(folder / f"{script.stem}.png"))


@nox.session
def build(session: nox.Session) -> None:
    """The wheel, installed into an empty environment, trains."""
    folder, source = Path(session.create_tmp()).resolve(), Path("xpnn").resolve()
    session.install("build")
    session.run("python", "-m", "build", "--wheel", "--outdir", str(folder), silent=True)
    (wheel,) = folder.glob("*.whl")
    session.run("python", "-m", "venv", "--clear", str(folder / "empty"), silent=True)
    python = folder / "empty" / ("Scripts" if os.name == "nt" else "bin") / "python"
    session.run(str(python), "-m", "pip", "install", "--quiet", str(wheel), external=True)
    wheel.unlink()
    session.chdir(folder)
    shutil.rmtree("run", ignore_errors=True)
    xpnn = str(python.with_name("xpnn.exe" if os.name == "nt" else "xpnn"))
    session.run(xpnn, "train", "--backend", "numpy", "--out", "run", external=True)
    session.run(xpnn, "evaluate", "run", external=True)
    session.run(xpnn, "check", external=True)
    accuracies = [json.loads(line)["val_acc"] for line in Path("run/metrics.jsonl").read_text().splitlines()]
    if max(accuracies) < 0.95:
        session.error(f"expected a validation accuracy of 0.95 at least; received {max(accuracies)}")
    sources = [file.relative_to(source).as_posix() for file in sorted(source.glob("kernels/**/*.cu*"))]
    for file in ("py.typed", "reference.json", "data/digits.npz", "data/README.md", *sources):
        code = f"from importlib.resources import files; assert files('xpnn').joinpath('{file}').is_file(), '{file}'"
        session.run(str(python), "-c", code, external=True, silent=True)


def _shared_out(session: nox.Session, *arguments: str, **environment: str) -> None:
    """Run tests in a process for each core."""
    environment |= {"OMP_NUM_THREADS": "1"}  # or all processes' threads would be more than there are cores
    session.run("pytest", "-n", "auto", "--dist", "worksteal", *arguments, *session.posargs, env=environment)
