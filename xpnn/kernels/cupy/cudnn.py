"""Convolution by cuDNN, through the graphs of its frontend; each problem's plan is chosen once and kept.

The first plans that cuDNN's heuristic names are timed when a problem is first met, on its own arrays, and the fastest
is kept. That waits for the device, so a problem first met while a graph is captured keeps the heuristic's choice. Plans
differ in the last bits: which one wins may differ between two processes, and does not change within one.

Images and filters lie in memory with their channels last, while cuDNN's dimensions are always (N, C, H, W): strides say
how it is. What cuDNN has no plan for is left to the caller: float64, and float32 where all plans round it to TF32 and
that is not allowed.
"""

import functools
import importlib
import math
import os
import threading
import warnings
from typing import Any, NamedTuple

import cupy

from xpnn.backend import get
from xpnn.kernels.cupy.cublaslt import TF32, in_short
from xpnn.kernels.cupy.source import Source
from xpnn.windows import Pair, Window

AUTOTUNE = os.environ.get("XPNN_AUTOTUNE") != "0"  # whether plans are timed
CANDIDATES = 8  # plans that are
ROUNDS, RUNS = 3, 10  # how often, and executions of a round at most, one right behind the other
ENOUGH = 10.0  # milliseconds of a round: of a slow plan fewer executions
SLOW = 2  # times as long as the best: it takes one execution to see that a plan is not to be taken
BUSY = 2_000_000  # cycles, a millisecond or so: within it the host asks for all executions of a round
CLEARLY = 0.97  # of a plan's time: what a later one may take to be preferred. Noise alone does not choose
WORKSPACE = 2**30  # bytes that a plan may ask for: with less, exact float32 may have the slowest plans alone
ALIGNED = 16  # bytes: the most that a plan relies on
TYPES = {"f": "FLOAT", "e": "HALF", "E": "BFLOAT16"}
ADVICE = "faster by cuDNN: pip install 'nvidia-cudnn-frontend>=1.23,<1.24' nvidia-cudnn-cu13 (or -cu12)"
FIRST, SECOND, BIAS, RESULT = range(1, 5)  # by which numbers a graph knows its arrays

Shape = tuple[int, ...]
CUDNN = Source("cudnn.cu", ["spin"])


class Plan(NamedTuple):
    graph: Any
    workspace: int  # bytes


_plans: dict[tuple, Plan | None] = {}
_streams: dict[int, int] = {}  # by handle
_choosing = threading.Lock()  # a graph that is timed executes now this plan, now that: no other thread may use it yet


@functools.cache
def library() -> Any:
    """The frontend; None where there is an obstacle."""
    return None if obstacle() else importlib.import_module("cudnn")


@functools.cache
def obstacle() -> str:
    """Why convolutions are not cuDNN's, and what helps, for people to read; "" where they are."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch, which the frontend imports where it is there
            cudnn = importlib.import_module("cudnn")
        _handle(cudnn)
    except ModuleNotFoundError:
        return ADVICE
    except Exception as error:  # whatever a broken installation raises
        return f"cuDNN does not load ({in_short(error)}); {ADVICE}"
    images, filters = (1, 8, 8, 8), (8, 8, 1, 1)
    try:
        _build(cudnn, _graph(cudnn, "fprop", images, filters, images, Window((1, 1)), "e", (ALIGNED,) * 3), "e")
    except (AttributeError, TypeError) as error:  # newer ones cannot be told how an array is aligned
        return f"nvidia-cudnn-frontend {cudnn.__version__} does not fit ({in_short(error)}); {ADVICE}"
    except _declined(cudnn) as error:
        return f"cuDNN {cudnn.backend_version_string()} has no plan for a usual convolution ({in_short(error)})"
    return ""


def _handle(cudnn: Any) -> int:
    """This thread's own: a handle is on one stream at a time."""
    return _handle_of(threading.get_ident(), cudnn)


@functools.cache
def _handle_of(thread: int, cudnn: Any) -> int:
    return cudnn.create_handle()


def correlate(x: Any, w: Any, b: Any, window: Window, relu: bool = False) -> Any:
    """Return what `layers.convolution.correlate` does, rectified if asked for, or None."""
    shape = len(x), len(w), *window.counts(x.shape[2:])
    return _run("fprop_relu" if relu else "fprop", x, w, shape, window, b)


def correlate_filter_grad(dout: Any, x: Any, window: Window, groups: int, out: Any = None) -> Any:
    """Return what `layers.convolution.correlate_filter_grad` does, or None; in `out` where that can be."""
    return _run("wgrad", x, dout, (dout.shape[1], x.shape[1] // groups, *window.size), window, into=out)


def correlate_input_grad(dout: Any, w: Any, image: Pair, window: Window, groups: int) -> Any:
    """Return what `layers.convolution.correlate_input_grad` does, or None."""
    return _run("dgrad", dout, w, (len(dout), w.shape[1] * groups, *image), window)


def _run(
    operation: str, first: Any, second: Any, shape: Shape, window: Window, bias: Any = None, into: Any = None
) -> Any:
    dtype, arrays = first.dtype, [first, second, *([] if bias is None else [bias])]
    if library() is None or dtype.char not in TYPES or 0 in first.shape or any(x.dtype != dtype for x in arrays):
        return None
    arrays = [*map(_channels_last, arrays[:2]), *map(cupy.ascontiguousarray, arrays[2:])]
    aligned = tuple(min(x.data.ptr & -x.data.ptr, ALIGNED) for x in arrays)
    key = (operation, first.shape, second.shape, shape, window, dtype.char, aligned)
    if key in _plans and _plans[key] is None:
        return None
    out = memory_for(shape, dtype, into)
    pointers = {number: x.data.ptr for number, x in enumerate(arrays, FIRST)} | {RESULT: out.data.ptr}
    plan = _plans[key] if key in _plans else _choose(key, pointers)
    if plan is None:
        return None
    _execute(plan, pointers)
    return out.transpose(0, 3, 1, 2)


def memory_for(shape: Shape, dtype: Any, out: Any) -> Any:
    """Return memory (N, H, W, C) for images or filters of that shape: that of `out` where it is as good as new."""
    n, c, height, width = shape
    if out is not None and out.dtype == dtype and out.data.ptr % ALIGNED == 0:
        memory = out.transpose(0, 2, 3, 1)
        if memory.flags.c_contiguous:
            return memory
    return cupy.empty((n, height, width, c), dtype=dtype)


def _choose(key: tuple, pointers: dict[int, int]) -> Plan | None:
    with _choosing:
        if key not in _plans:
            plan = _plan(*key)
            if plan is not None and AUTOTUNE and not cupy.cuda.get_current_stream().is_capturing():
                plan = _fastest(plan.graph, pointers)
                get("cupy").free_memory()  # that of plans which are not taken
            _plans[key] = plan
        return _plans[key]


def _execute(plan: Plan, pointers: dict[int, int]) -> None:
    memory = cupy.empty(plan.workspace, dtype="uint8") if plan.workspace else None  # of the pool, so of this stream
    cudnn, stream = library(), cupy.cuda.get_current_stream().ptr
    handle = _handle(cudnn)
    if _streams.get(handle) != stream:
        cudnn.set_stream(handle=handle, stream=stream)
        _streams[handle] = stream
    plan.graph.execute(pointers, 0 if memory is None else memory.data.ptr, handle=handle)


def _plan(
    operation: str, first: Shape, second: Shape, result: Shape, window: Window, char: str, aligned: Shape
) -> Plan | None:
    """The first that can be built of those that the heuristic names, the best ones first; None where there is none."""
    cudnn = library()
    graph = _graph(cudnn, operation, first, second, result, window, char, aligned)
    try:
        _build(cudnn, graph, char)
    except _declined(cudnn):
        return None
    return Plan(graph, graph.get_workspace_size())


def _build(cudnn: Any, graph: Any, char: str) -> None:
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    graph.deselect_numeric_notes(_unwanted(cudnn, exact=char == "f" and not TF32))
    graph.deselect_workspace_greater_than(WORKSPACE)
    graph.check_support()
    graph.build_plans()


def _fastest(graph: Any, pointers: dict[int, int]) -> Plan | None:
    """Time the first plans of a graph, and build the fastest: it executes the one that was built last.

    None where the device refuses all of them.
    """
    built, best, least, shortage = 0, 0, math.inf, None
    for index in range(graph.get_execution_plan_count()):
        try:
            graph.build_plan_at_index(index)
        except _declined(library()):
            continue
        try:
            time = _time(Plan(graph, graph.get_workspace_size()), pointers, SLOW * least)
        except MemoryError as error:
            time, shortage = math.inf, error
        if time < CLEARLY * least:
            best, least = index, time
        built += 1
        if built == CANDIDATES:
            break
    if least == math.inf and shortage is not None:
        raise shortage  # which may pass
    if least == math.inf:
        return None
    graph.build_plan_at_index(best)
    return Plan(graph, graph.get_workspace_size())


def _time(plan: Plan, pointers: dict[int, int], limit: float) -> float:
    """Return the milliseconds of an execution: of one, where it takes longer than `limit`, or else in the mean of some.

    Infinite where the device refuses.
    """
    try:
        _execute(plan, pointers)  # which may have to load it first
        once = _milliseconds(plan, pointers, 1)
        if once > limit:
            return once
        runs = max(1, min(RUNS, int(ENOUGH / once)))
        return min(_milliseconds(plan, pointers, runs) / runs for _ in range(ROUNDS))
    except _declined(library()):
        return math.inf


def _milliseconds(plan: Plan, pointers: dict[int, int], runs: int) -> float:
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    CUDNN.launch("spin", (1,), (1,), (BUSY,))  # or a small convolution would wait for the host each time
    start.record()
    for _ in range(runs):
        _execute(plan, pointers)
    end.record()
    end.synchronize()
    return cupy.cuda.get_elapsed_time(start, end)


def _declined(cudnn: Any) -> tuple[type[Exception], ...]:
    """What is raised for plans that there are not, and by newer frontends for those that were deselected."""
    return cudnn.cudnnGraphNotSupportedError, RuntimeError, ValueError


def _graph(
    cudnn: Any,
    operation: str,
    first: Shape,
    second: Shape,
    result: Shape,
    window: Window,
    char: str,
    aligned: Shape,
) -> Any:
    io, single = getattr(cudnn.data_type, TYPES[char]), cudnn.data_type.FLOAT
    types = {"io_data_type": io, "intermediate_data_type": single, "compute_data_type": single}
    # Told which device it is for, the frontend need not find a CUDA runtime to ask: there may be none, or two.
    graph = cudnn.pygraph(**types, handle=_handle(cudnn), sm_version=int(cupy.cuda.Device().compute_capability))
    a, b = (
        graph.tensor(dim=list(shape), stride=_strides(shape), uid=number).set_alignment(size)
        for shape, number, size in zip((first, second), (FIRST, SECOND), aligned, strict=False)
    )
    geometry = {"padding": list(window.pad), "stride": list(window.stride), "dilation": list(window.dilation)}
    if operation.startswith("fprop"):
        out = graph.conv_fprop(image=a, weight=b, **geometry)
    elif operation == "wgrad":
        out = graph.conv_wgrad(image=a, loss=b, **geometry)
    else:
        out = graph.conv_dgrad(loss=a, filter=b, **geometry)
    if len(aligned) == BIAS:
        of_channels = (1, result[1], 1, 1)
        bias = graph.tensor(dim=list(of_channels), stride=_strides(of_channels), uid=BIAS).set_alignment(aligned[2])
        out = graph.bias(input=out, bias=bias)
    if operation == "fprop_relu":
        out = graph.relu(input=out)
    out.set_output(True).set_uid(RESULT).set_dim(list(result)).set_stride(_strides(result)).set_data_type(io)
    return graph


def _unwanted(cudnn: Any, exact: bool) -> list[Any]:
    """Properties of plans that are not to be taken."""
    note = cudnn.numerical_note
    return [note.NONDETERMINISTIC, note.REDUCED_PRECISION_REDUCTION, note.DOWN_CONVERT_INPUTS] + (
        [note.TENSOR_CORE] if exact else []
    )


def _strides(shape: Shape) -> list[int]:
    _, c, _, width = shape
    return [math.prod(shape[1:]), 1, width * c, c]


def _channels_last(x: Any) -> Any:
    return cupy.ascontiguousarray(x.transpose(0, 2, 3, 1))


def version() -> str:
    return library().backend_version_string()
