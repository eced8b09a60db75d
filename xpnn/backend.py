"""Ground floor: the one file that names array libraries.

A `Backend` is an array library on one device. The maths never holds one: it asks `namespace(x)` for the
standard functions of whatever arrays it was given. Backends are for the edges, where arrays are made,
moved and read: models, data, random numbers, files.

    >>> backend = get("numpy")
    >>> backend.asarray([1.0, 2.0], dtype="float32")
    array([1., 2.], dtype=float32)
"""

import functools
import importlib
import importlib.metadata
import os
import platform
import sys
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar
from weakref import WeakSet

import numpy as np

from xpnn.errors import BackendUnavailable, SettingError

Array = Any  # the standard has no type for "an array of some library"
Shape = tuple[int, ...]
FLOATING = ("float64", "float32", "float16", "bfloat16")
NUMPY_FLOATING = "dfe"  # the same, as NumPy's dtype.char
NO_ARRAYS = ("MaskedArray", "matrix")  # NumPy's own subclasses that leave out numbers, or multiply otherwise


class Fetched:
    """An array on its way to the host."""

    def __init__(self, host: np.ndarray, arrival: Any = None) -> None:
        self._host, self._arrival = host, arrival

    @property
    def is_there(self) -> bool:
        return self._arrival is None or self._arrival.done

    def to_numpy(self) -> np.ndarray:
        """Return it, once it is there."""
        if not self.is_there:
            self._arrival.synchronize()
        self._arrival = None
        return self._host

    def __getstate__(self) -> dict[str, Any]:  # no event can be copied
        return {"_host": self.to_numpy(), "_arrival": None}


class Backend:
    """An array library on one device.

    Attributes
    ----------
    name : str
        The library: ``"numpy"``, ``"cupy"``, ``"torch"`` or ``"array-api-strict"``.
    namespace : module
        Its functions, as the array API standard has them.
    device : object
        The device in the library's own terms.
    reason : str
        Why the backend cannot be used here, in words; empty where it can.
    install : str
        What installs what is missing; empty where nothing is.
    """

    name = ""
    package = ""
    pip = ""
    fetches_beside_work = False  # whether `fetch` waits for nothing
    default_device = ""
    has_devices = False  # whether one process may use several

    def __init__(self, device_id: str = "") -> None:
        self.device_id = device_id

    def __repr__(self) -> str:
        return f"<xpnn backend {self}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return get, (str(self),)  # there is one object for each backend, in copies and pickles too

    def __str__(self) -> str:
        return f"{self.name}:{self.device_id}" if self.device_id else self.name

    @functools.cached_property
    def _diagnosis(self) -> tuple[str, str]:
        """What is wrong and what to install; two empty strings where all is well."""
        try:
            importlib.import_module(self.package)
        except Exception as error:  # a broken installation may raise anything
            if isinstance(error, ModuleNotFoundError) and error.name == self.package:
                return f"{self.package} is not installed", f"pip install {self.pip}"
            return (
                f"{self.package} does not import: {_first_line(error)}",
                f"pip install --force-reinstall {self.pip}",
            )
        return self._diagnose_device()

    def _diagnose_device(self) -> tuple[str, str]:
        """The same for the device, once the library is imported."""
        return "", ""

    @property
    def reason(self) -> str:
        return self._diagnosis[0]

    @property
    def install(self) -> str:
        return self._diagnosis[1]

    @property
    def asynchronous(self) -> bool:
        """Whether work is queued, so that reading a value waits for the device."""
        return False

    def is_available(self) -> bool:
        return not self.reason

    def require(self) -> "Backend":
        """Return the backend itself, or raise `BackendUnavailable` with the reason and the remedy."""
        if self.reason:
            raise BackendUnavailable(f"backend {self}: {self.reason}" + (f"; {self.install}" if self.install else ""))
        return self

    @functools.cached_property
    def namespace(self) -> Any:
        return _load_namespace(self.require().package)

    @functools.cached_property
    def device(self) -> Any:
        return self.require() and self._device()

    def _device(self) -> Any:
        return "cpu"

    def device_name(self) -> str:
        """The hardware behind the device, for people to read."""
        return _processor()

    def version(self) -> str:
        return importlib.metadata.version(self.package.replace("_", "-"))

    def asarray(self, x: Any, dtype: Any = None, copy: bool = False) -> Array:
        """Return `x` as an array of this backend, copied where the library, device or dtype differ, or `copy` says so.

        `x` may be an array of any backend, or anything NumPy takes; `dtype` a name or any library's dtype. For a
        masked array it raises TypeError: the mask would be lost.
        """
        if isinstance(x, np.ndarray) and not is_array(x):
            raise TypeError(f"expected an array that is not masked and no matrix; received {describe(x)}")
        if library_of(x) not in (self.name, None):
            x, copy = to_numpy(x), True
        kwargs = {} if dtype is None else {"dtype": self.dtype(dtype)}
        return self.namespace.asarray(x, device=self.device, copy=copy or None, **kwargs)

    def zeros(self, shape: Shape, dtype: Any = "float32") -> Array:
        return self.namespace.zeros(shape, dtype=self.dtype(dtype), device=self.device)

    def dtype(self, dtype: Any, where: str = "dtype") -> Any:
        """Return this library's dtype of the given name; raise `SettingError` where it has none."""
        name = dtype_name(dtype)
        try:
            return getattr(self.namespace, name)
        except AttributeError:
            expected = f"one that {self.name} has, such as 'float32'"
            raise SettingError(f"{where}: expected {expected}; received {name!r}") from None

    def to_numpy(self, x: Array) -> np.ndarray:
        """Return `x` as a NumPy array on the host, waiting for the device where needed."""
        return np.asarray(x)

    def fetch(self, x: Array) -> Fetched:
        """Have `x` on the host; without waiting for it where `fetches_beside_work`."""
        return Fetched(self.to_numpy(x))

    def synchronize(self) -> None:
        """Wait until all work queued on the device is done."""

    def device_id_of(self, x: Array) -> str:
        """The device of `x`, as `get` takes it after the colon; empty for the library's default."""
        return ""

    def peak_memory(self) -> int | None:
        """The most bytes that this process has held at a time since it began; None where nobody counts them.

        On the host that is all of its memory. On a CUDA device it is what CuPy has taken for arrays, also where they
        are free again and wait for others; it is not what the driver and the libraries need.
        """
        try:
            import resource
        except ImportError:  # Windows
            return None
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak

    def free_memory(self) -> None:
        """Give back what the library keeps of freed arrays."""

    def overflow_ignored(self) -> AbstractContextManager[Any]:
        """Within, numbers may become infinite without a warning, as they do on other backends anyway."""
        return nullcontext()


class NumPy(Backend):
    name = package = pip = "numpy"

    def overflow_ignored(self) -> AbstractContextManager[Any]:
        return np.errstate(over="ignore", invalid="ignore")

    def _diagnose_device(self) -> tuple[str, str]:
        return (f"NumPy has no device {self.device_id!r}" if self.device_id else ""), ""


class CuPy(Backend):
    name = package = "cupy"
    pip = "'cupy-cuda13x[ctk]' (for a CUDA 12 driver 'cupy-cuda12x[ctk]')"
    default_device = "0"
    pools: ClassVar[WeakSet[Any]] = WeakSet()  # of memory, besides CuPy's own: each says its `total_bytes()`
    _peak = 0
    fetches_beside_work = True

    @property
    def asynchronous(self) -> bool:
        return True

    def _diagnose_device(self) -> tuple[str, str]:
        import cupy

        try:
            if cupy.cuda.runtime.getDeviceCount() == 0:
                return "the CUDA driver sees no device", ""
        except Exception as error:  # CUDARuntimeError: which of its classes depends on the version
            if "InsufficientDriver" in str(error):
                return "no CUDA driver was found", "install NVIDIA's driver for CUDA 13 or 12"
            return f"CUDA failed: {_first_line(error)}", ""
        if self.device_id:  # array-api-compat knows CuPy's current device only
            received, remedy = repr(self.device_id), "`--device` or CUDA_VISIBLE_DEVICES chooses it"
            return f"CuPy's backend is one device; received {received}", remedy
        try:  # the wheel alone has neither NVRTC nor cuBLAS
            x = cupy.ones((2, 2)) + 1
            int((x @ x).sum())
        except Exception as error:
            return f"CuPy cannot compute: {_first_line(error)}", f"pip install {self.pip}"
        return "", ""

    def _device(self) -> Any:
        import cupy

        return cupy.cuda.Device(0)

    def device_name(self) -> str:
        import cupy

        runtime = cupy.cuda.runtime
        name = runtime.getDeviceProperties(self.device.id)["name"].decode()
        return f"{name}, CUDA driver {runtime.driverGetVersion()}"

    def version(self) -> str:
        import cupy

        return cupy.__version__  # the wheel's name carries the CUDA version

    def to_numpy(self, x: Array) -> np.ndarray:
        return x.get()

    @functools.cached_property
    def _fetching(self) -> deque[tuple[Any, Any]]:
        """Memory on the host that is written to, and the event after that."""
        return deque()

    def fetch(self, x: Array) -> Fetched:
        import cupy
        import cupyx

        while self._fetching and self._fetching[0][1].done:
            self._fetching.popleft()  # its memory may be taken again, where more might be waited for
        host = cupyx.empty_pinned(x.shape, x.dtype)  # a copy to other memory is waited for
        x.get(out=host, blocking=False)
        arrival = cupy.cuda.Event(disable_timing=True)
        arrival.record()
        self._fetching.append((host, arrival))  # still to be written to, even where the caller forgets it
        return Fetched(host, arrival)

    def synchronize(self) -> None:
        import cupy

        cupy.cuda.get_current_stream().synchronize()

    def dtype(self, dtype: Any, where: str = "dtype") -> Any:
        if dtype_name(dtype) != "bfloat16":
            return super().dtype(dtype, where)
        try:
            import ml_dtypes  # CuPy takes the type from there
        except ImportError:
            raise SettingError(f"{where}: expected ml_dtypes for bfloat16; pip install ml_dtypes") from None
        return ml_dtypes.bfloat16

    def peak_memory(self) -> int | None:
        import cupy

        # A pool grows until memory runs short: what it held just before it gives back is then about all that there is.
        pools = cupy.get_default_memory_pool(), *self.pools
        self._peak = max(self._peak, sum(pool.total_bytes() for pool in pools))
        return self._peak

    def free_memory(self) -> None:
        import cupy

        self.peak_memory()
        cupy.get_default_memory_pool().free_all_blocks()


class Torch(Backend):
    name = package = pip = "torch"
    default_device = "cpu"
    has_devices = True

    def _diagnose_device(self) -> tuple[str, str]:
        import torch

        try:
            torch.empty(0, device=self.device_id or "cpu")
        except Exception as error:
            return f"torch has no device {self.device_id!r} here: {_first_line(error)}", ""
        return "", ""

    @property
    def asynchronous(self) -> bool:
        return self.device_id.startswith("cuda")

    def _device(self) -> Any:
        import torch

        return torch.device(self.device_id or "cpu")

    def asarray(self, x: Any, dtype: Any = None, copy: bool = False) -> Array:
        if isinstance(x, np.ndarray) and is_array(x):
            import torch

            # It takes no read-only or reversed memory, and no foreign byte order.
            x = torch.from_numpy(np.array(x, dtype=x.dtype.newbyteorder("=")))
        return super().asarray(x, dtype, copy)

    def to_numpy(self, x: Array) -> np.ndarray:
        x = x.detach().cpu()
        return (x.float() if dtype_name(x.dtype) == "bfloat16" else x).numpy()  # NumPy has no bfloat16

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)

    def device_id_of(self, x: Array) -> str:
        return "" if x.device.type == "cpu" else str(x.device)


class Strict(Backend):
    """The reference implementation of the standard: it refuses whatever the standard does not promise."""

    name = "array-api-strict"
    package = "array_api_strict"
    pip = "array-api-strict"
    default_device = "CPU_DEVICE"
    has_devices = True

    def _diagnose_device(self) -> tuple[str, str]:
        try:
            self._device()
        except Exception:
            return f"array-api-strict has no device {self.device_id!r}", ""
        return "", ""

    def _device(self) -> Any:
        import array_api_strict

        return array_api_strict.Device(self.device_id or "CPU_DEVICE")

    def to_numpy(self, x: Array) -> np.ndarray:
        import array_api_strict

        return np.asarray(x.to_device(array_api_strict.Device("CPU_DEVICE")))

    def device_id_of(self, x: Array) -> str:
        device = str(x.device).split("'")[1]
        return "" if device == "CPU_DEVICE" else device


BACKENDS: dict[str, type[Backend]] = {cls.name: cls for cls in (NumPy, CuPy, Torch, Strict)}
_LIBRARIES = {cls.package: name for name, cls in BACKENDS.items()}


@functools.cache
def _instance(name: str, device_id: str) -> Backend:
    return BACKENDS[name](device_id)


def get(name: "str | Backend | None" = None) -> Backend:
    """Return a backend by name, whether or not it is available here.

    Parameters
    ----------
    name : str, optional
        A library, with a device after a colon where it has several: ``"cupy"``, ``"torch:cuda:1"``.
        ``"auto"`` is CuPy where a CUDA device is, else NumPy. Without a name the
        environment variable ``XPNN_BACKEND`` decides, else it is NumPy.

    Raises
    ------
    SettingError
        For an unknown name.
    """
    if isinstance(name, Backend):
        return name
    name = name or os.environ.get("XPNN_BACKEND") or "numpy"
    if not isinstance(name, str):
        raise SettingError(f"backend: expected a name; received {name!r}")
    if name == "auto":
        cupy = _instance("cupy", "")
        return cupy if cupy.is_available() else _instance("numpy", "")
    library, _, device_id = name.partition(":")
    if library not in BACKENDS:
        raise SettingError(f"backend: expected one of {', '.join([*BACKENDS, 'auto'])}; received {name!r}")
    device_id = {"cuda": "cuda:0", "cpu:0": "cpu"}.get(device_id, device_id)  # torch's own short forms
    return _instance(library, "" if device_id == BACKENDS[library].default_device else device_id)


def see_one_device(number: int) -> None:
    """Let this process see that CUDA device alone; to be called before anything asks for one.

    Parameters
    ----------
    number : int
        Counted from 0 as ``nvidia-smi`` does, or among those that ``CUDA_VISIBLE_DEVICES`` lists.

    Raises
    ------
    SettingError
        For a number below 0 or beyond that list.
    """
    listed = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if number < 0 or (listed and number >= len(listed)):
        among = f"below {len(listed)}, as CUDA_VISIBLE_DEVICES lists {','.join(listed)}" if listed else "of at least 0"
        raise SettingError(f"device: expected a number {among}; received {number}")
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # CUDA's own order is another one
    os.environ["CUDA_VISIBLE_DEVICES"] = listed[number] if listed else str(number)


_without_devices: dict[type, Backend] = {}  # by the kind of their arrays, as of() has seen them


def of(x: Array) -> Backend:
    """Return the backend that the array `x` lives on."""
    return _without_devices.get(type(x)) or _of(x)


def _of(x: Array) -> Backend:
    library = library_of(x)
    if library is None:
        raise TypeError(f"expected an array of {', '.join(BACKENDS)}; received {type(x).__name__}")
    backend = _instance(library, "")
    if backend.has_devices:
        return _instance(library, backend.device_id_of(x))
    _without_devices[type(x)] = backend
    return backend


def to_numpy(x: Any) -> np.ndarray:
    """Return an array of any backend, or anything NumPy takes, as a NumPy array."""
    library = library_of(x)
    return np.asarray(x) if library is None else _instance(library, "").to_numpy(x)


def library_of(x: Any) -> str | None:
    """Return the name of the library whose array `x` is; None for what is no array."""
    kind: Any = type(x)
    return _library_of_type(kind)


@functools.cache
def _library_of_type(kind: Any) -> str | None:
    if any(base.__name__ in NO_ARRAYS and base.__module__.startswith("numpy") for base in kind.__mro__):
        return None
    for base in kind.__mro__:
        library = _LIBRARIES.get(base.__module__.partition(".")[0])
        if library is not None and hasattr(kind, "dtype"):
            return library
    return None


_namespaces: dict[type, Any] = {}  # what namespace() has seen: one dict look-up per call, no import


def namespace(*arrays: Array) -> Any:
    """Return the array API namespace that the arrays share.

    Raises
    ------
    TypeError
        When they come from different libraries, or are no arrays.
    """
    xp = _namespaces.get(type(arrays[0])) or _learn(arrays[0])
    for x in arrays[1:]:
        if (_namespaces.get(type(x)) or _learn(x)) is not xp:
            kinds = ", ".join(describe(a) for a in arrays)
            raise TypeError(f"expected arrays of one kind; received {kinds}")
    return xp


def _learn(x: Any) -> Any:
    xp = _namespaces[type(x)] = of(x).namespace
    return xp


def one_kind(where: str, **arrays: Array) -> Any:
    """Return the namespace of a function's floating-point arguments, or say which of them does not fit.

    The door of every public function: `where` is its name, the keywords are its arguments' names.

    Raises
    ------
    TypeError
        When they come from different libraries or devices, or hold no floating-point numbers.
    """
    for x in arrays.values():  # nearly always they are NumPy's, and one look at each is enough
        if type(x) is not np.ndarray or x.dtype.char not in NUMPY_FLOATING:
            break
    else:
        return namespace(x)
    for name, x in arrays.items():
        if not is_array(x):
            known = ", ".join(BACKENDS)
            raise TypeError(f"{where}: expected {name} to be an array of {known}; received {describe(x)}")
    if len({of(x) for x in arrays.values()}) > 1:
        received = ", ".join(f"{name}: {describe(x)}" for name, x in arrays.items())
        raise TypeError(f"{where}: expected {_listing(arrays)} of one kind; received {received}")
    for name, x in arrays.items():
        if not is_floating(x):
            raise TypeError(f"{where}: expected {name} of a floating-point dtype; received {dtype_name(x.dtype)}")
    return namespace(x)


def indices_below(where: str, name: str, x: Array, stop: int) -> Array:
    """Return integers (N,) as int64, or say which of them is not from 0 to ``stop - 1``, where they are on the host.

    Raises
    ------
    ValueError
        For one out of range.
    """
    xp = namespace(x)
    out = xp.astype(x, xp.int64, copy=False)  # uint64 from 2**63 on turns negative
    if not of(x).asynchronous and bool(xp.any((out < 0) | (out >= stop))):
        worst = x[int(xp.argmin(out) if bool(xp.any(out < 0)) else xp.argmax(out))]
        raise ValueError(f"{where}: expected {name} from 0 to {stop - 1}; received {int(to_numpy(worst))}")
    return out


def describe(x: Any) -> str:
    """Say what `x` is, for an error message: ``cupy.ndarray (device 0)``."""
    library = library_of(x)
    if library is None or library == "numpy":
        return f"{type(x).__module__}.{type(x).__qualname__}".removeprefix("builtins.")
    backend = of(x)
    return f"{backend.package}.{type(x).__name__} (device {backend.device_id or backend.default_device})"


def written(result: Array, out: Array | None) -> Array:
    """Return an array; in `out`, and in the dtype of that, where it is given."""
    if out is None or out is result:
        return result
    out[...] = result
    return out


def is_array(x: Any) -> bool:
    return library_of(x) is not None


def dtype_name(dtype: Any) -> str:
    """Return the name of a dtype of any library: ``"float32"``."""
    kind: Any = type(dtype)
    return _dtype_name(kind, dtype)


@functools.cache
def _dtype_name(kind: Any, dtype: Any) -> str:  # the kind keeps dtypes of two libraries from being compared
    if isinstance(dtype, str):
        return dtype
    if isinstance(dtype, np.dtype) and dtype.kind in "SU":
        return dtype.type.__name__.rstrip("_")  # their names count bits
    if isinstance(dtype, np.dtype) or dtype is float:
        return np.dtype(dtype).name
    return (getattr(dtype, "__name__", None) or str(dtype)).rpartition(".")[2]


def is_floating(x: Array) -> bool:
    return dtype_name(x.dtype) in FLOATING


def is_integer(x: Array) -> bool:
    return dtype_name(x.dtype).startswith(("int", "uint"))


def is_real(x: Array) -> bool:
    return is_floating(x) or is_integer(x) or dtype_name(x.dtype) == "bool"


@functools.cache
def _load_namespace(package: str) -> Any:
    if package == "numpy" and hasattr(np, "astype"):  # from 2.1 on NumPy itself is the standard
        return np
    if package == "array_api_strict":
        return importlib.import_module(package)
    return importlib.import_module(f"array_api_compat.{package}")


def _listing(names: Any) -> str:
    *rest, last = names
    return f"{', '.join(rest)} and {last}" if rest else last


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


@functools.cache
def _processor() -> str:
    """The CPU's name and the number of cores that this process may use."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as cpuinfo:
            name = next((line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")), name)
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"
