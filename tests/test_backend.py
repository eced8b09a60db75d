"""The ground floor: array libraries and their devices."""

import importlib
import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

import xpnn
from xpnn import backend as backends
from xpnn.backend import CuPy, NumPy, Strict, Torch, dtype_name, library_of, namespace, one_kind
from xpnn.errors import BackendUnavailable, SettingError, XpnnError
from xpnn.layers import batchnorm_forward

AVAILABLE = [name for name in (*backends.BACKENDS, "array-api-strict:device1") if backends.get(name).is_available()]
DTYPES = ["bool", "uint8", "int32", "int64", "float32", "float64"]


def available(name):
    backend = backends.get(name)
    if not backend.is_available():
        pytest.skip(backend.reason)
    return backend


@pytest.fixture
def no_environment(monkeypatch):
    monkeypatch.delenv("XPNN_BACKEND", raising=False)


@pytest.fixture
def fake_cupy(monkeypatch):
    """A cupy whose CUDA runtime says what the test wants."""

    def install(device_count, ones=np.ones):
        runtime = SimpleNamespace(getDeviceCount=device_count)
        monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime), ones=ones))

    return install


def raising(error):
    def raise_it(*_):
        raise error

    return raise_it


# Finding a backend


@pytest.mark.usefixtures("no_environment")
def test_without_a_name_it_is_numpy():
    assert backends.get().name == "numpy"


def test_without_a_name_the_environment_decides(monkeypatch):
    monkeypatch.setenv("XPNN_BACKEND", "array-api-strict:device1")
    assert str(backends.get()) == "array-api-strict:device1"


def test_a_name_goes_before_the_environment(monkeypatch):
    monkeypatch.setenv("XPNN_BACKEND", "torch")
    assert backends.get("numpy").name == "numpy"


def test_an_empty_environment_variable_is_none(monkeypatch):
    monkeypatch.setenv("XPNN_BACKEND", "")
    assert backends.get().name == "numpy"


def test_a_backend_is_returned_as_it_is():
    backend = backends.get("numpy")
    assert backends.get(backend) is backend


def test_the_same_name_gives_the_same_object():
    assert backends.get("array-api-strict:device1") is backends.get("array-api-strict:device1")


@pytest.mark.parametrize(("gpu", "expected"), [(True, "cupy"), (False, "numpy")])
def test_auto_is_cupy_where_it_is_available_else_numpy(monkeypatch, gpu, expected):
    monkeypatch.setattr(CuPy, "is_available", lambda self: gpu)
    assert backends.get("auto").name == expected


@pytest.mark.parametrize("name", ["jax", "NumPy", ":1"])
def test_an_unknown_name_is_refused(name):
    expected = f"backend: expected one of numpy, cupy, torch, array-api-strict, auto; received '{name}'"
    with pytest.raises(SettingError, match=expected):
        backends.get(name)


def test_an_unknown_name_in_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv("XPNN_BACKEND", "tensorflow")
    with pytest.raises(SettingError, match="received 'tensorflow'"):
        backends.get()


# Why a backend cannot be used


def test_an_available_backend_has_no_reason():
    assert NumPy().reason == ""
    assert NumPy().install == ""
    assert NumPy().is_available()


@pytest.mark.parametrize(
    ("cls", "package", "pip"),
    [
        (Torch, "torch", "torch"),
        (Strict, "array_api_strict", "array-api-strict"),
        (CuPy, "cupy", r"'cupy-cuda13x\[ctk\]'"),
    ],
)
def test_a_missing_library_is_named_with_what_installs_it(monkeypatch, cls, package, pip):
    monkeypatch.setattr(
        importlib, "import_module", raising(ModuleNotFoundError(f"No module named {package!r}", name=package))
    )
    backend = cls()
    assert not backend.is_available()
    assert backend.reason == f"{package} is not installed"
    with pytest.raises(BackendUnavailable, match=f"backend {backend}: {package} is not installed; pip install {pip}"):
        backend.require()


def test_a_library_that_lacks_a_module_of_its_own_is_broken_rather_than_missing(monkeypatch):
    missing = ModuleNotFoundError("No module named 'cuda_pathfinder'", name="cuda_pathfinder")
    monkeypatch.setattr(importlib, "import_module", raising(missing))
    assert CuPy().reason == "cupy does not import: No module named 'cuda_pathfinder'"


def test_a_library_that_fails_to_import_says_why_in_one_line(monkeypatch):
    monkeypatch.setattr(importlib, "import_module", raising(OSError("libcudart.so is missing\nmore\nlines")))
    backend = CuPy()
    assert backend.reason == "cupy does not import: libcudart.so is missing"
    assert backend.install.startswith("pip install --force-reinstall")


def test_an_error_without_a_message_is_named(monkeypatch):
    monkeypatch.setattr(importlib, "import_module", raising(ImportError()))
    assert Torch().reason == "torch does not import: ImportError"


def test_an_unavailable_backend_makes_no_arrays(monkeypatch):
    monkeypatch.setattr(
        importlib, "import_module", raising(ModuleNotFoundError("No module named 'torch'", name="torch"))
    )
    with pytest.raises(BackendUnavailable, match="torch is not installed"):
        Torch().asarray([1.0])


def test_backend_unavailable_is_an_error_of_xpnn_that_the_command_line_prints():
    assert issubclass(BackendUnavailable, XpnnError)
    assert issubclass(SettingError, ValueError)


def test_cupy_without_a_driver_says_so(fake_cupy):
    fake_cupy(raising(RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")))
    assert CuPy().reason == "no CUDA driver was found"
    assert "driver" in CuPy().install


def test_cupy_whose_runtime_fails_says_how(fake_cupy):
    fake_cupy(raising(RuntimeError("cudaErrorUnknown: unknown error\nsecond line")))
    assert CuPy().reason == "CUDA failed: cudaErrorUnknown: unknown error"


def test_cupy_without_a_device_says_so(fake_cupy):
    fake_cupy(lambda: 0)
    assert CuPy().reason == "the CUDA driver sees no device"


def test_cupy_is_one_device_that_the_environment_chooses(fake_cupy):
    fake_cupy(lambda: 2)
    assert CuPy("1").reason == "CuPy's backend is one device; received '1'"
    assert CuPy("1").install == "`--device` or CUDA_VISIBLE_DEVICES chooses it"


@pytest.mark.parametrize(
    ("listed", "number", "expected"), [(None, 0, "0"), ("", 3, "3"), ("4", 0, "4"), ("2,GPU-7f,1", 1, "GPU-7f")]
)
def test_one_device_is_seen(monkeypatch, listed, number, expected):
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "")
    monkeypatch.delenv("CUDA_DEVICE_ORDER")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed or "")
    if listed is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    backends.see_one_device(number)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"  # as nvidia-smi counts


@pytest.mark.parametrize(("listed", "number"), [("", -1), ("4", 1), ("2,3", -1)])
def test_a_device_that_is_not_there_is_not_seen(monkeypatch, listed, number):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    with pytest.raises(SettingError, match=f"device: expected a number .*; received {number}"):
        backends.see_one_device(number)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == listed


def test_the_peak_of_memory_counts_what_was_freed():
    before = backends.get("numpy").peak_memory()
    np.ones(25_000_000)  # 200 MB
    assert backends.get("numpy").peak_memory() >= max(before, 200e6)


def test_cupy_with_a_device_is_available(fake_cupy):
    fake_cupy(lambda: 2)
    assert CuPy().is_available()


def test_cupy_without_the_compiler_or_cublas_cannot_compute_and_says_what_to_install(fake_cupy):
    fake_cupy(lambda: 1, ones=raising(RuntimeError("libnvrtc.so was not found")))
    assert CuPy().reason == "CuPy cannot compute: libnvrtc.so was not found"
    assert "cupy-cuda13x[ctk]" in CuPy().install


def test_numpy_has_no_devices():
    assert backends.get("numpy:0").reason == "NumPy has no device '0'"


def test_strict_has_some_devices_only():
    available("array-api-strict")
    assert backends.get("array-api-strict:gpu").reason == "array-api-strict has no device 'gpu'"


def test_torch_says_which_device_it_lacks():
    available("torch")
    assert backends.get("torch:nonsense").reason.startswith("torch has no device 'nonsense' here: ")


# Arrays in and out


@pytest.mark.parametrize("dtype_to_keep", DTYPES)
@pytest.mark.parametrize("there", AVAILABLE)
@pytest.mark.parametrize("here", AVAILABLE)
def test_a_round_trip_between_two_backends_keeps_every_number(here, there, dtype_to_keep):
    expected = np.array([[0, 1, 2], [3, 4, 5]]).astype(dtype_to_keep)
    x = backends.get(here).asarray(expected)
    y = backends.get(there).asarray(x)
    assert backends.of(y) is backends.get(there)
    assert dtype_name(y.dtype) == dtype_to_keep
    back = backends.get(there).to_numpy(y)
    assert type(back) is np.ndarray
    assert back.dtype == dtype_to_keep
    np.testing.assert_array_equal(back, expected)


def test_asarray_takes_lists_and_numbers(kind):
    kind.check(kind.backend.asarray([[1.0, 2.0]], dtype="float32"), "float32", (1, 2))
    kind.check(kind.backend.asarray(3, dtype="float64"), "float64", ())


@pytest.mark.parametrize("as_dtype", ["float32", np.float32, np.dtype("float32")])
def test_asarray_takes_a_dtype_by_name_or_of_numpy(kind, as_dtype):
    kind.check(kind.backend.asarray(np.arange(3), dtype=as_dtype), "float32")


def test_asarray_takes_a_dtype_of_another_library(kind):
    strict = available("array-api-strict")
    kind.check(kind.backend.asarray(np.arange(3), dtype=strict.dtype("float32")), "float32")


def test_asarray_returns_its_own_arrays_without_a_copy(kind, dtype):
    x = kind.writable([1.0, 2.0], dtype)
    kind.backend.asarray(x)[...] = 7.0
    kind.assert_close(x, [7.0, 7.0])


@pytest.mark.parametrize("there", [name for name in AVAILABLE if name != "numpy"])
def test_asarray_copies_an_array_of_another_library(there):
    x = np.array([1.0, 2.0])
    y = backends.get(there).asarray(x)
    x[...] = 7.0
    np.testing.assert_array_equal(backends.to_numpy(y), [1.0, 2.0])


def test_asarray_takes_a_read_only_array(kind):
    x = np.array([1.0, 2.0])
    x.flags.writeable = False
    kind.assert_close(kind.backend.asarray(x), [1.0, 2.0])


def test_asarray_takes_a_reversed_array(kind):
    kind.assert_close(kind.backend.asarray(np.array([1.0, 2.0, 3.0])[::-1]), [3.0, 2.0, 1.0])


def test_zeros(kind, dtype):
    zeros = kind.backend.zeros((2, 3), dtype)
    kind.check(zeros, dtype, (2, 3))
    kind.assert_close(zeros, np.zeros((2, 3)))


def test_zeros_are_float32_by_default(kind):
    kind.check(kind.backend.zeros((2,)), "float32")


def test_an_unknown_dtype_is_refused_in_words(kind):
    with pytest.raises(SettingError, match="float33"):
        kind.backend.zeros((2,), "float33")


def test_to_numpy_takes_any_array_and_what_numpy_takes(kind):
    np.testing.assert_array_equal(backends.to_numpy(kind([1.0, 2.0])), [1.0, 2.0])
    np.testing.assert_array_equal(backends.to_numpy([1.0, 2.0]), [1.0, 2.0])


def test_to_numpy_takes_a_tensor_that_torch_differentiates():
    torch = available("torch").namespace
    x = torch.asarray([1.0, 2.0]).requires_grad_()
    np.testing.assert_array_equal(backends.to_numpy(x), [1.0, 2.0])


def test_of_returns_the_backend_with_its_device(kind):
    assert backends.of(kind([1.0])) is kind.backend


def test_of_refuses_what_is_no_array():
    with pytest.raises(TypeError, match="expected an array of numpy, .*; received list"):
        backends.of([1.0])


@pytest.mark.parametrize(
    ("name", "default"), [("torch:cpu", "torch"), ("array-api-strict:CPU_DEVICE", "array-api-strict")]
)
def test_the_default_device_by_name_is_the_default(name, default):
    available(default)
    assert backends.of(backends.get(name).zeros((1,))) is backends.get(name)


def test_a_backend_prints_as_its_name():
    assert str(backends.get("array-api-strict:device1")) == "array-api-strict:device1"
    assert repr(backends.get("numpy")) == "<xpnn backend numpy>"


def test_a_backend_tells_its_hardware_and_version(kind):
    assert kind.backend.device_name().strip()
    assert kind.backend.version()[0].isdigit()


def test_synchronize_may_be_called_anywhere(kind):
    assert kind.backend.synchronize() is None


# dtypes


@pytest.mark.parametrize("name", [*DTYPES, "int8", "int16", "uint16", "uint32", "uint64"])
@pytest.mark.parametrize("library", AVAILABLE)
def test_dtype_name_of_every_librarys_dtypes(library, name):
    assert dtype_name(backends.get(library).dtype(name)) == name


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("float32", "float32"),
        (float, "float64"),
        (np.float32, "float32"),
        (np.dtype("<f4"), "float32"),
        (np.dtype("<U3"), "str"),
    ],
)
def test_dtype_name_of_other_ways_to_say_it(given, name):
    assert dtype_name(given) == name


# Namespaces


def test_the_namespace_follows_the_arrays(kind):
    x = kind([1.0])
    assert namespace(x, x) is kind.backend.namespace


def test_kinds_that_mix_have_no_namespace():
    strict = available("array-api-strict")
    with pytest.raises(
        TypeError, match=r"expected arrays of one kind; received numpy\.ndarray, array_api_strict\.Array"
    ):
        namespace(np.ones(1), strict.zeros((1,)))


@pytest.mark.parametrize("x", [[1.0], 1.0, None, "x"])
def test_what_is_no_array_has_no_namespace(x):
    with pytest.raises(TypeError, match="expected an array of numpy"):
        namespace(x)


def test_library_of_a_numpy_subclass_and_scalar_is_numpy(tmp_path):
    assert library_of(np.memmap(tmp_path / "x", "float32", "w+", shape=(1,))) == "numpy"
    assert library_of(np.float32(1.0)) == "numpy"


class Named(np.ndarray):
    """Of a user's own."""


@pytest.mark.parametrize("memory", ["memmap", "subclass"])
def test_a_subclass_that_computes_as_numpys_arrays_is_one(memory, tmp_path):
    x = np.memmap(tmp_path / "x", "float32", "w+", shape=(3, 4)) if memory == "memmap" else np.ones((3, 4)).view(Named)
    x[...] = np.arange(12.0).reshape(3, 4)
    out, _ = batchnorm_forward(x, x[1] * 0 + 1, x[0] * 0, {"mode": "train"})
    np.testing.assert_allclose(out, np.array([[-(1.5**0.5)], [0.0], [1.5**0.5]]) * np.ones(4), rtol=1e-5, atol=1e-6)


def test_masked_arrays_and_matrices_are_refused():
    masked = np.ma.masked_less(np.ones((3, 4), "float32"), 0)
    with warnings.catch_warnings(action="ignore"):  # NumPy's own, of what is to go
        matrix = np.matrix(np.ones((3, 4), "float32"))
    for x, name in ((masked, r"numpy\.ma.*\.MaskedArray"), (matrix, r"numpy.*\.matrix")):
        with pytest.raises(TypeError, match=rf"batchnorm: expected x to be an array of numpy.*; received {name}"):
            batchnorm_forward(x, np.ones(4, "float32"), np.ones(4, "float32"), {"mode": "train"})
        for backend in map(backends.get, AVAILABLE):
            with pytest.raises(TypeError, match=f"expected an array that is not masked and no matrix; received {name}"):
                backend.asarray(x)


def test_library_of_what_is_no_array_is_none():
    assert library_of([1.0]) is None
    assert library_of(1.0) is None
    assert library_of(np) is None


def test_the_door_of_a_function_lets_one_kind_in(kind, dtype):
    assert one_kind("f", x=kind([1.0], dtype), y=kind([2.0], dtype)) is kind.backend.namespace


def test_the_door_of_a_function_names_it_and_every_argument():
    strict = available("array-api-strict:device1")
    x, y = np.ones(1), strict.zeros((1,))
    message = (
        r"^f: expected x and y of one kind; received x: numpy\.ndarray, y: array_api_strict\.Array \(device device1\)$"
    )
    with pytest.raises(TypeError, match=message):
        one_kind("f", x=x, y=y)


# What an import costs

HEAVY = ["cupy", "torch", "array_api_strict", "matplotlib", "typer", "rich", "pooch", "safetensors"]


def loaded_by(statement):
    code = f"import sys; {statement}; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    "statement",
    [
        "import xpnn",
        "import xpnn.layers, xpnn.losses, xpnn.models, xpnn.optim, xpnn.random, xpnn.gradient_check, xpnn.kernels",
        "from xpnn import FullyConnectedNet; FullyConnectedNet([2], 2, 2, rng=0)",
    ],
)
def test_the_mathematical_rooms_import_numpy_alone(statement):
    assert loaded_by(statement) == []


def test_the_package_offers_its_rooms_and_models():
    for name in xpnn.__all__:
        assert getattr(xpnn, name) is not None
    assert set(xpnn.__all__) <= set(dir(xpnn))
    with pytest.raises(AttributeError, match="'xpnn' has no attribute 'nothing'"):
        _ = xpnn.nothing
