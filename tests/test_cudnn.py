"""Convolution by cuDNN without a device: what each graph describes is computed by the definitions."""

import ctypes
import ctypes.util
import importlib
import inspect
import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cudnn_on_cpu
import numpy as np
import pytest
import stand_in
from cudnn_on_cpu import Candidate

from test_cuda import needed
from test_kernels import CALLS, assert_same_results, channels_last, definition, normals
from xpnn import Model, kernels
from xpnn import backend as backends
from xpnn.kernels import fast_path
from xpnn.layers import GELU, Affine, BatchNorm, Conv, Flatten, ReLU, Sequential
from xpnn.windows import Window

FUNCTIONS = [
    "layers.convolution.correlate",
    "layers.convolution.correlate_activated",
    "layers.convolution.correlate_filter_grad",
    "layers.convolution.correlate_input_grad",
]


@pytest.fixture
def cupy(monkeypatch):
    """With plans of cuDNN's own choice: so each call executes one."""
    if stand_in.COMPILER is None:
        pytest.skip("no g++ was found")
    with stand_in.installed() as module:
        cudnn_on_cpu.install()
        monkeypatch.setattr(cudnn_on_cpu, "has_exact_plans", True)
        monkeypatch.setattr(ours_of_cudnn(), "AUTOTUNE", False)
        assert ours_of_cudnn().obstacle() == ""
        cudnn_on_cpu.built.clear()  # to see that there is none
        yield module


@pytest.fixture
def timed(cupy, monkeypatch):
    """Plans that take so many milliseconds are timed."""
    monkeypatch.setattr(ours_of_cudnn(), "AUTOTUNE", True)

    def of(*plans):
        plans = [plan if isinstance(plan, Candidate) else Candidate(plan) for plan in plans]
        monkeypatch.setattr(cudnn_on_cpu, "plans", plans)

    of(3.0, 1.0, 2.0)
    return of


def ours_of_cudnn():
    return importlib.import_module("xpnn.kernels.cupy.cudnn")


def ours(function):
    return kernels.TABLE[function, "cupy"]


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_a_graph_describes_is_the_definition(function):
    for args in CALLS[function]:
        before = len(cudnn_on_cpu.executed)
        assert_same_results(function, "cupy", ours(function), args)
        plain = {x.dtype.name for x in args if isinstance(x, np.ndarray)} == {"float32"} and 0 not in args[0].shape
        assert len(cudnn_on_cpu.executed) - before == plain  # float64, and no images, are the fallback's


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_half_types_are_computed_in_float32(cupy, function, half):
    if half == "bfloat16":
        pytest.importorskip("ml_dtypes")
    args = next(args for args in CALLS[function] if args[0].dtype == np.float32)
    args = [x.astype(half) if isinstance(x, np.ndarray) else x for x in args]
    expected = definition(function)(*(x.astype("float32") if isinstance(x, np.ndarray) else x for x in args))
    received = ours(function)(*(cupy.array(x) if isinstance(x, np.ndarray) else x for x in args))
    if not isinstance(expected, tuple):
        expected, received = (expected,), (received,)
    rounding = 2.0**-11 if half == "float16" else 2.0**-8
    for truth, result in zip(expected, received, strict=True):
        assert result.dtype == np.dtype(half)
        atol = 1e-5 * np.abs(truth).max()
        np.testing.assert_allclose(result.get().astype("float32"), truth, rtol=1.01 * rounding, atol=atol)
    assert len(cudnn_on_cpu.executed) == 1


def test_images_with_the_channels_last_are_not_copied(cupy):
    x, w, b = (cupy.array(channels_last(normals(*s))) for s in ((2, 4, 5, 5), (6, 4, 3, 3), (1, 6, 1, 1)))
    out = ours(FUNCTIONS[0])(x, w, b.reshape(6), Window((3, 3)), 1)
    assert out.strides == tuple(4 * stride for stride in (54, 1, 18, 6))
    assert cudnn_on_cpu.executed == [("fprop", x.shape, w.shape, "bias")]
    assert stand_in.launches == []


def test_a_plan_is_made_once(cupy):
    x, w = cupy.array(normals(2, 4, 5, 5)), cupy.array(normals(6, 4, 3, 3))
    for _ in range(3):
        ours(FUNCTIONS[0])(x, w, None, Window((3, 3)), 1)
    assert (len(cudnn_on_cpu.built), len(cudnn_on_cpu.executed), len(cudnn_on_cpu.streams)) == (1, 3, 1)
    ours(FUNCTIONS[0])(x, w, None, Window((3, 3), pad=(1, 1)), 1)
    assert len(cudnn_on_cpu.built) == 2


def test_a_bias_may_begin_anywhere(cupy):
    x, w, memory = cupy.array(normals(2, 4, 5, 5)), cupy.array(normals(6, 4, 3, 3)), cupy.array(normals(10))
    for start in range(4):
        b = memory[start : start + 6]
        expected = definition(FUNCTIONS[0])(x.get(), w.get(), b.get(), Window((3, 3)), 1)
        np.testing.assert_allclose(ours(FUNCTIONS[0])(x, w, b, Window((3, 3)), 1).get(), expected, atol=1e-5)


@pytest.mark.parametrize("b", [None, normals(6)])
def test_a_relu_behind_a_convolution_is_part_of_its_graph(cupy, b):
    x, w = (cupy.array(channels_last(normals(*shape))) for shape in ((2, 4, 5, 5), (6, 4, 3, 3)))
    b = None if b is None else cupy.array(b)
    out, _ = ours(FUNCTIONS[1])(x, w, b, Window((3, 3)), 1, "relu")
    assert (out.get() >= 0).all()
    assert cudnn_on_cpu.executed == [("fprop", x.shape, w.shape, *([] if b is None else ["bias"]), "relu")]
    assert stand_in.launches == []


def test_a_relu_for_which_there_is_no_plan_is_a_launch_of_its_own(cupy, monkeypatch):
    monkeypatch.setattr(cudnn_on_cpu, "fuses_relu", False)
    x, w, b = (cupy.array(normals(*shape)) for shape in ((2, 4, 5, 5), (6, 4, 3, 3), (6,)))
    args = x, w, b, Window((3, 3)), 1, "relu"
    expected, _ = definition(FUNCTIONS[1])(*(arg.get() for arg in args[:3]), *args[3:])
    for _ in range(2):
        np.testing.assert_allclose(ours(FUNCTIONS[1])(*args)[0].get(), expected, atol=1e-5)
    assert cudnn_on_cpu.executed == 2 * [("fprop", x.shape, w.shape, "bias")]
    assert [launch.kernel for launch in stand_in.launches] == 2 * ["add_and_activate<float, false, relu>"]


@pytest.mark.parametrize("allowed", [False, True])
def test_without_exact_plans_float32_is_the_fallbacks_unless_tf32_is_allowed(cupy, monkeypatch, allowed):
    monkeypatch.setattr(cudnn_on_cpu, "has_exact_plans", False)
    monkeypatch.setattr(ours_of_cudnn(), "TF32", allowed)
    x, w = cupy.array(normals(2, 4, 5, 5)), cupy.array(normals(6, 4, 3, 3))
    expected = definition(FUNCTIONS[0])(x.get(), w.get(), None, Window((3, 3)), 1)
    for _ in range(2):
        np.testing.assert_allclose(ours(FUNCTIONS[0])(x, w, None, Window((3, 3)), 1).get(), expected, atol=1e-5)
    assert len(cudnn_on_cpu.executed) == 2 * allowed
    assert len(stand_in.launches) == 2 * (not allowed)


# ---- layers


NETS = {
    "a bias": lambda: [Conv(6, 3, pad=1), ReLU(), Conv(4, 3), ReLU()],
    "no bias": lambda: [Conv(6, 3, bias=False), ReLU(), Flatten(), Affine(3)],
    "frozen": lambda: [Conv(8, 2, train_weights=False), ReLU()],
    "groups": lambda: [Conv(8, 3, groups=2, stride=2), ReLU(), BatchNorm(), ReLU()],
    "GELUs": lambda: [Conv(6, 3, pad=1), GELU(), Conv(4, 3, bias=False), GELU("tanh")],
}


def passes(backend, layers, dtype="float32"):
    """Scores, and the gradients of inputs and parameters."""
    net = Model(Sequential(*layers), (4, 7, 7), backend=backend, rng=3, dtype=dtype).net
    like = backends.get(backend).asarray
    out, cache = net.forward(like(normals(5, 4, 7, 7).astype(dtype)), train=True)
    dx, grads = net.backward(like(normals(*out.shape, seed=1).astype(dtype)), cache)
    _, without_dx = net.backward(like(normals(*out.shape, seed=1).astype(dtype)), cache, input_grad=False)
    assert grads.keys() == without_dx.keys()
    return {"out": out, "dx": dx, **grads, **{f"{name} alone": grad for name, grad in without_dx.items()}}


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
@pytest.mark.parametrize("fuses", [True, False])
def test_a_convolution_that_activates_has_the_gradients_of_both_layers(cupy, monkeypatch, make, fuses):
    monkeypatch.setattr(cudnn_on_cpu, "fuses_relu", fuses)
    expected, received = (passes(backend, make()) for backend in ("numpy", "cupy"))
    rectified = any("relu" in executed for executed in cudnn_on_cpu.executed)
    assert rectified == (fuses and any(isinstance(layer, ReLU) for layer in make()))
    assert expected.keys() == received.keys()
    for name, truth in expected.items():
        # A few layers, each adding up at most some hundred products in another order.
        atol = 32 * np.finfo("float32").eps * np.abs(truth).max()
        np.testing.assert_allclose(received[name].get(), truth, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize(
    ("activation", "bias", "forward", "backward"),
    [
        (ReLU, True, [], ["grad<float, float, relu>"]),
        (ReLU, False, [], ["where_positive<float>"]),
        (GELU, True, ["add_and_activate<float, true, gelu_none>"], ["grad<float, float, gelu_none>"]),
        (lambda: GELU("tanh"), False, ["add_and_activate<float, true, gelu_tanh>"], ["grad<float, float, gelu_tanh>"]),
    ],
)
def test_the_gradient_before_an_activation_and_that_of_the_bias_are_one_launch(
    cupy, activation, bias, forward, backward
):
    net = Model(Sequential(Conv(8, 3, bias=bias), activation()), (4, 7, 7), backend="cupy", rng=3).net
    stand_in.launches.clear()
    out, cache = net.forward(cupy.array(channels_last(normals(5, 4, 7, 7))), train=True)
    assert [launch.kernel for launch in stand_in.launches] == ["arrange<float, float, true>", *forward]
    stand_in.launches.clear()
    net.backward(cupy.array(channels_last(normals(*out.shape))), cache)
    assert [launch.kernel for launch in stand_in.launches] == backward
    assert [operation for operation, *_ in cudnn_on_cpu.executed] == ["fprop", "wgrad", "dgrad"]
    assert ("bias" in cudnn_on_cpu.executed[0]) == bias


def test_scores_are_those_of_both_layers(cupy):
    nets = [Model(Sequential(*NETS["a bias"]()), (4, 7, 7), backend=name, rng=3).net for name in ("numpy", "cupy")]
    x = normals(5, 4, 7, 7)
    np.testing.assert_allclose(nets[1].infer(cupy.array(x)).get(), nets[0].infer(x), atol=1e-5)
    assert [executed[-1] for executed in cudnn_on_cpu.executed] == ["relu", "relu"]


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_halves_are_rectified_as_by_a_layer_of_its_own(cupy, half):
    if half == "bfloat16":
        pytest.importorskip("ml_dtypes")
    fused, apart = (passes("cupy", [Conv(6, 3), *between, ReLU()], half) for between in ([], [Flatten()]))
    assert [executed[-1] for executed in cudnn_on_cpu.executed if executed[0] == "fprop"] == ["relu", "bias"]
    assert fused["out"].dtype == np.dtype(half)
    for name, array in apart.items():
        np.testing.assert_array_equal(fused[name].get().ravel(), array.get().ravel(), err_msg=name)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_halves_behind_a_gelu_are_as_by_a_layer_of_its_own(cupy, half, approximate):
    """And their gradients, but that the slope is not rounded."""
    if half == "bfloat16":
        pytest.importorskip("ml_dtypes")
    fused, apart = (passes("cupy", [Conv(6, 3), *between, GELU(approximate)], half) for between in ([], [Flatten()]))
    np.testing.assert_array_equal(fused["out"].get().ravel(), apart["out"].get().ravel())
    rounding = 2.0**-11 if half == "float16" else 2.0**-8
    for name, array in apart.items():
        truth = array.get().astype("float32").ravel()
        received, atol = fused[name].get().astype("float32").ravel(), 2 * rounding * np.abs(truth).max()
        np.testing.assert_allclose(received, truth, rtol=2 * rounding, atol=atol, err_msg=name)


# ---- filters in memory


def written():
    """The sizes of the arrays that CuPy's own operations have written since the last call."""
    sizes = list(stand_in.computed)
    stand_in.computed.clear()
    return sizes


@pytest.mark.parametrize(
    ("kernel", "type_", "copies"), [(3, "float32", 1), (3, "float16", 1), (1, "float32", 0), (1, "float16", 0)]
)
def test_filters_are_copied_once_for_all_passes_and_their_gradient_once_into_what_was_lent(cupy, kernel, type_, copies):
    net = Model(Sequential(Conv(8, kernel)), (4, 7, 7), backend="cupy", dtype=type_, rng=3).net
    (layer,) = net.layers.values()
    lent = {name: cupy.ones(param.shape, type_) for name, param in layer.params.items()}
    layer.grads = dict(lent)
    x = cupy.array(channels_last(normals(5, 4, 7, 7).astype(type_)))
    dout = cupy.array(channels_last(normals(5, 8, 8 - kernel, 8 - kernel).astype(type_)))
    of = {"float32": "float", "float16": "__half"}[type_]
    written()
    stand_in.launches.clear()
    _, cache = net.forward(x, train=True)
    assert [launch.kernel for launch in stand_in.launches] == copies * [f"arrange<{of}, {of}, true>"]
    stand_in.launches.clear()
    _, grads = net.backward(dout, cache)
    laid_back = [launch.kernel for launch in stand_in.launches if launch.kernel.startswith("arrange")]
    assert laid_back == copies * [f"arrange<{of}, {of}, false>"]
    assert written() == []
    assert layer.grads == {}
    for name, grad in lent.items():
        assert grads[f"conv1.{name}"] is grad
    _, others = net.backward(dout, cache)
    for name, grad in others.items():
        np.testing.assert_array_equal(grad.get(), grads[name].get())


def test_the_gradient_of_the_input_is_by_the_filters_that_gave_the_output(cupy):
    net = Model(Sequential(Conv(8, 3, bias=False)), (4, 7, 7), backend="cupy", rng=3).net
    w, dout = net.layers["conv1"].params["W"], normals(5, 8, 5, 5)
    expected = definition("layers.convolution.correlate_input_grad")(dout, w.get(), (7, 7), Window((3, 3)), 1)
    _, cache = net.forward(cupy.array(normals(5, 4, 7, 7)), train=True)
    w[...] = 0
    np.testing.assert_allclose(net.backward(cupy.array(dout), cache)[0].get(), expected, atol=1e-5)


def test_filters_that_do_not_learn_are_cast_and_laid_out_at_once(cupy):
    net = Model(Sequential(Conv(8, 3, train_weights=False)), (4, 7, 7), backend="cupy", dtype="float16", rng=3).net
    x = cupy.array(channels_last(normals(5, 4, 7, 7).astype("float16")))
    written()
    stand_in.launches.clear()
    net.infer(x)
    assert [launch.kernel for launch in stand_in.launches] == ["arrange<float, __half, true>"]
    assert written() == []


# ---- plans that are timed


@pytest.fixture
def correlate(cupy):
    """A call, on as many images as asked for; it returns the result and which plan was executed last."""
    x, w = cupy.array(normals(9, 4, 5, 5)), cupy.array(normals(6, 4, 3, 3))

    def call(n=2):
        out = ours(FUNCTIONS[0])(x[:n], w, None, Window((3, 3)), 1)
        expected = definition(FUNCTIONS[0])(x[:n].view(np.ndarray), w.view(np.ndarray), None, Window((3, 3)), 1)
        np.testing.assert_allclose(out.view(np.ndarray), expected, atol=1e-5)
        return cudnn_on_cpu.indices[-1]

    return call


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.usefixtures("timed")
def test_what_is_timed_gives_the_results_of_the_definition(function):
    for args in CALLS[function]:
        assert_same_results(function, "cupy", ours(function), args)
    assert cudnn_on_cpu.indices[-1] == 1


def test_of_the_plans_that_can_be_built_the_fastest_is_kept(timed, correlate):
    timed(5.0, Candidate(1.0, exists=False), 4.0, Candidate(2.0, workspace=0), Candidate(1.0, workspace=2**40), 3.0)
    assert [correlate(), correlate()] == [3, 3]
    assert set(cudnn_on_cpu.indices) == {0, 2, 3, 5}


def test_plans_are_timed_when_a_shape_is_first_met(timed, correlate):
    timed(0.3, 0.1, 0.15)
    correlate()
    cudnn = ours_of_cudnn()
    executions = 2 + cudnn.ROUNDS * cudnn.RUNS  # one to load it, one to see how slow it is
    assert len(cudnn_on_cpu.indices) == 3 * executions + 1
    assert stand_in.waits.count("event") == 3 * (1 + cudnn.ROUNDS)
    stand_in.waits.clear()
    timed(1.0, 2.0, 3.0)
    assert correlate() == 1  # what has won stays
    assert stand_in.waits == []
    assert correlate(3) == 0
    assert stand_in.waits != []


def test_a_slow_plan_is_executed_a_few_times_and_one_much_slower_than_the_best_once(timed, correlate):
    cudnn = ours_of_cudnn()
    timed(20.0, 3.0, 7.0, 5.0)
    assert correlate() == 1
    runs = [cudnn_on_cpu.indices.count(i) for i in range(4)]
    assert runs == [2 + cudnn.ROUNDS, 2 + cudnn.ROUNDS * 3 + 1, 2, 2 + cudnn.ROUNDS * 2]  # the best is then executed


def test_where_every_plan_fails_the_fallback_computes(timed, cupy, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("CUDNN_STATUS_EXECUTION_FAILED")

    monkeypatch.setattr(cudnn_on_cpu.pygraph, "execute", fail)
    x, w = normals(2, 4, 5, 5), normals(6, 4, 3, 3)
    for _ in range(2):
        out = ours(FUNCTIONS[0])(cupy.array(x), cupy.array(w), None, Window((3, 3)), 1)
        np.testing.assert_allclose(out.get(), definition(FUNCTIONS[0])(x, w, None, Window((3, 3)), 1), atol=1e-5)
    assert len(cudnn_on_cpu.built) == 1


def test_a_few_plans_are_timed(timed, correlate):
    timed(*(100.0 - i for i in range(40)))
    assert correlate() == ours_of_cudnn().CANDIDATES - 1
    assert len(set(cudnn_on_cpu.indices)) == ours_of_cudnn().CANDIDATES


def test_of_plans_that_take_about_the_same_time_the_heuristics_first_is_kept(timed, correlate):
    timed(2.0, 1.96, 1.95)
    assert correlate() == 0


def test_plans_are_timed_at_the_devices_pace_and_not_the_hosts(timed, correlate, monkeypatch):
    monkeypatch.setattr(cudnn_on_cpu, "asking", 0.014)
    timed(0.003, 0.002, 0.001)
    stand_in.launches.clear()
    assert correlate() == 2
    assert [launch.kernel for launch in stand_in.launches] == 3 * (1 + ours_of_cudnn().ROUNDS) * ["spin"]


def test_what_is_timed_is_what_lies_between_the_events(timed, correlate, monkeypatch):
    cudnn, times = ours_of_cudnn(), []

    def elapsed(start, end, real=stand_in.get_elapsed_time):
        times.append(real(start, end))
        return times[-1]

    monkeypatch.setattr(cudnn.cupy.cuda, "get_elapsed_time", elapsed)
    monkeypatch.setattr(cudnn_on_cpu, "asking", 0.014)
    timed(0.003, 0.004)
    correlate()
    expected = [0.003, *cudnn.ROUNDS * [cudnn.RUNS * 0.003], 0.004, *cudnn.ROUNDS * [cudnn.RUNS * 0.004]]
    np.testing.assert_allclose(times, expected, rtol=1e-9)


def test_a_plan_for_which_memory_is_short_is_not_taken(timed, correlate, monkeypatch):
    cudnn = ours_of_cudnn()

    def empty(shape, dtype, real=cudnn.cupy.empty):
        if shape == 4096:
            raise MemoryError
        return real(shape, dtype)

    monkeypatch.setattr(cudnn.cupy, "empty", empty)
    timed(2.0, Candidate(1.0, workspace=4096))
    assert correlate() == 0
    assert set(cudnn_on_cpu.indices) == {0}


def test_where_memory_is_short_for_every_plan_nothing_is_decided(timed, cupy, correlate, monkeypatch):
    x, w = cupy.array(normals(2, 4, 5, 5)), cupy.array(normals(6, 4, 3, 3))
    with monkeypatch.context() as patch:
        patch.setattr(cudnn_on_cpu.pygraph, "execute", lambda *_, **__: (_ for _ in ()).throw(MemoryError("short")))
        with pytest.raises(MemoryError, match="short"):
            ours(FUNCTIONS[0])(x, w, None, Window((3, 3)), 1)
    assert correlate() == 1


def test_what_timing_took_is_given_back(timed, cupy, correlate):
    timed(3.0, Candidate(1.0, workspace=0), Candidate(1.5, workspace=10**7))
    assert correlate() == 1
    assert cudnn_on_cpu.indices.count(2) > 0
    assert cupy.get_default_memory_pool().total_bytes() < 10**7


def test_nothing_is_timed_unless_it_is_asked_for(timed, correlate, monkeypatch):
    monkeypatch.setattr(ours_of_cudnn(), "AUTOTUNE", False)
    assert correlate() == 0
    assert len(cudnn_on_cpu.indices) == 1
    assert "event" not in stand_in.waits


def test_while_a_graph_is_captured_nothing_is_timed_and_the_choice_holds(timed, cupy, correlate):
    """Where the shape is known, by the plan that has won; else by the heuristic's, which is kept, too."""
    x, w = cupy.array(normals(9, 4, 5, 5)), cupy.array(normals(6, 4, 3, 3))
    assert correlate(2) == 1
    del cudnn_on_cpu.indices[:]
    stand_in.waits.clear()
    work = lambda n: ours(FUNCTIONS[0])(x[:n], w, None, Window((3, 3)), 1)  # noqa: E731
    recorded = fast_path("recording.record", "cupy")(lambda: (work(2), work(4)))
    assert cudnn_on_cpu.indices == [1, 0]
    assert stand_in.waits == []
    for out in recorded():
        expected = definition(FUNCTIONS[0])(x.get()[: len(out)], w.get(), None, Window((3, 3)), 1)
        np.testing.assert_allclose(out.get(), expected, atol=1e-5)
    assert correlate(4) == 0


def test_threads_that_meet_a_shape_together_time_it_once(timed, cupy):
    x, w = cupy.array(normals(2, 4, 5, 5)), cupy.array(normals(6, 4, 3, 3))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: ours(FUNCTIONS[0])(x, w, None, Window((3, 3)), 1), range(8)))
    assert len(cudnn_on_cpu.built) == 1
    assert stand_in.waits.count("event") == 3 * (1 + ours_of_cudnn().ROUNDS)
    assert cudnn_on_cpu.indices[-7:] == 7 * [1]


@pytest.mark.parametrize(("value", "expected"), [(None, "True"), ("1", "True"), ("0", "False")])
def test_it_is_switched_by_the_environment(value, expected):
    needed("cupy")
    unset = {key: setting for key, setting in os.environ.items() if key != "XPNN_AUTOTUNE"}
    code = "from xpnn.kernels.cupy import cudnn; print(cudnn.AUTOTUNE)"
    environment = unset if value is None else unset | {"XPNN_AUTOTUNE": value}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [expected]


# ---- against the frontend itself, where it is installed


@pytest.fixture
def frontend():
    return needed("cudnn")


def test_every_name_and_number_is_that_of_the_frontend(frontend):
    for name in ("data_type", "heur_mode", "numerical_note"):
        for member in getattr(cudnn_on_cpu, name):
            assert getattr(frontend, name).__members__[member.name].value == member.value
    assert issubclass(frontend.cudnnGraphNotSupportedError, Exception)
    for name, arguments in (("create_handle", "()"), ("set_stream", "(handle: int, stream: int)")):
        assert f"{name}{arguments}" in getattr(frontend, name).__doc__
    assert callable(frontend.backend_version_string)


def test_every_method_takes_the_arguments_that_it_is_given(frontend):
    for ours, theirs in ((cudnn_on_cpu.pygraph, frontend.pygraph), (cudnn_on_cpu.tensor, frontend.tensor)):
        for name, method in vars(ours).items():
            if not inspect.isfunction(method) or name in ("in_memory", "_with", "_of", "_step", "_value", "_is_there"):
                continue
            if ours is cudnn_on_cpu.tensor and name == "__init__":
                continue
            parameters = list(inspect.signature(method).parameters.values())[1:]
            received = getattr(theirs, name)
            if inspect.isfunction(received):  # in Python
                assert {p.name for p in parameters} <= inspect.signature(received).parameters.keys(), name
                continue
            for parameter in parameters:
                keyword = parameter.kind == parameter.KEYWORD_ONLY
                assert not keyword or f"{parameter.name}: " in received.__doc__, f"{name}: {parameter.name}"
            assert parameters or f"{name}(self: cudnn._compiled_module.{ours.__name__}" in received.__doc__


@pytest.fixture
def version(frontend, tmp_path):
    """All that the frontend's own checks ask of cuDNN itself, where that is not installed."""
    installed = Path(sysconfig.get_path("purelib")).glob("nvidia/cudnn/lib/libcudnn.so*")
    if not any(installed) and ctypes.util.find_library("cudnn") is None:
        source, library = tmp_path / "cudnn.cpp", tmp_path / "libcudnn.so"
        source.write_text('#include <cstddef>\nextern "C" size_t cudnnGetVersion() { return 91900; }\n')
        subprocess.run([stand_in.COMPILER or "g++", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        frontend._pybind_module._set_dlhandle_cudnn(ctypes.CDLL(str(library))._handle)


@pytest.mark.usefixtures("version")
def test_the_frontend_itself_finds_every_graph_valid(frontend, cupy, monkeypatch):
    cudnn = ours_of_cudnn()
    for function in FUNCTIONS:
        for args in CALLS[function]:
            if args[0].dtype == np.float32:
                ours(function)(*(cupy.array(x) if isinstance(x, np.ndarray) else x for x in args))
    assert len(cudnn._plans) > 20
    monkeypatch.setattr(cudnn, "_handle", lambda _: 4096)
    for key in cudnn._plans:
        cudnn._graph(frontend, *key).validate()
