"""What keeps the steps of a Solver from being recorded by a device: all that may do more than launch the same anew."""

from collections.abc import Iterator
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any

from xpnn import recording
from xpnn.kernels import fast_path
from xpnn.layers import Layer
from xpnn.models import Model
from xpnn.training.callbacks import Callback

if TYPE_CHECKING:
    from xpnn.training.solver import Solver


def obstacles(solver: "Solver") -> Iterator[str]:
    """Say one by one what keeps a Solver's steps from being recorded."""
    library = solver.backend.name
    if fast_path("recording.record", library) is None:
        yield f"{solver.backend} records no steps"
    if (reason := (fast_path("recording.obstacle", library) or recording.obstacle)()) is not None:
        yield reason
    if solver.accumulate > 1:
        yield "a step takes several batches"
    for callback in solver.callbacks:
        if may_change(callback, "on_iteration"):
            yield f"{_name(callback)} is called after each batch, and does not say that it only_looks"
    for part in (solver.model, *_parts(solver.model), solver.optimizer, solver.augment, *solver.augment.transforms):
        if not _is_ours(part):
            yield f"{_name(part)} is not xpnn's own, and may do what no device can record"
        elif not getattr(part, "recordable", True):
            yield f"{_name(part)} decides on the host what differs from step to step"
    if (rule := solver.optimizer.unrecordable) is not None:
        what = "takes numbers from the host at each step" if _is_ours(rule) else "is not xpnn's own"
        yield f"{_name(rule)} {what}"


def may_change(callback: Callback, method: str) -> bool:
    """Whether a callback has a method of its own that may change what a step depends on."""
    if method in vars(callback):
        return not vars(callback).get("only_looks", False)
    for kind in type(callback).__mro__:
        if kind is Callback:
            break
        if "only_looks" in vars(kind):  # said of all that it has, but not of what a subclass adds
            return not vars(kind)["only_looks"]
        if method in vars(kind):
            return True
    return False


def _is_ours(thing: Any) -> bool:
    """Whether a function, or an object's class, is xpnn's own, and no method of the object is another."""
    kind, own = _kind(thing), getattr(thing, "__dict__", {})
    if kind is type(thing) and any(callable(value) and hasattr(kind, name) for name, value in own.items()):
        return False
    # A function that wraps another has that one's name and module, but not its globals.
    module = kind.__globals__["__name__"] if isinstance(kind, FunctionType) else kind.__module__
    return module.partition(".")[0] == "xpnn"


def _kind(thing: Any) -> Any:
    while isinstance(thing, partial):
        thing = thing.func
    return thing if isinstance(thing, FunctionType | type) else type(thing)


def _name(thing: Any) -> str:
    path = thing.path if isinstance(thing, Layer) else ""
    return f"{path} ({_kind(thing).__name__})" if path else _kind(thing).__name__


def _parts(model: Any) -> Iterator[Any]:
    """The loss and the layers of a model, those that hold others too."""
    if isinstance(model, Model):
        yield model.loss_function
        yield from _layers(model.net)


def _layers(layer: Layer) -> Iterator[Layer]:
    yield layer
    for value in vars(layer).values():
        for each in value.values() if isinstance(value, dict) else (value,):
            if isinstance(each, Layer):
                yield from _layers(each)
