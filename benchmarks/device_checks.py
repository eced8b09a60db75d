"""Small checks of what can only be known on a CUDA device: what CuPy, cuBLASLt, cuDNN and the driver really do there.

Each is a function that raises where something is not as the library relies on, and may return a few words.
`gpu_check.py` runs each in a process of its own, as an illegal address spoils all that follows it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

CHECKS: dict[str, Callable[[], str | None]] = {}
EPS = {"e": 2.0**-11, "E": 2.0**-8, "f": 2.0**-24, "d": 2.0**-53}  # half a unit in the last place, by dtype.char


def check(name: str) -> Callable[[Callable[[], str | None]], Callable[[], str | None]]:
    def register(function: Callable[[], str | None]) -> Callable[[], str | None]:
        CHECKS[name] = function
        return function

    return register


def arrays(char: str, *shapes: tuple[int, ...]) -> list[Any]:
    """Random numbers on the device, rounded to the type of that character."""
    import cupy

    from xpnn import backend

    rng, names = np.random.default_rng(0), {"e": "float16", "E": "bfloat16", "f": "float32", "d": "float64"}
    exact = [rng.standard_normal(shape, dtype="float64" if char == "d" else "float32") for shape in shapes]
    return [cupy.asarray(x).astype(backend.get("cupy").dtype(names[char])) for x in exact]


def host(x: Any) -> np.ndarray:
    return x.get().astype(np.float64)


def near(found: Any, expected: np.ndarray, terms: int, char: str) -> None:
    """Assert that sums of so many terms of about 1 are right: added up in float32 or float64, and rounded once.

    With factors rounded to TF32 they would be wrong by a hundred times as much.
    """
    limit = EPS[char] * np.abs(expected) + 8 * terms * EPS["d" if char == "d" else "f"]
    worst = float(np.max(np.abs(host(found) - expected) / limit))
    assert worst <= 1, f"{found.dtype}: differs by {worst:.1f} times what roundings explain"


def replayed(work: Callable[[], Any], change: Callable[[], None]) -> Any:
    """What the work gives when xpnn has recorded it, once it is warm, and replays it on inputs that have changed."""
    from xpnn.kernels.cupy.graph import Graph

    work()
    graph = Graph(work)
    change()
    return [result.copy() for result in graph()]


@check("philox gives the bits of NumPy's")
def philox() -> str:
    from xpnn import random
    from xpnn.kernels import fast_path

    fast = fast_path("random.philox", "cupy")
    assert fast is not None, "there is no kernel"
    for state in ((0, 0, 0), (2**64 - 1, 7, 2**40), (3, 2**63, 2**64 - 2)):
        for n in (1, 5, 1023, 1_000_003):
            assert np.array_equal(fast(*state, n).get(), random.philox(*state, n)), f"other bits for {state}, {n}"
    return "three seeds, up to 1,000,003 numbers"


@check("None is a null pointer to a kernel")
def none_is_null() -> None:
    import cupy

    code = 'extern "C" __global__ void f(const float* p, int* out) { *out = p == nullptr; }'
    kernel = cupy.RawModule(code=code, options=("--std=c++17",)).get_function("f")
    out = cupy.zeros(2, dtype="int32")
    kernel((1,), (1,), (None, out[:1]))
    kernel((1,), (1,), (cupy.ones(1, dtype="float32"), out[1:]))
    assert out.get().tolist() == [1, 0], f"received {out.get().tolist()}"


@check("cuBLASLt multiplies, float32 exactly and halves summed in float32")
def products() -> str:
    from xpnn.kernels.cupy import cublaslt
    from xpnn.kernels.cupy import products as cupys

    assert cublaslt.library() is not None, "cuBLASLt is not there"
    assert not cublaslt.TF32, "XPNN_TF32 is set"
    refused = []
    for char in "feEd":
        a, b, bias, stack, stack2 = arrays(char, (300, 1000), (1000, 200), (200,), (3, 64, 1000), (3, 1000, 48))
        expected = host(a) @ host(b)
        near(cupys.matmul(a, b), expected, 1000, char)
        near(cupys.matmul_bias(a, b, bias), expected + host(bias), 1000, char)
        near(cupys.matmul(b.T, a.T), expected.T, 1000, char)
        near(cupys.matmul(stack, stack2), host(stack) @ host(stack2), 1000, char)
        added = cupys.matmul(a, b)
        near(cupys.gemm(a, b, added, 0.5, -2.0), 0.5 * expected - 2 * host(added), 1000, char)
        refused += [str(a.dtype)] * any(plan is None for key, plan in cublaslt._plans.items() if char in key)
    return f"some products of {', '.join(refused)} by cupy.matmul" if refused else "all by cuBLASLt"


@check("a bias's gradient comes with the product, BGRADA, exact in float32")
def bias_gradient() -> str:
    import cupy

    from xpnn.kernels.cupy import cublaslt
    from xpnn.kernels.cupy import products as cupys

    took = []
    for char, kept in ("ff", "ee", "EE", "dd", "ef", "Ef"):  # of halves into single precision, as a model keeps them
        rows, douts = arrays(char, (1000, 300), (1000, 200))
        dw, db = cupys.param_grads(rows, douts, *arrays(kept, (300, 200), (200,)))
        near(dw, host(rows).T @ host(douts), 1000, kept)
        near(db, host(douts).sum(axis=0), 1000, kept)
        stacks = rows.T[None], douts[None], cupy.empty_like(dw)[None], cupy.empty_like(db)[None]
        took += [f"{rows.dtype} into {dw.dtype}"] * cublaslt.multiply(*stacks, False, "BGRADA")
    return f"for {', '.join(took)}" if took else "cuBLASLt has it for no type: a launch adds up the rows"


@check("a ReLU or GELU comes with a product by cuBLASLt, and the gradient of a GELU by tanh, too")
def activations() -> str:
    import cupy

    from xpnn.kernels.cupy import cublaslt, fused
    from xpnn.layers import fused as definition

    of_nan = []
    for activation, char in ((activation, char) for activation in fused.FORWARD for char in "feEd"):
        rows, w, bias, douts, above = arrays(char, (100, 64), (64, 200), (200,), (100, 40), (200, 40))
        w *= 0.125  # so that results are about 1, where a GELU bends
        rows[0], bias[:50] = 0, 0  # a ReLU's gradient of exactly 0 is 0
        out, kept = fused.activated(rows, w, bias, activation)
        near(out, definition.activated(*map(host, (rows, w, bias)), activation)[0], 64, char)
        dx, db = fused.activated_input_grad(douts, above, kept, activation)
        # Of what it has kept itself: a number near 0 may be rounded to either side.
        numbers = host(kept.numbers if isinstance(kept, fused.Kept) else kept)
        expected, sums = definition.activated_grad(host(douts) @ host(above).T, numbers, activation)
        near(dx, expected, 40 + 130 * (activation != "relu"), char)  # roundings of a GELU's slope, where tanh is -1
        # A ReLU's gradient is rounded before it is added up.
        near(db, host(dx).sum(axis=0) if activation == "relu" else sums, 100 * 40, char)
        if activation == "relu":
            nan, _ = fused.activated(cupy.full((2, 64), float("nan"), dtype=w.dtype), w, bias, "relu")
            of_nan.append(f"{w.dtype} {float(nan[0, 0])}")
    refused = {f"{key[5]} {key[7][0]}" for key, plan in cublaslt._plans.items() if plan is None and "ELU" in key[7][0]}
    return f"refused: {', '.join(sorted(refused)) or 'none'}; the ReLU of NaN is: {', '.join(of_nan)}"


@check("a product by cuBLASLt is captured, each with its own bias")
def captured_product() -> None:
    from xpnn.kernels.cupy import products as cupys

    a, b, first, second = arrays("f", (64, 256), (256, 128), (128,), (128,))

    def change() -> None:
        a[...] = 2 * a

    def work() -> Any:
        return (
            cupys.matmul_bias(a, b, first),
            cupys.matmul_bias(a, b, second),
            *cupys.param_grads(a, cupys.matmul(a, b)),
        )

    before = host(a)
    results = replayed(work, change)
    out = 2 * before @ host(b)
    for found, bias in zip(results, (first, second), strict=False):
        near(found, out + host(bias), 1024, "f")
    near(results[3], out.sum(axis=0), 64 * 1024, "f")
    near(results[2], (2 * before).T @ out, 64 * 1024, "f")


CONVOLUTIONS = [  # images, filters, window's arguments: of the nets that are timed
    ((8, 3, 32, 32), (32, 3, 7, 7), 3),
    ((8, 3, 32, 32), (24, 3, 2, 2), 0),
    ((8, 24, 31, 31), (64, 24, 3, 3), 1),
    ((8, 64, 15, 15), (256, 64, 3, 3), 1),
    ((8, 256, 7, 7), (256, 256, 3, 3), 1),
]


def _convolution(char: str, images: tuple[int, ...], filters: tuple[int, ...], pad: int) -> tuple[Any, ...]:
    import cupy

    from xpnn.windows import Window

    window = Window(filters[2:], pad=(pad, pad))
    height, width = window.counts(images[2:])
    shapes = (images[0], *images[2:], images[1]), filters, (images[0], height, width, filters[0])
    x, w, dout = arrays(char, *shapes)
    return x.transpose(0, 3, 1, 2), cupy.ascontiguousarray(w) / 16, dout.transpose(0, 3, 1, 2), window


@check("a ReLU behind a convolution comes with cuDNN's plan")
def rectified() -> str:
    import cupy

    from xpnn.kernels.cupy import cudnn
    from xpnn.layers import convolution as definition

    has = []
    for char in "feE":
        x, w, _, window = _convolution(char, *CONVOLUTIONS[3])
        (bias,) = arrays(char, (len(w),))
        for b in (bias, None):
            out = cudnn.correlate(x, w, b, window, relu=True)
            if out is not None:
                truth = np.maximum(definition.correlate(host(x), host(w), None if b is None else host(b), window, 1), 0)
                near(out, truth, int(np.prod(w.shape[1:])), char)
                nan = float(cudnn.correlate(cupy.full_like(x, float("nan")), w, b, window, relu=True)[0, 0, 0, 0])
                has.append(f"{x.dtype} {'without' if b is None else 'with'} a bias (of NaN: {nan})")
    return "; ".join(has) or "cuDNN has it for none"


@check("cuDNN's plans give the results of the definition")
def cudnn_plans() -> str:
    from xpnn.kernels.cupy import cudnn
    from xpnn.layers import convolution as definition

    assert cudnn.library() is not None, "cuDNN is not there"
    found: dict[str, list[str]] = {}
    for char in "feE":
        for images, filters, pad in CONVOLUTIONS:
            x, w, dout, window = _convolution(char, images, filters, pad)
            image, hx, hw, hd = x.shape[2:], host(x), host(w), host(dout)
            terms = int(np.prod(filters[1:]))
            passes = {
                "fprop": (cudnn.correlate(x, w, None, window), definition.correlate(hx, hw, None, window, 1), terms),
                "wgrad": (
                    cudnn.correlate_filter_grad(dout, x, window, 1),
                    definition.correlate_filter_grad(hd, hx, window, 1),
                    len(dout) * dout.shape[2] * dout.shape[3],
                ),
                "dgrad": (
                    cudnn.correlate_input_grad(dout, w, image, window, 1),
                    definition.correlate_input_grad(hd, hw, image, window, 1),
                    filters[0] * filters[2] * filters[3],
                ),
            }
            for name, (result, expected, sums) in passes.items():
                if result is None:
                    found.setdefault(f"{x.dtype} {name}", []).append(str(filters))
                else:
                    near(result, expected, sums, char)
    none = [name for name, which in found.items() if len(which) == len(CONVOLUTIONS)]
    some = [f"{name} of {', '.join(which)}" for name, which in found.items() if len(which) < len(CONVOLUTIONS)]
    return f"no plan for {'; '.join(none + some)}" if none or some else "a plan for all"


@check("a convolution by cuDNN is captured")
def captured_convolution() -> None:
    from xpnn.kernels.cupy import cudnn
    from xpnn.layers import convolution as definition

    x, w, dout, window = _convolution("e", *CONVOLUTIONS[2])
    image, before = x.shape[2:], host(x)

    def change() -> None:
        x[...] = 2 * x

    def work() -> list[Any]:
        out = cudnn.correlate(x, w, None, window)
        dw, dx = (
            cudnn.correlate_filter_grad(dout, x, window, 1),
            cudnn.correlate_input_grad(dout, w, image, window, 1),
        )
        assert all(x is not None for x in (out, dw, dx)), "cuDNN has no plan"
        return [out, dw, dx]

    out, dw, _ = replayed(work, change)
    near(out, definition.correlate(2 * before, host(w), None, window, 1), 24 * 9, "e")
    near(dw, definition.correlate_filter_grad(host(dout), 2 * before, window, 1), 8 * 31 * 31, "e")


@check("cuBLASLt and cuDNN work on the current stream")
def streams() -> None:
    """The inputs are made late on a stream of their own: what ran on another would read zeros."""
    import cupy

    from xpnn.kernels.cupy import cudnn
    from xpnn.kernels.cupy import products as cupys
    from xpnn.layers import convolution as definition

    a, b = arrays("f", (256, 256), (256, 256))
    x, w, _, window = _convolution("e", *CONVOLUTIONS[2])
    for late in range(2):  # the second time the plans are there
        zeros, no_image = cupy.zeros_like(a), cupy.zeros_like(x)
        cupy.cuda.Device().synchronize()
        with cupy.cuda.Stream(non_blocking=True) as stream:
            busy = cupy.ones((4096, 4096), dtype="float32")
            for _ in range(20 * late):
                busy = busy * 1.0
            zeros[...], no_image[...] = a, x
            product, out = cupys.matmul(zeros, b), cudnn.correlate(no_image, w, None, window)
            stream.synchronize()
    near(product, host(a) @ host(b), 256, "f")
    assert out is not None, "cuDNN has no plan"
    near(out, definition.correlate(host(x), host(w), None, window, 1), 24 * 9, "e")


@check("arrays of a captured graph keep their memory in a pool of their own")
def private_pool() -> None:
    import cupy

    from xpnn.kernels.cupy.graph import Graph

    x = cupy.arange(1000, dtype="float32")
    (x + 1) * 2  # compiled before
    graph = Graph(lambda: (x + 1) * 2)  # the sum's memory is the pool's again
    others = [cupy.full(1000, np.nan, dtype="float32") for _ in range(100)]
    result = graph()
    assert np.array_equal(result.get(), 2 * (np.arange(1000) + 1)), "the graph's result was overwritten"
    assert all(np.isnan(other.get()).all() for other in others), "the graph wrote into arrays of others"


@check("what xpnn has recorded is replayed with new numbers, and gives its memory back")
def recorded() -> str:
    import cupy

    from xpnn.backend import get
    from xpnn.kernels.cupy.graph import Graph
    from xpnn.recording import varying

    def held() -> int:
        get("cupy").free_memory()
        cupy.cuda.Device().synchronize()
        free, total = cupy.cuda.runtime.memGetInfo()
        return total - free

    x, counted = cupy.ones(10**7, dtype="float32"), iter(range(9))
    (x + cupy.ones((), dtype="float32")) * 2  # compiled before
    before = held()
    graph = Graph(lambda: (x + varying(lambda: next(counted))) * 2)
    for i in range(3):
        assert float(graph()[-1]) == 2 * (1 + i), f"replay {i} gave {float(graph()[-1])}"
    during = held()
    graph.release()
    after = held()
    assert during - before >= 80 * 10**6, f"a pool of {during - before} bytes"
    assert after - before < 16 * 10**6, f"{after - before} bytes stay"
    return f"{(during - before) / 1e6:.0f} MB, then {(after - before) / 1e6:.0f} MB"


@check("the peak of memory has what is free again and a graph's own pool")
def peak_of_memory() -> str:
    import cupy

    from xpnn.backend import get
    from xpnn.kernels.cupy.graph import Graph

    backend, x, peaks = get("cupy"), cupy.ones(10**7, dtype="float32"), []
    for work in (lambda: x + 1, lambda: x * 2):  # compiled before; the second takes the first one's place
        work()
    backend.free_memory()
    peaks.append(backend.peak_memory() / 1e6)
    graph = Graph(lambda: (x + 1) * 2)
    peaks.append(backend.peak_memory() / 1e6)
    graph.release()
    assert 80 <= peaks[0] < 120 <= peaks[1], f"of 80 MB and 120 MB: {peaks}"
    return f"{peaks[0]:.0f} MB, then {peaks[1]:.0f} MB"


@check("random numbers go on from replay to replay")
def random_numbers() -> None:
    from xpnn.kernels.cupy.graph import Graph
    from xpnn.random import Generator

    recorded, rng = Generator(3), Generator(3)
    Generator(0).integers(0, 99, 1000, "cupy")  # compiled before
    graph = Graph(lambda: recorded.integers(0, 99, 1000, "cupy"))
    for i in range(3):
        assert np.array_equal(graph().get(), rng.integers(0, 99, 1000, "numpy")), f"replay {i} drew others"


@check("bfloat16 goes to the device, through a kernel and back")
def bfloat16() -> None:
    from xpnn.layers import relu_forward

    (x,) = arrays("E", (100, 33))
    out, _ = relu_forward(x)
    assert out.dtype == x.dtype, f"it came back as {out.dtype}"
    assert np.array_equal(host(out), np.maximum(host(x), 0))


@check("numbers are fetched while the device has other work, and nobody waits")
def fetched() -> None:
    import cupy

    from xpnn import backend
    from xpnn.kernels.cupy.cudnn import CUDNN

    x = cupy.arange(3, dtype="float32")
    backend.get("cupy").fetch(x + 1).to_numpy()  # the sum is compiled, and pinned memory made, before
    CUDNN.launch("spin", (1,), (1,), (200_000_000,))  # a tenth of a second
    coming = backend.get("cupy").fetch(x + 1)
    assert not coming.is_there, "it was waited for"
    assert coming.to_numpy().tolist() == [1, 2, 3], f"received {coming.to_numpy().tolist()}"


@check("without memory the Solver names a batch that fits")
def out_of_memory() -> str:
    import cupy

    from xpnn import FullyConnectedNet, Solver
    from xpnn.errors import OutOfMemory

    n = 20_000
    data = {"X_train": np.zeros((n, 3072), "uint8"), "y_train": np.zeros(n, "int64")}
    data |= {"X_val": data["X_train"][:1], "y_val": data["y_train"][:1]}
    solver = Solver(FullyConnectedNet([100], backend="cupy", rng=0), data, batch_size=n, verbose=False, seed=0)
    cupy.get_default_memory_pool().set_limit(size=200 * 10**6)  # the batch alone is 246 MB in float32
    words = ""
    try:
        solver.train()
    except OutOfMemory as error:
        words = str(error)
    assert "whose gradients fit into memory" in words, words or "the training went through"
    return words.partition(";")[0]


@check("a captured training is that which is launched step by step")
def graph() -> str:
    import gpu_steps

    words = []
    for net, batch, dtype in (("5 x 100", 100, "float32"), ("airbench", 100, "float16")):
        histories = []
        for wanted in (False, True):
            solver = gpu_steps.xpnn(net, batch, dtype, graph=wanted, count=1000, epochs=3)
            solver.train()
            gpu_steps.check_graph(solver, wanted)
            histories.append(np.array(solver.loss_history))
        difference = float(np.max(np.abs(histories[1] - histories[0]) / histories[0]))
        assert len(histories[1]) == 30, f"{net}: {len(histories[1])} losses of 30"
        assert difference <= 1e-5, f"{net}: losses differ by {difference:.1e}"
        words.append(f"{net} to {difference:.0e}")
    return f"losses of 30 steps of {', of '.join(words)}"
