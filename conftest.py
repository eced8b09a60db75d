"""The fixture that runs a test on every kind of array.

``pytest`` alone runs on all that are installed and skips the others by name; ``pytest --backend cupy`` runs on that
backend alone and fails at once where it is not available.
"""

import functools
import signal
from typing import Any

import numpy as np
import pytest

from xpnn import backend as backends
from xpnn.backend import Array, dtype_name

# Kind of array -> the backend it lives on. array-api-strict on a device that is not its default stands in for a
# GPU: it refuses silent conversion to NumPy, mixed devices, and whatever is not in the standard.
KINDS = {
    "numpy": "numpy",
    "numpy-readonly": "numpy",
    "array-api-strict": "array-api-strict:device1",
    "torch": "torch",
    "cupy": "cupy",
}


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell; some tests interrupt a training
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Kind:
    """A kind of array: makes them from NumPy's, reads them back, and checks that results are of the same kind."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.backend = backends.get(KINDS[name])

    def __repr__(self) -> str:
        return self.name

    @property
    def xp(self) -> Any:
        return self.backend.namespace

    def __call__(self, x: Any, dtype: Any = None) -> Array:
        """An array of this kind, in memory of its own."""
        array = self.backend.asarray(np.array(x, dtype=dtype and dtype_name(dtype)))
        if self.name == "numpy-readonly":
            array.flags.writeable = False
        return array

    def writable(self, x: Any, dtype: Any = None) -> Array:
        """The same, for state that a function may write to."""
        return self.backend.asarray(np.array(x, dtype=dtype and dtype_name(dtype)))

    def to_numpy(self, x: Array) -> np.ndarray:
        return self.backend.to_numpy(x)

    def check(self, x: Array, dtype: Any = None, shape: tuple[int, ...] | None = None) -> Array:
        """Assert library, device, and where given dtype and shape; return x."""
        assert backends.library_of(x) == self.backend.name
        assert backends.of(x) is self.backend
        if dtype is not None:
            assert dtype_name(x.dtype) == dtype_name(dtype)
        if shape is not None:
            assert tuple(x.shape) == shape
        return x

    def assert_close(self, x: Array, expected: Any, rtol: float = 0.0, atol: float = 0.0) -> None:
        """Assert kind and values; the tolerance is always the test's own."""
        self.check(x)
        np.testing.assert_allclose(self.to_numpy(x), expected, rtol=rtol, atol=atol)


def pytest_addoption(parser: pytest.Parser) -> None:
    names = sorted({name.partition(":")[0] for name in KINDS.values()})
    parser.addoption("--backend", choices=names, help="run on this backend alone, and fail where it is not available")


def pytest_configure(config: pytest.Config) -> None:
    name = config.getoption("--backend")
    if name is not None:
        reason = backends.get(name).reason
        if reason:
            raise pytest.UsageError(f"--backend {name} was asked for: {reason}; {backends.get(name).install}")
    if backends.get("array-api-strict").is_available():
        import array_api_strict

        array_api_strict.set_array_api_strict_flags(
            api_version="2024.12", boolean_indexing=False, data_dependent_shapes=False, enabled_extensions=()
        )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--backend")
        names = [k for k, b in KINDS.items() if chosen in (None, b.partition(":")[0])]
        metafunc.parametrize("kind", [_param(name) for name in names], scope="session")
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", ["float64", "float32"])


def _param(name: str) -> Any:
    reason = backends.get(KINDS[name]).reason
    marks = [pytest.mark.skip(reason=f"{name}: {reason}")] if reason else []
    return pytest.param(None if reason else _kind(name), id=name, marks=marks)


@functools.cache
def _kind(name: str) -> Kind:
    return Kind(name)
