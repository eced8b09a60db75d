"""Every check of the project; plain ``nox`` runs all that the machine can.

nox                 everything below, without cupy where there is no CUDA device
nox -s cupy         the suite on a GPU; fails, and does not skip, where there is none
"""

import os
import shutil
import sys
from pathlib import Path

import nox

TEST = ["pytest>=8", "hypothesis>=6"]
STRICT = ["array-api-strict>=2.6"]
TORCH = ["torch==2.13.0"]
OLDEST = {"3.11": "2.0.0", "3.12": "2.0.0", "3.13": "2.1.0", "3.14": "2.3.2"}  # numpy, by Python

HAS_GPU = Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None

nox.options.sessions = ["lint", "numpy", "strict", "torch", "examples", "build"] + ["cupy"] * HAS_GPU
nox.options.error_on_missing_interpreters = True
nox.options.reuse_venv = "no"


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff and mypy."""
    session.install("ruff==0.17.6", "mypy==2.4.1", "numpy", ".")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")


@nox.session
@nox.parametrize("version", ["oldest", "newest"])
def numpy(session: nox.Session, version: str) -> None:
    """The suite on NumPy, read-only arrays included."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    session.install(".", *TEST, f"numpy=={OLDEST[python]}" if version == "oldest" else "numpy")
    _pytest(session, "numpy")


@nox.session
def strict(session: nox.Session) -> None:
    """The suite on array-api-strict, the stand-in for a GPU."""
    session.install(".", *TEST, *STRICT)
    _pytest(session, "array-api-strict")


@nox.session
def torch(session: nox.Session) -> None:
    """The suite on PyTorch's tensors, on the CPU."""
    session.install(".", *TEST, *STRICT, *TORCH)
    _pytest(session, "torch")


@nox.session
def cupy(session: nox.Session) -> None:
    """The suite on CuPy. ``XPNN_CUDA=cuda12`` for a CUDA 12 driver."""
    session.install(f".[{os.environ.get('XPNN_CUDA', 'cuda13')}]", *TEST, *STRICT)
    session.run("python", "-c", "import cupy; assert cupy.cuda.runtime.getDeviceCount() > 0, 'no CUDA device'")
    _pytest(session, "cupy")
    session.run("xpnn", "check", "--backend", "cupy")


@nox.session
def examples(session: nox.Session) -> None:
    """Every example on the embedded digits."""
    session.install(".")
    folder = Path(session.create_tmp())
    for script in sorted(Path("examples").glob("*.py")):
        session.run("python", str(script), "--backend", "numpy", "--out", str(folder / f"{script.stem}.png"))


@nox.session
def build(session: nox.Session) -> None:
    """The wheel, installed into an empty environment, trains."""
    folder = Path(session.create_tmp()).resolve()
    session.install("build")
    session.run("python", "-m", "build", "--wheel", "--outdir", str(folder), silent=True)
    (wheel,) = folder.glob("*.whl")
    session.run("python", "-m", "venv", "--clear", str(folder / "empty"), silent=True)
    python = folder / "empty" / ("Scripts" if os.name == "nt" else "bin") / "python"
    session.run(str(python), "-m", "pip", "install", "--quiet", str(wheel), external=True)
    wheel.unlink()
    session.chdir(folder)
    shutil.rmtree("run", ignore_errors=True)
    xpnn = python.with_name("xpnn")
    session.run(str(xpnn), "train", "--backend", "numpy", "--epochs", "10", "--out", "run", external=True)
    session.run(str(xpnn), "evaluate", "run", external=True)
    session.run(str(xpnn), "check", external=True)


def _pytest(session: nox.Session, backend: str) -> None:
    session.run("pytest", "--backend", backend, *session.posargs)
