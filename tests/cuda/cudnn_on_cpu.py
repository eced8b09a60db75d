"""cuDNN on the CPU: a stand-in for the module of its frontend, whose graphs are computed by the definitions.

A graph is checked as the frontend and the library check it: shapes that fit, strides of dense memory with the channels
last, steps in their order, arrays aligned as was promised, no reading before a plan is there.
"""

import ctypes
import enum
import math
import sys
from typing import NamedTuple

import numpy as np
import stand_in
from numpy.lib.stride_tricks import as_strided
from stand_in import deferred

from xpnn.layers import convolution
from xpnn.windows import Window

HANDLE = 99


class data_type(enum.Enum):
    NOT_SET = 0
    FLOAT = 1
    HALF = 3
    BFLOAT16 = 10


class heur_mode(enum.Enum):
    A = 0
    FALLBACK = 2


class numerical_note(enum.Enum):
    TENSOR_CORE = 1
    DOWN_CONVERT_INPUTS = 2
    REDUCED_PRECISION_REDUCTION = 3
    NONDETERMINISTIC = 5


class cudnnGraphNotSupportedError(Exception):
    pass


DTYPES = {data_type.FLOAT: "float32", data_type.HALF: "float16", data_type.BFLOAT16: "bfloat16"}


class Candidate(NamedTuple):
    """A plan as the heuristic names it."""

    milliseconds: float = 1.0
    workspace: int = 1024
    exists: bool = True  # or else it turns out at building that there is none


PLANS = (Candidate(),)
plans = PLANS  # of every graph, the best first
asking = 0.0  # milliseconds that the host takes to ask for an execution
has_exact_plans = False  # of float32
built: list["pygraph"] = []
fuses_relu = True
executed: list[tuple] = []  # operation, shapes, what is done to the result
indices: list[int] = []  # of the plans that were executed
streams: list[int] = []


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def create_handle() -> int:
    return HANDLE


def set_stream(handle: int, stream: int) -> None:
    _require(handle == HANDLE, "an unknown handle")
    streams.append(stream)


def backend_version_string() -> str:
    return "9.19.0"


class tensor:
    """An array of a graph: what is known of it, and where it comes from."""

    def __init__(self, dim=None, stride=None, uid=None, data_type=None, source=None):
        self.dim, self.stride, self.uid, self.data_type, self.source = dim, stride, uid, data_type, source
        self.alignment, self.output = 16, False

    def set_alignment(self, value):
        return self._with(alignment=value)

    def set_output(self, value):
        return self._with(output=value)

    def set_uid(self, value):
        return self._with(uid=value)

    def set_dim(self, value):
        return self._with(dim=value)

    def set_stride(self, value):
        return self._with(stride=value)

    def set_data_type(self, data_type):
        return self._with(data_type=data_type)

    def _with(self, **values):
        vars(self).update(values)
        return self

    def in_memory(self, pointer: int) -> np.ndarray:
        _require(pointer % self.alignment == 0, "not aligned as promised")
        dtype = np.dtype(DTYPES[self.data_type])
        count = math.prod(self.dim)
        numbers = np.frombuffer((ctypes.c_char * (count * dtype.itemsize)).from_address(pointer), dtype)
        return as_strided(numbers, self.dim, [stride * dtype.itemsize for stride in self.stride])


class pygraph:
    def __init__(self, *, io_data_type, intermediate_data_type, compute_data_type, handle, sm_version):
        _require(sm_version == stand_in.ARCHITECTURE, "for another device")
        _require(intermediate_data_type == compute_data_type == data_type.FLOAT, "sums would be rounded on the way")
        self.io, self.handle, self.tensors, self.steps = io_data_type, handle, [], []

    def tensor(self, *, dim, stride, uid):
        self.tensors.append(tensor(dim, stride, uid, self.io))
        return self.tensors[-1]

    def conv_fprop(self, *, image, weight, padding, stride, dilation):
        return self._of("fprop", image, weight, padding, stride, dilation)

    def conv_wgrad(self, *, image, loss, padding, stride, dilation):
        return self._of("wgrad", image, loss, padding, stride, dilation)

    def conv_dgrad(self, *, loss, filter, padding, stride, dilation):
        return self._of("dgrad", loss, filter, padding, stride, dilation)

    def bias(self, *, input, bias):
        return self._of("bias", input, bias)

    def relu(self, *, input):
        return self._of("relu", input)

    def _of(self, operation, *source):
        self.tensors.append(tensor(data_type=self.io, source=(operation, *source)))
        return self.tensors[-1]

    def _step(self, name):
        order = ["validate", "build_operation_graph", "create_execution_plans", "deselect_numeric_notes"]
        order += ["deselect_workspace_greater_than", "check_support", "build_plans"]
        _require(order[len(self.steps)] == name, f"{name} after {self.steps}")
        self.steps.append(name)

    def validate(self):
        self._step("validate")
        (self.result,) = (x for x in self.tensors if x.output)
        given = [x for x in self.tensors if x.source is None]
        for x in (*given, self.result):
            _, c, height, width = x.dim
            expected = [c * height * width, 1, width * c, c]
            _require(x.stride == expected, f"{x.stride} is not dense with the channels last")
        _require(len({x.uid for x in (*given, self.result)}) == len(given) + 1, "two arrays of one number")

    def build_operation_graph(self):
        self._step("build_operation_graph")

    def create_execution_plans(self, modes):
        self._step("create_execution_plans")
        _require(modes == [heur_mode.A, heur_mode.FALLBACK], "other plans")

    def deselect_numeric_notes(self, notes):
        self._step("deselect_numeric_notes")
        self.notes = notes

    def deselect_workspace_greater_than(self, most):
        self._step("deselect_workspace_greater_than")
        self.most = most

    def _is_there(self, plan):
        inexact = numerical_note.TENSOR_CORE in self.notes and self.io == data_type.FLOAT and not has_exact_plans
        declined = self.result.source[0] == "relu" and not fuses_relu
        return not inexact and not declined and plan.workspace <= self.most

    def check_support(self):
        self._step("check_support")
        if not any(map(self._is_there, plans)):
            raise cudnnGraphNotSupportedError("no plan is left")

    def build_plans(self):
        self._step("build_plans")
        self.index = next((i for i, plan in enumerate(plans) if self._is_there(plan) and plan.exists), None)
        if self.index is None:
            raise cudnnGraphNotSupportedError("no plan could be built")
        built.append(self)

    def get_execution_plan_count(self):
        _require(self.steps[-1] == "build_plans", "not ready")
        return len(plans)

    def build_plan_at_index(self, index):
        _require(self.steps[-1] == "build_plans", "not ready")
        if not self._is_there(plans[index]):
            raise ValueError("a plan that was deselected")
        if not plans[index].exists:
            raise cudnnGraphNotSupportedError("there is no such plan")
        self.index = index

    def get_workspace_size(self):
        return plans[self.index].workspace

    def execute(self, tensor_to_device_buffer, workspace, handle=None):
        _require(self.steps[-1] == "build_plans" and handle == HANDLE, "not ready")
        _require((workspace != 0) == (plans[self.index].workspace != 0), "another plan's workspace")
        _require(streams[-1] == stand_in.streams[-1].ptr, "another stream than CuPy's")
        stand_in.clock.host += asking
        stand_in.clock.work(plans[self.index].milliseconds)
        indices.append(self.index)
        arrays = {x.uid: x.in_memory(tensor_to_device_buffer[x.uid]) for x in self.tensors if x.uid is not None}
        _require(arrays.keys() == tensor_to_device_buffer.keys(), "arrays that the graph does not know")

        def compute() -> None:
            value = self._value(self.result, arrays)
            _require(list(value.shape) == self.result.dim, f"{value.shape} is not {self.result.dim}")
            arrays[self.result.uid][...] = value

        deferred(compute)
        operation, after = self.result.source, ()
        while operation[0] in ("bias", "relu"):
            operation, after = operation[1].source, (operation[0], *after)
        executed.append((operation[0], tuple(operation[1].dim), tuple(operation[2].dim), *after))

    def _value(self, x, arrays):
        if x.source is None:
            return arrays[x.uid].astype("float32")
        operation, *source = x.source
        if operation == "relu":
            return np.maximum(self._value(source[0], arrays), 0)
        first, second = (self._value(y, arrays) for y in source[:2])
        if operation == "bias":
            _require(second.shape == (1, first.shape[1], 1, 1), "a bias is for channels")
            return first + second
        padding, stride, dilation = map(tuple, source[2:])
        window = lambda size: Window(tuple(size), stride, padding, dilation)  # noqa: E731
        if operation == "fprop":
            groups = first.shape[1] // second.shape[1]
            return convolution.correlate(first, second, None, window(second.shape[2:]), groups)
        if operation == "wgrad":
            _, c, *size = x.dim
            return convolution.correlate_filter_grad(second, first, window(size), first.shape[1] // c)
        groups = x.dim[1] // second.shape[1]
        size = second.shape[2:]
        return convolution.correlate_input_grad(first, second, tuple(x.dim[2:]), window(size), groups)


def install() -> None:
    """Put it where cuDNN's frontend is imported from, for as long as the stand-in for CuPy is installed."""
    sys.modules["cudnn"] = sys.modules[__name__]
    for record in (built, executed, indices, streams):
        record.clear()
