"""The kernels for CuPy without a device: their results on the CPU, and that CUDA's compiler takes them."""

import functools
import importlib
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import stand_in
from stand_in import KernelError

from layouts import LAYOUTS, MANY
from test_kernels import CALLS, assert_same_results, definition, normals
from training.solvers import make_net, make_solver
from xpnn import kernels, random

DEMANDED = bool(os.environ.get("XPNN_DEMAND_CUDA"))
FOLDER = Path(kernels.__file__).parent / "cupy"
SOURCES = sorted(path.name for path in FOLDER.glob("*.cu"))
ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")

HALF = re.compile("half|bfloat16")

# Functions that write into their arguments.
IN_PLACE = (
    *("optim.in_place.", "products.matmul", "layers.affine.", "layers.fused.", "layers.rows."),
    *("layers.batchnorm.param_grads", "layers.convolution.correlate_filter_grad", "models.model.", "training."),
    "recording.overwrite",
)


def needed(module):
    """A module of NVIDIA's, without which a test is skipped; where CUDA is demanded, it fails."""
    return importlib.import_module(module) if DEMANDED else pytest.importorskip(module)


@pytest.fixture
def cupy():
    """The stand-in for CuPy, where `import cupy` finds it, with CuPy's kernels in the table."""
    if stand_in.COMPILER is None:
        assert not DEMANDED, "no g++ was found"
        pytest.skip("no g++ was found")
    with stand_in.installed() as module:
        yield module


@pytest.fixture(params=["forwards", "backwards"])
def order(request, monkeypatch):
    """In which order blocks and threads run: nothing depends on it."""
    monkeypatch.setattr(stand_in, "backwards", request.param == "backwards")


@pytest.fixture
def source(cupy):
    return importlib.import_module("xpnn.kernels.cupy.source")


def ours():
    return {function: fast for (function, library), fast in sorted(kernels.TABLE.items()) if library == "cupy"}


def of_read_only(function, fast):
    """The kernel, for calls with arrays that it may not write into."""

    @functools.wraps(fast)
    def call(*args):
        for arg in args:
            if isinstance(arg, np.ndarray) and not function.startswith(IN_PLACE):
                arg.flags.writeable = False
        return fast(*args)

    return call


def compare_all():
    for function, fast in ours().items():
        for args in CALLS[function]:
            assert_same_results(function, "cupy", of_read_only(function, fast), args)


def run(cupy, code, *args, block=(64,), grid=(1,), shared_mem=0):
    """Launch the kernel `test` of the code."""
    cupy.RawKernel(code, "test")(grid, block, args, shared_mem=shared_mem)


# ---- the kernels


@pytest.mark.usefixtures("cupy")
def test_every_kernel_that_a_source_names_gives_the_results_of_its_definition(source):
    stand_in.launches.clear()
    compare_all()
    named = {kernel for each in source.SOURCES.values() for kernel in each.kernels if not HALF.search(kernel)}
    named.remove("spin")  # which stands in for no function: see test_cudnn.py
    assert named <= {launch.kernel for launch in stand_in.launches}


@pytest.mark.usefixtures("cupy")
def test_every_kernel_gives_them_in_small_grids_from_the_last_thread_to_the_first(source, monkeypatch):
    monkeypatch.setattr(stand_in, "backwards", True)
    monkeypatch.setattr(source, "BLOCKS", 2)
    monkeypatch.setattr(importlib.import_module("xpnn.kernels.cupy.images"), "BLOCKS", 1)
    compare_all()


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "function",
    [
        "layers.activation.gelu_and_slope",
        "layers.activation.positive_part",
        "layers.activation.where_positive",
        "layers.rows.add_rows",
    ],
)
def test_in_half_precision_only_the_result_is_rounded(cupy, function, half):
    if half == "bfloat16":
        pytest.importorskip("ml_dtypes")
    half = np.dtype(half)
    # of the spacing at 1: a rounding, and of what a mantissa of few bits hides, what is below its smallest number
    rtol, atol = (2.0**-11, 2.0**-24) if half == np.float16 else (2.0**-8, 2.0**-126)
    for args in CALLS[function]:
        arrays = [arg for arg in args if isinstance(arg, np.ndarray)]
        if any(x.dtype != np.float32 for x in arrays):
            continue
        rounded = [arg.astype(half) if isinstance(arg, np.ndarray) else arg for arg in args]
        expected = definition(function)(*(x.astype("float32") if isinstance(x, np.ndarray) else x for x in rounded))
        received = ours()[function](*(cupy.asarray(x) if isinstance(x, np.ndarray) else x for x in rounded))
        if not isinstance(expected, tuple):
            expected, received = (expected,), (received,)
        for truth, result in zip(expected, received, strict=True):
            assert result.dtype == half
            result = result.get().astype("float64")
            overflows = np.abs(truth) > 65504 if half == np.float16 else np.zeros(truth.shape, bool)
            np.testing.assert_array_equal(result[overflows], np.copysign(np.inf, truth[overflows]))
            # and float32's own roundings, as ELEMENTWISE has them
            np.testing.assert_allclose(result[~overflows], truth[~overflows], 1.01 * rtol, atol + 64 * 2.0**-23)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_takes_what_is_no_number_or_infinite(cupy, approximate):
    x = np.array([np.inf, -np.inf, np.nan, 1e30, -1e30], dtype="float32")
    out, slope = ours()["layers.activation.gelu_and_slope"](cupy.asarray(x), approximate)
    np.testing.assert_array_equal(out.get(), np.array([np.inf, 0, np.nan, 1e30, 0], dtype="float32"))
    np.testing.assert_array_equal(slope.get(), [1, 0, np.nan, 1, 0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bits", [16, 32])
def test_elementwise_kernels_take_any_layout_and_keep_one_without_gaps(cupy, layout, bits):
    dtype = f"float{bits}"
    x = LAYOUTS[layout](normals(*MANY, dtype=dtype))
    out = ours()["layers.activation.positive_part"](cupy.asarray(x))
    np.testing.assert_array_equal(out.get(), np.maximum(x, 0))
    if layout in ("nchw", "nhwc", "fortran"):
        assert out.strides == x.strides
    dout = normals(*x.shape, dtype=dtype, seed=1)
    dx = ours()["layers.activation.where_positive"](cupy.asarray(dout), cupy.asarray(x))
    np.testing.assert_array_equal(dx.get(), np.where(x > 0, dout, 0))


def test_a_view_that_begins_anywhere_is_taken(cupy):
    x = normals(1001)
    for start in range(5):
        out = ours()["layers.activation.positive_part"](cupy.asarray(x)[start:])
        np.testing.assert_array_equal(out.get(), np.maximum(x[start:], 0))


def test_an_elementwise_kernel_is_one_launch_over_16_bytes_a_thread(cupy):
    ours()["layers.activation.gelu_and_slope"](cupy.zeros(4 * 256 + 1, "float32"), "none")
    assert stand_in.launches == [stand_in.Launch("gelu_and_slope<float, false>", (2,), (256,), 0)]


def test_nothing_is_launched_for_no_numbers(cupy):
    assert ours()["layers.activation.positive_part"](cupy.zeros((0, 3))).shape == (0, 3)
    assert ours()["layers.rows.add_rows"](cupy.zeros((0, 3))).get().tolist() == [0, 0, 0]
    assert ours()["random.philox"](0, 0, 0, 0).shape == (0,)
    assert stand_in.launches == []


def test_a_net_learns_as_on_numpy(cupy):
    histories = []
    for backend in ("numpy", "cupy"):
        solver = make_solver(make_net(backend), num_epochs=3)
        solver.train()
        histories.append(solver.loss_history)
    assert {"gradient_sums<float, relu>", "add_rows<float, float>"} <= {launch.kernel for launch in stand_in.launches}
    np.testing.assert_allclose(*histories, rtol=1e-5)  # some dozens of roundings, step after step


def test_a_source_compiles_no_kernel_that_it_does_not_name(source):
    with pytest.raises(LookupError, match="positive_part<int>"):
        source.SOURCES["activation.cu"].launch("positive_part<int>", (1,), (1,), ())


def test_a_kernel_is_looked_up_once(cupy, source, monkeypatch):
    modules = []
    monkeypatch.setattr(cupy, "RawModule", lambda real=cupy.RawModule, **options: modules.append(1) or real(**options))
    monkeypatch.setattr(source.SOURCES["random.cu"], "_compiled", {})
    for _ in range(2):
        ours()["random.philox"](0, 0, 0, 1)
    assert len(modules) == 1


def test_every_cuda_source_has_a_call_site(source):
    assert sorted(source.SOURCES) == SOURCES


def test_philox_gives_the_known_answer_of_its_authors(cupy, source):
    code = "__global__ void test(u64* out) { philox_block(0, 0, 0, 0, out); }"
    out = cupy.empty(4, "uint64")
    run(cupy, source.text_of("philox.cuh") + code, out, block=(1,))
    # Random123's kat_vectors: philox4x64 10, counter and key zero
    expected = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert [int(x) for x in out.get()] == expected


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**64 - 1])
@pytest.mark.parametrize("stream", [0, 16, 2**64 - 1])
def test_philox_gives_the_bits_of_numpys_philox(seed, stream):
    for counter in (0, 1, 2**32 - 2, 2**63 - 1, 2**64 - 6, 2**64 - 2):  # the last carries past 64 bits
        received = ours()["random.philox"](seed, stream, counter, 22)
        np.testing.assert_array_equal(received.get(), random.philox(seed, stream, counter, 22))


# ---- the emulation


REVERSE = """
__global__ void test(const float* x, float* out) {
    extern __shared__ unsigned char dynamic_shared_memory[];
    float* shared = reinterpret_cast<float*>(dynamic_shared_memory);
    shared[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}
"""


@pytest.mark.usefixtures("order")
def test_threads_wait_at_a_barrier(cupy):
    x, out = cupy.asarray(normals(100)), cupy.empty(100, "float32")
    run(cupy, REVERSE, x, out, block=(100,), shared_mem=400)
    np.testing.assert_array_equal(out.get(), x.get()[::-1])


ORDERED = {
    "by a barrier": "int y = x[i ^ 32]; __syncthreads(); x[i] = y;",
    "in a warp": "int y = x[i ^ 1]; __syncwarp(); x[i] = y;",
    "each its own": "x[i] = x[i] + 1; x[i] += 1;",
    "all read": "if (x[0] + x[i] < 0) x[1] = 1;",
    "all write the same": "if (i % 2) x[0] = 5;",
    "atomics": "atomicAdd(x, i); atomicMax(x, i);",
    "shared": "shared[i] = i; __syncthreads(); x[i] = shared[i ^ 32]; __syncthreads(); shared[0] = 1;",
}
MISTAKES = {
    "outside of all arrays": {
        "a read, though unused": "if (x[i + 1] > 99) x[i] = 0;",
        "a write": "x[i + 1] = 0;",
        "a wide read": "if (reinterpret_cast<int4*>(x + 4 * i)->x > 99) x[i] = 0;",
        "none": "x[i] = none[i];",
        "before the start": "if (x[i - 1] > 99) x[i] = 0;",
    },
    "no multiple of 16": {"a wide read": "x[i] = reinterpret_cast<const int4*>(x + 1)->y;"},
    "no multiple of 4": {"a read": "x[i] = *reinterpret_cast<int*>(reinterpret_cast<char*>(x) + 2);"},
    "an index that its array has not": {"of shared memory": "shared[i + 1] = 1;"},
    "shared memory that nobody has written": {
        "by one": "if (i != 5) shared[i] = 0; __syncthreads(); if (shared[i] > 99) x[i] = 0;",
    },
    "nothing orders them": {
        "one's read and another's write": "int y = x[i ^ 1]; x[i] = y;",
        "an unused read": "x[i] = 0; if (x[i ^ 1] > 99) x[i] = 1;",
        "different values": "x[0] = i;",
        "another warp": "int y = x[i ^ 32]; __syncwarp(); x[i] = y;",
        "a shuffle": "int y = x[i ^ 1]; __shfl_sync(0xffffffff, i, 0); x[i] = y;",
        "an atomic and a read": "atomicAdd(x, 1); if (x[0] > 99) x[i] = 0;",
        "shared": "shared[i] = x[i]; __syncthreads(); x[i] = shared[i ^ 1]; shared[i] = 0;",
    },
}


OF_BLOCKS = "if (blockIdx.x) x[i] = 1; else if (x[63 - i] > 99) x[0] = 2;"
SHARED_OF_ANOTHER = "if (blockIdx.x) shared[i] = 0; else if (shared[i] > 99) x[0] = 2;"

ACCESSES = [code for codes in (ORDERED, *MISTAKES.values()) for code in codes.values()] + [OF_BLOCKS, SHARED_OF_ANOTHER]


def run_access(cupy, code, grid=1):
    """Run the code, with all others compiled at once, for 64 threads i with x and `shared` of 64 numbers."""
    source = "struct alignas(16) int4 { int x, y, z, w; };\n"
    for number, each in enumerate(ACCESSES):
        source += f"""__global__ void test_{number}(int* x, int* none) {{
            [[maybe_unused]] __shared__ int shared[64];
            const int i = threadIdx.x;
            {each}
        }}\n"""
    module = cupy.RawModule(code=source, name_expressions=[f"test_{number}" for number in range(len(ACCESSES))])
    module.get_function(f"test_{ACCESSES.index(code)}")((grid,), (64,), (cupy.zeros(64, "int32"), None))


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("code", ORDERED.values(), ids=ORDERED)
def test_accesses_that_are_ordered_are_right(cupy, code):
    run_access(cupy, code)


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize(
    ("message", "code"),
    [
        pytest.param(message, code, id=f"{message}: {name}")
        for message, codes in MISTAKES.items()
        for name, code in codes.items()
    ],
)
def test_an_access_that_a_device_would_punish_is_an_error(cupy, message, code):
    with pytest.raises(KernelError, match=message):
        run_access(cupy, code)


@pytest.mark.usefixtures("order")
def test_blocks_are_not_ordered(cupy):
    run_access(cupy, OF_BLOCKS)
    with pytest.raises(KernelError, match="nothing orders them"):
        run_access(cupy, OF_BLOCKS, grid=2)


@pytest.mark.usefixtures("order")
def test_a_block_does_not_find_the_shared_memory_of_another(cupy):
    with pytest.raises(KernelError, match="nobody has written"):
        run_access(cupy, SHARED_OF_ANOTHER, grid=3)


@pytest.mark.usefixtures("order")
def test_blocks_reduce(cupy, source, dtype):
    code = (
        source.text_of("common.cuh")
        + """
        __global__ void test(const T* x, T* out) {
            out[2 * threadIdx.x] = block_reduce(x[threadIdx.x], Sum());
            out[2 * threadIdx.x + 1] = block_reduce(x[threadIdx.x], Max());
        }""".replace("T*", source.C_TYPES[np.dtype(dtype).char] + "*")
    )
    x = np.arange(96, dtype=dtype)
    out = cupy.empty((96, 2), dtype)
    run(cupy, code, cupy.asarray(x), out, block=(96,))
    np.testing.assert_array_equal(out.get(), np.broadcast_to([x.sum(), 95], (96, 2)))


def test_atomics_count_every_thread_of_every_block(cupy):
    total = cupy.zeros(1, "int32")
    run(cupy, "__global__ void test(int* total) { atomicAdd(total, 1); }", total, block=(7, 5, 3), grid=(2, 3, 4))
    assert total.get().tolist() == [7 * 5 * 3 * 2 * 3 * 4]


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_types_round_as_numpys(cupy, half):
    if half == "bfloat16":
        pytest.importorskip("ml_dtypes")
    name = {"float16": "__half", "bfloat16": "__nv_bfloat16"}[half]
    code = f"""
        __global__ void test(const float* x, {name}* out, float* back, long long n) {{
            for (int i = threadIdx.x; i < n; i += blockDim.x) {{
                out[i] = x[i];
                back[i] = out[i];
            }}
        }}"""
    every = np.arange(2**16, dtype="uint16").view(half).astype("float32")
    every = every[np.isfinite(every)]
    between = every[:-1] + (every[1:] - every[:-1]) / 2  # ties, which go to the even one
    x = np.concatenate([every, between, np.nextafter(between, np.float32(0)), [np.inf, -np.inf, np.nan, 65519, 65520]])
    x = np.ascontiguousarray(x, dtype="float32")
    out, back = cupy.empty(x.shape, half), cupy.empty(x.shape, "float32")
    run(cupy, code, cupy.asarray(x), out, back, x.size)
    with np.errstate(over="ignore"):
        expected = x.astype(half)
    np.testing.assert_array_equal(out.get().astype("float32"), expected.astype("float32"))
    np.testing.assert_array_equal(back.get(), expected.astype("float32"))


COPY = "__global__ void test(const float* x, float* out, int n, float a) { out[n] = a * x[n]; }"


def test_arguments_of_the_kernels_own_types_are_taken(cupy):
    out = cupy.zeros(2, "float32")
    run(cupy, COPY, cupy.ones(2, "float32"), out, np.int32(1), np.float32(3), block=(1,))
    assert out.get().tolist() == [0, 3]


@pytest.mark.parametrize(
    ("place", "argument", "message"),
    [
        (2, 1, "argument 2 as int32; received int64"),
        (3, 3.0, "argument 3 as float32; received float64"),
        (2, np.float32(1), "argument 2 as int32; received float32"),
        (3, None, "argument 3 as float32; received None"),
        (2, np.int32(2), "outside of all arrays"),
        (0, np.ones(2), r"argument 0 as const float32\*; received float64\*"),
        (1, np.broadcast_to(np.float32(0), (2,)), "argument 1 is read-only"),
    ],
)
def test_what_would_go_wrong_silently_on_a_device_is_an_error(cupy, place, argument, message):
    args = [cupy.ones(2, "float32"), cupy.zeros(2, "float32"), np.int32(1), np.float32(3)]
    args[place] = argument
    if isinstance(argument, np.ndarray):
        args[place] = cupy.asarray(argument)
        args[place].flags.writeable = argument.flags.writeable
    with pytest.raises(KernelError, match=message):
        run(cupy, COPY, *args, block=(1,))


def test_numpys_arrays_are_refused(cupy):
    with pytest.raises(TypeError, match="CuPy passes no"):
        run(cupy, COPY, np.ones(2, "float32"), cupy.zeros(2, "float32"), np.int32(1), np.float32(3))
    with pytest.raises(TypeError, match="no arrays of NumPy"):
        cupy.ones(2) + np.ones(2)


@pytest.mark.parametrize(
    "code",
    [
        "__global__ void test() { if (threadIdx.x < 40) __syncthreads(); }",
        "__global__ void test() { if (threadIdx.x < 40) __syncthreads(); \n else __syncthreads(); }",
        "__global__ void test() { if (threadIdx.x < 40) __syncwarp(); }",
        "__global__ void test() { if (threadIdx.x < 8) __shfl_sync(0xff, 1, 9); }",
    ],
)
def test_a_barrier_that_some_threads_miss_is_an_error(cupy, code):
    with pytest.raises(KernelError, match=r"missed by some|has ended|takes no part"):
        run(cupy, code)
    run(cupy, "__global__ void test() { __syncthreads(); }")  # and the next launch is none the worse


def test_more_shared_memory_than_a_block_has_is_an_error(cupy):
    with pytest.raises(KernelError, match="at most 49152"):
        run(cupy, "__global__ void test() {}", shared_mem=49153)
    with pytest.raises(KernelError, match="uses more shared memory than asked for"):
        run(cupy, REVERSE, cupy.zeros(64, "float32"), cupy.zeros(64, "float32"), shared_mem=252)


def test_the_stand_in_leaves_everything_as_it_was():
    if stand_in.COMPILER is None:
        pytest.skip("no g++ was found")
    watched = lambda: (  # noqa: E731
        {name: module for name, module in sys.modules.items() if "cupy" in name},
        dict(kernels.TABLE),
        vars(kernels).get("cupy"),
    )
    before = watched()
    with stand_in.installed():
        assert watched() != before
    assert watched() == before


def test_a_launch_takes_no_more_than_4_kb_of_arguments(cupy):
    source = 'struct Numbers { double x[%d]; }; extern "C" __global__ void test(Numbers, long long*) {}'
    out = cupy.zeros(1, "int64")
    run(cupy, source % 511, np.zeros(1, [("x", "f8", 511)]), out)
    with pytest.raises(KernelError, match="a launch takes 4096 bytes of arguments; received 4104"):
        run(cupy, source % 512, np.zeros(1, [("x", "f8", 512)]), out)


# ---- CUDA's own compiler


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("file", SOURCES)
def test_every_kernel_compiles_for_every_architecture(file, architecture):
    try:
        kernels.load("cupy")
        compiler = importlib.import_module("cupy.cuda.compiler")
        include = Path(importlib.import_module("cupy").cuda.get_cuda_path()) / "include"
        source = importlib.import_module("xpnn.kernels.cupy.source").SOURCES[file]
        # CuPy's own way to the compiler, without the device that its public one asks for
        program = compiler._NVRTCProgram(source.text, file, name_expressions=source.kernels, method="cubin")
    except Exception as error:
        if DEMANDED:
            raise
        pytest.skip(f"no CUDA compiler is installed: {error}")
    options = (f"-arch=sm_{architecture}", "--std=c++17", f"-I{include}")  # and CuPy's:
    cubin, names = program.compile((*options, "--device-as-default-execution-space", "-ftz=true"))
    assert cubin[:4] == b"\x7fELF"
    assert names.keys() == set(source.kernels)
