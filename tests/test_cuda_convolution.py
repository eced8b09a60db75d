"""Convolution for CuPy without cuDNN: windows as rows of a matrix, on the CPU."""

import importlib
import os

import cublaslt_on_cpu
import cudnn_on_cpu
import numpy as np
import pytest
import stand_in

import test_cuda
from layouts import LAYOUTS
from test_kernels import CALLS, assert_same_results, channels_last, definition, normals
from xpnn import backend as backends
from xpnn import cli, kernels
from xpnn.windows import Window

FORWARD = "layers.convolution.correlate"
ACTIVATED, FILTER_GRAD, INPUT_GRAD = (f"{FORWARD}_{name}" for name in ("activated", "filter_grad", "input_grad"))
THREE = Window((3, 3), pad=(1, 1))


cupy = test_cuda.cupy


@pytest.fixture
def convolution(cupy):
    return importlib.import_module("xpnn.kernels.cupy.convolution")


def ours(function):
    return kernels.TABLE[function, "cupy"]


def on_device(cupy, args):
    return [cupy.array(x) if isinstance(x, np.ndarray) else x for x in args]


def launched():
    return [launch.kernel for launch in stand_in.launches]


@pytest.mark.parametrize("function", [FORWARD, FILTER_GRAD, INPUT_GRAD])
@pytest.mark.parametrize("columns", [1, 20_000])
def test_a_few_images_at_a_time_give_the_same(convolution, monkeypatch, function, columns):
    monkeypatch.setattr(convolution, "COLUMNS", columns)
    for args in CALLS[function]:
        assert_same_results(function, "cupy", ours(function), args)


@pytest.mark.parametrize("function", [FORWARD, FILTER_GRAD, INPUT_GRAD])
def test_columns_take_no_more_memory_than_they_may(cupy, convolution, monkeypatch, function):
    x, w = channels_last(normals(8, 4, 10, 10)), normals(4, 4, 3, 3)
    args = {FORWARD: (x, w, None, THREE, 1), FILTER_GRAD: (x, x, THREE, 1), INPUT_GRAD: (x, w, (10, 10), THREE, 1)}
    args = on_device(cupy, args[function])
    monkeypatch.setattr(convolution, "COLUMNS", 3 * 100 * 36 * 4)  # bytes of three images
    sizes, empty = [], cupy.empty
    monkeypatch.setattr(cupy, "empty", lambda *given, **named: sizes.append(empty(*given, **named)) or sizes[-1])
    ours(function)(*args)
    assert sum(array.ndim == 1 for array in sizes) == 1
    assert max(array.nbytes for array in sizes) <= convolution.COLUMNS
    assert launched() == ["im2col<float, true>"] * 3


def test_a_convolution_is_one_launch_and_one_product(cupy, monkeypatch):
    products, matmul = [], cupy.matmul
    monkeypatch.setattr(cupy, "matmul", lambda *args, **named: products.append(args) or matmul(*args, **named))
    x, w, dout = channels_last(normals(2, 8, 6, 6)), normals(4, 8, 3, 3), channels_last(normals(2, 4, 6, 6))
    strided = Window((3, 3), (2, 2), (1, 1))
    for function, args, expected in (
        (FORWARD, (x, w, None, THREE, 1), "im2col<float, true>"),
        (FILTER_GRAD, (dout, x, THREE, 1), "im2col<float, true>"),
        (INPUT_GRAD, (dout, w, (6, 6), THREE, 1), "im2col<float, true>"),
        (INPUT_GRAD, (dout[:, :, :3, :3], w, (6, 6), strided, 1), "col2im<float, true>"),
    ):
        stand_in.launches.clear()
        products.clear()
        ours(function)(*on_device(cupy, args))
        assert (launched(), len(products)) == ([expected], 1)


@pytest.mark.parametrize("b", [None, normals(8)])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_relu_is_part_of_the_product_or_one_launch_with_the_bias(cupy, convolution, monkeypatch, b, groups):
    x, w = channels_last(normals(4, 8, 6, 6)), normals(8, 8 // groups, 3, 3)
    args = *on_device(cupy, [x, w, b]), THREE, groups, "relu"
    expected, _ = definition(ACTIVATED)(x, w, b, *args[3:])
    monkeypatch.setattr(convolution, "COLUMNS", 2 * 36 * 72 * 4)  # bytes of two images
    for has_lt in (False, True):
        if has_lt:
            for asked in (convolution.cublaslt.library, convolution.cublaslt.obstacle):
                asked.cache_clear()
            cublaslt_on_cpu.install()
        stand_in.launches.clear()
        out, kept = ours(ACTIVATED)(*args)
        assert kept is out
        np.testing.assert_allclose(out.get(), expected, atol=1e-4)
        apart = ["add_and_activate<float, true, relu>"] * (groups > 1 or not has_lt)
        assert launched() == 2 * ["im2col<float, true>", *apart]
    name = "DEFAULT" if groups > 1 else "RELU" if b is None else "RELU_BIAS"
    assert [call.epilogue for call in cublaslt_on_cpu.calls] == 2 * [cublaslt_on_cpu.Epilogue[name]]


def test_a_window_of_one_pixel_needs_no_columns(cupy, convolution, monkeypatch):
    x, w = cupy.array(channels_last(normals(2, 8, 6, 6))), cupy.array(normals(4, 8, 1, 1))
    factors, multiply = [], convolution.multiply
    monkeypatch.setattr(convolution, "multiply", lambda *args, **more: factors.extend(args) or multiply(*args, **more))
    out = ours(FORWARD)(x, w, None, convolution.ONE_PIXEL, 1)
    dx = ours(INPUT_GRAD)(out, w, (6, 6), convolution.ONE_PIXEL, 1)
    ours(FILTER_GRAD)(out, x, convolution.ONE_PIXEL, 1)
    assert launched() == []
    for array in (x, w, out, dx):
        assert any(np.shares_memory(array, factor) for factor in factors)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("window", [THREE, Window((1, 1))])
@pytest.mark.usefixtures("convolution")
def test_images_may_lie_in_memory_as_they_like(layout, window):
    x = LAYOUTS[layout](normals(5, 4, 6, 7))
    if x.ndim == 4:
        w = normals(3, x.shape[1], *window.size)
        assert_same_results(FORWARD, "cupy", ours(FORWARD), (x, w, None, window, 1))
        dout = normals(len(x), 3, 6, 7)
        assert_same_results(FILTER_GRAD, "cupy", ours(FILTER_GRAD), (dout, x, window, 1))
        assert_same_results(
            INPUT_GRAD, "cupy", ours(INPUT_GRAD), (x, normals(x.shape[1], 3, *window.size), (6, 7), window, 1)
        )


def test_numbers_are_moved_one_by_one_where_16_bytes_do_not_fit(cupy):
    memory, w = cupy.array(normals(2 * 6 * 6 * 8 + 1)), cupy.array(normals(4, 8, 3, 3))
    for start, kernel in ((0, "im2col<float, true>"), (1, "im2col<float, false>")):
        stand_in.launches.clear()
        x = memory[start : start + 576].reshape(2, 6, 6, 8).transpose(0, 3, 1, 2)
        expected = definition(FORWARD)(x.get(), w.get(), None, THREE, 1)
        np.testing.assert_allclose(ours(FORWARD)(x, w, None, THREE, 1).get(), expected, atol=1e-5)
        assert launched() == [kernel]


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.usefixtures("convolution")
def test_channels_are_split_into_groups(groups):
    x, w, b = channels_last(normals(3, 8, 6, 7)), normals(16, 8 // groups, 3, 2), normals(16)
    window = Window((3, 2), (2, 1), (1, 1), (1, 2))
    dout = channels_last(normals(3, 16, *window.counts((6, 7))))
    assert_same_results(FORWARD, "cupy", ours(FORWARD), (x, w, b, window, groups))
    assert_same_results(FILTER_GRAD, "cupy", ours(FILTER_GRAD), (dout, x, window, groups))
    assert_same_results(INPUT_GRAD, "cupy", ours(INPUT_GRAD), (dout, w, (6, 7), window, groups))


@pytest.mark.parametrize("function", [FORWARD, FILTER_GRAD, INPUT_GRAD])
@pytest.mark.usefixtures("convolution")
def test_dtypes_are_promoted_as_by_the_definition(function):
    args = CALLS[function][0]
    first = next(i for i, x in enumerate(args) if isinstance(x, np.ndarray))
    mixed = [x.astype("float32") if i == first else x for i, x in enumerate(args)]
    assert args[first].dtype == np.float64
    expected = definition(function)(*mixed)
    received = ours(function)(*on_device(importlib.import_module("cupy"), mixed))
    assert received.dtype == expected.dtype
    np.testing.assert_allclose(received.get(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("function", [FORWARD, FILTER_GRAD, INPUT_GRAD])
@pytest.mark.parametrize("columns", [1, 2**28])
def test_half_types_lose_no_more_than_their_roundings(cupy, convolution, monkeypatch, half, function, columns):
    if half == "bfloat16":
        pytest.importorskip("ml_dtypes")
    monkeypatch.setattr(convolution, "COLUMNS", columns)
    cublaslt_on_cpu.install()  # NumPy would add up products of halves in halves
    rounding = 2.0**-11 if half == "float16" else 2.0**-8
    for args in CALLS[function]:
        if any(x.dtype != np.float32 for x in args if isinstance(x, np.ndarray)) or 0 in args[0].shape:
            continue
        args = [x.astype(half) if isinstance(x, np.ndarray) else x for x in args]
        expected = definition(function)(*(x.astype("float32") if isinstance(x, np.ndarray) else x for x in args))
        received = ours(function)(*on_device(cupy, args))
        assert received.dtype == np.dtype(half)
        # That of the result; and where windows are gathered, those of their gradients.
        atol = (4 if function == INPUT_GRAD else 0.01) * rounding * np.abs(expected).max(initial=0)
        np.testing.assert_allclose(received.get().astype("float32"), expected, rtol=1.01 * rounding, atol=atol)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(3, 5, 3, 3), (2, 600, 3, 2)])
def test_filters_of_half_types_are_laid_out_and_their_gradients_laid_back_by_a_launch_each(
    cupy, convolution, half, shape
):
    if half == "bfloat16":
        pytest.importorskip("ml_dtypes")
    half, w = np.dtype(half), normals(*shape)
    for kept, dtype in ((half, half), (np.dtype("float32"), half), (half, np.dtype("float32"))):
        stand_in.launches.clear()
        stand_in.computed.clear()
        filters = ours("layers.convolution.arranged")(cupy.array(w.astype(kept)), dtype)
        assert filters.transpose(0, 2, 3, 1).flags.c_contiguous
        np.testing.assert_array_equal(filters.get(), w.astype(kept).astype(dtype))
        grads = cupy.empty(shape, dtype=kept)
        convolution._arrange(filters, grads, to_last=False)
        np.testing.assert_array_equal(grads.get(), w.astype(kept).astype(dtype).astype(kept))
        assert [name.partition("<")[0] for name in launched()] == ["arrange", "arrange"]
        assert stand_in.computed == []


def test_what_is_in_use_is_told(cupy, convolution, monkeypatch):
    products = importlib.import_module("xpnn.kernels.cupy.products")
    assert products.describe() == "cupy.matmul, exact float32; faster by cuBLASLt: pip install nvmath-python"
    assert convolution.describe().startswith("im2col and products; faster by cuDNN: pip install ")
    for of in (products.cublaslt, convolution.cudnn):
        of.library.cache_clear()
        of.obstacle.cache_clear()
    cublaslt_on_cpu.install()
    cudnn_on_cpu.install()
    assert products.describe() == "cuBLASLt 13.5, exact float32"
    assert convolution.describe().startswith("cuDNN 9.19.0, exact float32")
    assert convolution.describe().endswith("; the fastest of up to 8 plans")
    monkeypatch.setattr(convolution.cudnn, "AUTOTUNE", False)
    assert convolution.describe().endswith("; the heuristic's first plan")


@pytest.fixture
def info(monkeypatch, capsys):
    """What `xpnn info` says of products and convolutions, with these variables in the environment."""
    if stand_in.COMPILER is None:
        pytest.skip("no g++ was found")
    backend = backends.get("cupy")
    for method in ("version", "device_name"):
        monkeypatch.setattr(type(backend), method, lambda self: "a stand-in")

    def lines(with_libraries, **variables):
        for name in ("XPNN_TF32", "CUPY_TF32"):
            monkeypatch.setenv(name, "")  # so that it is put back, whatever becomes of it
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with stand_in.installed():
            if with_libraries:
                cublaslt_on_cpu.install()
                cudnn_on_cpu.install()
            cli.info()
        said = [line.partition(" of cupy: ") for line in capsys.readouterr().out.splitlines()]
        return {what: words for what, _, words in said if words}

    return lines


EXACT, ROUNDED = (
    "cuDNN 9.19.0, exact float32, by im2col and products where cuDNN has no exact plan; ",
    "cuDNN 9.19.0, TF32; ",
)


@pytest.mark.parametrize(
    ("variables", "precision", "convolutions"),
    [
        ({}, "exact float32", EXACT),
        ({"XPNN_TF32": "0"}, "exact float32", EXACT),
        ({"XPNN_TF32": "1"}, "TF32", ROUNDED),
    ],
)
def test_info_says_whether_float32_is_exact(info, variables, precision, convolutions):
    said = info(with_libraries=True, **variables)
    assert said["products"] == f"cuBLASLt 13.5, {precision}"
    assert said["convolutions"].startswith(convolutions)
    assert os.environ.get("CUPY_TF32") == ("1" if precision == "TF32" else None)  # for what is left to CuPy


@pytest.mark.parametrize(
    ("variables", "precision"),
    [
        ({}, "exact float32"),
        ({"XPNN_TF32": "1"}, "TF32"),
        ({"CUPY_TF32": "1"}, "TF32"),
        ({"CUPY_TF32": "0"}, "exact float32"),
    ],
)
def test_info_says_whether_the_products_of_cupy_are_exact(info, variables, precision):
    said = info(with_libraries=False, **variables)
    assert said["products"] == f"cupy.matmul, {precision}; faster by cuBLASLt: pip install nvmath-python"


def test_info_says_where_cupy_rounds_what_is_left_to_it(info):
    words = "cuBLASLt 13.5, exact float32; CUPY_TF32 lets cupy.matmul round factors of what is left to it"
    assert info(with_libraries=True, CUPY_TF32="1")["products"] == words


@pytest.mark.parametrize(
    ("of", "call", "told"),
    [
        (cudnn_on_cpu, "create_handle", "cuDNN does not load ({}); faster by cuDNN: pip install "),
        (cudnn_on_cpu.pygraph, "check_support", "cuDNN 9.19.0 has no plan for a usual convolution ({})"),
    ],
)
def test_why_cudnn_does_not_work_is_told(cupy, convolution, monkeypatch, of, call, told):
    def fail(*_):
        raise RuntimeError("Unable to load\n any libcudart.so")

    monkeypatch.setattr(of, call, fail)
    cudnn_on_cpu.install()
    why = "RuntimeError: Unable to load any libcudart.so"
    assert convolution.describe().startswith(f"im2col and products; {told.format(why)}")


def test_why_cublaslt_does_not_work_is_told(cupy, monkeypatch):
    def fail():
        raise RuntimeError("libcublasLt.so is not there")

    monkeypatch.setattr(cublaslt_on_cpu, "create", fail)
    cublaslt_on_cpu.install()
    why = "nvmath-python does not load cuBLASLt (RuntimeError: libcublasLt.so is not there)"
    products, graph = (importlib.import_module(f"xpnn.kernels.cupy.{name}") for name in ("products", "graph"))
    assert products.describe() == f"cupy.matmul, exact float32; faster by cuBLASLt: {why}"
    assert graph.obstacle() == f"products by cupy.matmul cannot be recorded; {why}"


def test_a_frontend_of_cudnn_that_does_not_fit_is_as_none_and_named(cupy, convolution, monkeypatch):
    """Version 1.32 has tensors of its own, in Python, which cannot be told how arrays are aligned."""
    monkeypatch.delattr(cudnn_on_cpu.tensor, "set_alignment")
    monkeypatch.setattr(cudnn_on_cpu, "__version__", "1.32.0", raising=False)
    cudnn_on_cpu.install()
    for args in CALLS[FORWARD][:4]:
        assert_same_results(FORWARD, "cupy", ours(FORWARD), args)
    assert cudnn_on_cpu.executed == []
    assert convolution.describe() == (
        "im2col and products; nvidia-cudnn-frontend 1.32.0 does not fit "
        "(AttributeError: 'tensor' object has no attribute 'set_alignment'); "
        "faster by cuDNN: pip install 'nvidia-cudnn-frontend>=1.23,<1.24' nvidia-cudnn-cu13 (or -cu12)"
    )
