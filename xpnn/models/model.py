"""A net, its parameters in one buffer, and a loss: what the Solver trains."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from xpnn import backend as backends
from xpnn.arguments import check_number, check_whole
from xpnn.backend import (
    Array,
    Backend,
    Shape,
    describe,
    dtype_name,
    is_array,
    is_integer,
    is_real,
    library_of,
    namespace,
)
from xpnn.errors import CheckpointError, SettingError
from xpnn.kernels import fast_path
from xpnn.layers import Layer, Sequential, softmax_loss
from xpnn.layers.layer import are_plain
from xpnn.layers.precision import HALVES, narrowed, widened
from xpnn.models import torch_weights
from xpnn.out_of_memory import in_parts, memory_for
from xpnn.parameters import Parameters
from xpnn.random import DROPOUT, Generator, as_generator

DTYPES = ("float32", "float64", *HALVES)
Loss = Callable[[Array, Array], tuple[Array, Array]]


class Model:
    """A net of layers with a loss and an L2 penalty.

    Parameters
    ----------
    net : Layer
        Usually a `Sequential`.
    input_shape : tuple of int
        The shape of one example, without the batch.
    loss : callable
        ``loss(scores, y) -> (loss, dscores)``.
    reg : float
        The loss gains ``0.5 reg sum(W²)`` over the weight matrices and filters, not over biases or scales.
    dtype : str or dtype
        Of parameters, state and gradients, float32 or float64; inputs are cast to it. With ``"float16"`` or
        ``"bfloat16"`` layers compute in half precision, with a copy of the parameters; these themselves, their
        gradients, statistics and the loss stay float32, and so do layers that normalize.
    backend : str or Backend, optional
        Where the model lives; ``XPNN_BACKEND`` or NumPy by default.
    rng : Generator or int, optional
        For the first weights and the dropout masks; each dropout layer has its own stream of the same seed.

    Attributes
    ----------
    params : Parameters
        A dict of views into one buffer.
    state : dict of str to array
        What is saved but not learned, such as running statistics.
    compute_dtype : str
        The dtype that was asked for.

    Raises
    ------
    ValueError
        When a layer does not take the shape that reaches it; the message names the layer.
    SettingError (a ValueError)
        For another dtype, one that the backend has not, or an impossible `reg`.
    OutOfMemory (a MemoryError)
        Where there is no room for the parameters.

    Source for half precision: Micikevicius et al., "Mixed precision training", ICLR 2018.
    """

    def __init__(
        self,
        net: Layer,
        input_shape: Shape,
        *,
        loss: Loss = softmax_loss,
        reg: float = 0.0,
        dtype: Any = "float32",
        backend: str | Backend | None = None,
        rng: Generator | int | None = None,
    ) -> None:
        self.net = net
        if not isinstance(net, Layer):
            raise TypeError(f"model: expected a Layer; received {describe(net)}")
        if not isinstance(input_shape, tuple | list):
            raise TypeError(f"model: expected input_shape, a tuple such as (3, 32, 32); received {input_shape!r:.60}")
        self.input_shape = tuple(check_whole("model", "each size of input_shape", size, 0) for size in input_shape)
        if not callable(loss):
            raise TypeError(f"model: expected loss, a function of scores and targets; received {loss!r:.60}")
        self.loss_function = loss
        expected = "reg, the strength of the penalty, of at least 0"
        self.reg = check_number("model", expected, reg, lambda number: number >= 0)
        self.backend = backends.get(backend).require()
        self.output_shape = net.output_shape(self.input_shape)
        self.compute_dtype = dtype_name(dtype)
        if self.compute_dtype not in DTYPES:
            raise SettingError(f"model: expected a dtype out of {', '.join(DTYPES)}; received {self.compute_dtype!r}")
        self.backend.dtype(self.compute_dtype)  # or it says that it has none
        self._working: Parameters | None = None
        with memory_for("model: expected memory for the parameters and to draw the first weights; received too little"):
            self._build(self.compute_dtype, as_generator(rng))

    def _build(self, dtype: str, rng: Generator) -> None:
        leaves = list(self.net.walk(self.input_shape))
        self._layers = [layer for layer, _ in leaves]
        if len(set(map(id, self._layers))) < len(self._layers):
            raise ValueError("model: expected each layer object once; received one that stands twice in the net")
        if taken := [layer.path for layer in self._layers if layer.owned]:
            raise ValueError(f"model: expected layers of its own; received {taken[0]}, which another model has")
        specs = {_path(layer, p): spec for layer, shape in leaves for p, spec in layer.param_specs(shape).items()}
        self._names = {path: self.param_name(path) for path in specs}
        self._decayed = [self._names[path] for path, spec in specs.items() if spec.decay]
        shapes = {self._names[path]: spec.shape for path, spec in specs.items()}
        if dtype in HALVES:  # the layers compute with a copy
            self._working, dtype = Parameters(shapes, self.backend, dtype), "float32"
        self._params = Parameters(shapes, self.backend, dtype)
        for path, spec in specs.items():
            self._params[self._names[path]] = spec.init(rng, spec.shape, dtype, self.backend)
        for i, (layer, shape) in enumerate(leaves):
            for key, spec in layer.state_specs(shape).items():
                layer.state[key] = spec.init(rng, spec.shape, dtype, self.backend)
            if layer.uses_rng:
                layer.rng = rng.spawn(DROPOUT + i)
        self._state_paths = {_path(layer, k): (layer, k) for layer, s in leaves for k in layer.state_specs(s)}
        self._bind()

    @property
    def _takes_bytes(self) -> bool:
        """Whether the one layer that a batch goes through first does, as its very class says."""
        first = self.net
        while type(first) is Sequential and are_plain(first):
            first = next(iter(first.layers.values()))
        return vars(type(first)).get("takes_bytes", False) and are_plain(first)

    def _bind(self) -> None:
        """Hand every layer the views of its parameters."""
        self._params_of: dict[str, list[tuple[str, str]]] = {layer.path: [] for layer in self._layers}
        for layer in self._layers:
            layer.params, layer.owned, layer.compute_dtype = {}, True, self.compute_dtype
        for name, layer, param in self.arrays_by_layer():
            if name in self._params:
                self._params_of[layer.path].append((param, name))
                halves = None if layer.is_single else self._working
                layer.params[param] = (self._params if halves is None else halves)[name]

    def param_name(self, path: str) -> str:
        """Return the public name of the parameter at `path`; models of the course name them otherwise."""
        return path

    @property
    def params(self) -> Parameters:
        return self._params

    @params.setter
    def params(self, values: Mapping[str, Array]) -> None:
        self._params.update(values)

    @property
    def state(self) -> dict[str, Array]:
        return {path: layer.state[key] for path, (layer, key) in self._state_paths.items()}

    @property
    def state_places(self) -> Iterable[tuple[Layer, str]]:
        """The layer of each array of `state`, and its name there."""
        return self._state_paths.values()

    @property
    def buffers(self) -> list[Parameters]:
        """The parameters and, where layers compute with a copy in half precision, that."""
        return [buffer for buffer in (self._params, self._working) if buffer is not None]

    @property
    def dtype(self) -> Any:
        return self._params.flat.dtype

    def __repr__(self) -> str:
        shapes = f"{self.input_shape} -> {self.output_shape}"
        return f"<{type(self).__name__} {shapes}, {self._params.size:,} parameters, {self.backend}>"

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._bind()  # a copy's layers hold views of the copy's buffer

    def loss(
        self, X: Array, y: Array | None = None, grads: Parameters | None = None, scale: Array | float | None = None
    ) -> Array | tuple[Array, Parameters]:
        """Return the scores of a batch; given labels, the loss and its gradients.

        Parameters
        ----------
        X : array (N, ...)
            Examples of `input_shape`, of any numeric dtype; cast to the model's.
        y : array (N,) of integers, optional
            Labels. With them the net runs in train mode, without in test mode.
        grads : Parameters, optional
            A buffer to write the gradients into, for a loop that needs no new one each step.
        scale : array () or float, optional
            The gradient of the loss is multiplied by it before, and all gradients are divided by it after the backward
            pass, so that small ones are not lost in half precision.

        Returns
        -------
        scores : array (N, C), or (loss, grads) : array () and a dict of gradients with the keys of `params`
        """
        x = self._enter(X)
        if y is None:
            return widened(self.net.infer(x))
        scores, cache = self.net.forward(x, train=True)
        loss, dscores = self.loss_function(widened(scores), y)
        if scale is not None:
            dscores = dscores * scale
        grads = self._params.like() if grads is None else grads
        self._lend(grads)
        try:
            _, by_path = self.net.backward(narrowed(dscores, scores.dtype), cache, input_grad=False)
        finally:
            self._lend({})
        for path, grad in by_path.items():
            name = self._names[path]
            if grad is not grads[name]:  # which a layer may have written into
                grads[name][...] = grad
        if scale is not None:
            fast = fast_path("models.model.unscale", self.backend.name) if is_array(scale) else None
            (fast or unscale)(grads.flat, scale)
        if self.reg:
            xp = self.backend.namespace
            for name in self._decayed:
                w, dw = self._params[name], grads[name]
                loss = loss + 0.5 * self.reg * xp.sum(w * w)
                dw += self.reg * w
        # With a scale, which may well have been too large, gradients are looked at before the step.
        fast = fast_path("models.model.nan_unless_finite", self.backend.name) if scale is None else None
        if fast is not None and library_of(loss) == self.backend.name:
            loss = fast(loss, grads.flat)
        return loss, grads

    def _lend(self, grads: Mapping[str, Array]) -> None:
        """Hand every layer the views that its gradients are to be written into."""
        for layer in self._layers:
            layer.grads = {param: grads[name] for param, name in self._params_of[layer.path] if name in grads}

    def _enter(self, X: Array) -> Array:
        """Check a batch at the model's door, flatten it where the net takes vectors, cast it."""
        if not is_array(X) or backends.of(X) is not self.backend:
            raise TypeError(f"model: expected X of backend {self.backend}; received {describe(X)}")
        indices = self._layers[0].takes_integers
        if not (is_integer(X) if indices else is_real(X)):
            expected = "whole numbers" if indices else "real numbers"
            raise TypeError(f"model: expected X of {expected}; received {dtype_name(X.dtype)}")
        xp = self.backend.namespace
        if tuple(X.shape[1:]) != self.input_shape:
            if X.ndim < 1 or len(self.input_shape) != 1 or math.prod(X.shape[1:]) != self.input_shape[0]:
                expected = ", ".join(map(str, ("N", *self.input_shape)))
                raise ValueError(f"model: expected X of shape ({expected}); received {tuple(X.shape)}")
            X = xp.reshape(X, (X.shape[0], *self.input_shape))
        if self._working is not None:
            self._working.flat[...] = self._params.flat  # rounded
        if indices or (self._takes_bytes and X.dtype == xp.uint8):
            return X
        return xp.astype(X, self.backend.dtype(self.compute_dtype), copy=False)

    def summary(self) -> None:
        """Print every layer with its output's shape, its parameters and its FLOPs, and their sums.

        FLOPs are the multiplications and additions of the matrix products and convolutions in one example's forward
        pass; what is done number by number is not counted.
        """
        rows = [("layer", "output shape", "parameters", "FLOPs")]
        flops = 0
        for layer, shape in self.net.walk(self.input_shape):
            count = sum(math.prod(spec.shape) for spec in layer.param_specs(shape).values())
            kind = type(layer).__name__
            label = f"{layer.path} ({kind})" if layer.path else kind
            rows.append((label, str(layer.output_shape(shape)), f"{count:,}", f"{layer.flops(shape):,}"))
            flops += layer.flops(shape)
        rows.append(("in all", str(self.output_shape), f"{self._params.size:,}", f"{flops:,}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            name, shape_text, *numbers = (text.ljust(width) for text, width in zip(row, widths, strict=True))
            right = [text.strip().rjust(width) for text, width in zip(numbers, widths[2:], strict=True)]
            print("  ".join((name, shape_text, *right)))

    def predict(self, X: Array, batch_size: int = 1000) -> Array:
        """Return the label with the highest score for each example; fewer at a time where memory is short."""
        check_whole("predict", "batch_size", batch_size)
        if not is_array(X):
            raise TypeError(f"predict: expected an array; received {describe(X)}")
        labels, _ = best_labels(self.loss, X, batch_size, self.backend)
        return labels

    def to(self, backend: str | Backend) -> "Model":
        """Move parameters and state to another backend, all of them or, where memory is short, none; returns the model.

        Raises
        ------
        OutOfMemory
            Where memory there is too short.
        """
        target = backends.get(backend).require()
        if target is self.backend:
            return self
        target.dtype(self.compute_dtype)
        expected = f"memory on {target} for {self._params.size:,} parameters"
        with memory_for(f"model: expected {expected}; received too little"):
            flats = [target.asarray(buffer.flat, copy=True) for buffer in self.buffers]
            state = [target.asarray(layer.state[key]) for layer, key in self.state_places]
        for buffer, flat in zip(self.buffers, flats, strict=True):
            buffer.adopt(target, flat)
        for (layer, key), array in zip(self.state_places, state, strict=True):
            layer.state[key] = array
        self.backend = target
        self._bind()
        return self

    def state_dict(self) -> dict[str, Array]:
        """Return parameters and state by name: the arrays themselves, which go on changing, not copies."""
        return {**self._params, **self.state}

    def matching_state(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Return copies of arrays in this model's backend and dtype, if they are all its parameters and state.

        Raises
        ------
        CheckpointError
            When a name is missing or not known, or a shape differs.
        """
        if not isinstance(arrays, Mapping):
            raise TypeError(f"model: expected a dict of arrays by name; received {describe(arrays)}")
        own = self.state_dict()
        if missing := own.keys() - arrays.keys():
            raise CheckpointError(f"expected {', '.join(sorted(missing))}, which the checkpoint does not have")
        if unknown := arrays.keys() - own.keys():
            raise CheckpointError(f"received {', '.join(sorted(unknown))}, which the model does not have")
        new = {}
        for name, array in arrays.items():
            try:
                new[name] = self.backend.asarray(array, self.dtype, copy=True)
            except (TypeError, ValueError) as error:
                raise CheckpointError(f"{name}: expected numbers; received others ({error})") from None
            if new[name].shape != own[name].shape:
                expected, received = tuple(own[name].shape), tuple(new[name].shape)
                raise CheckpointError(f"{name}: expected shape {expected}; received {received}")
        return new

    def load_state_dict(self, arrays: Mapping[str, Array]) -> None:
        """Set parameters and state from arrays of any backend.

        Raises
        ------
        CheckpointError
            As in `matching_state`; the model is then unchanged.
        """
        self.load_matching(self.matching_state(arrays))

    def load_matching(self, arrays: Mapping[str, Array]) -> None:
        """Set parameters and state from arrays that are known to match and to be no views of the model's own.

        One after the other: no second copy of all of them is made, as `load_state_dict` does to be sure.
        """
        self._params.update((name, arrays[name]) for name in self._params)
        for path, (layer, key) in self._state_paths.items():
            layer.state[key] = self.backend.asarray(arrays[path], self.dtype, copy=True)

    def arrays_by_layer(self) -> Iterator[tuple[str, Layer, str]]:
        """Yield the name of every parameter and state array, the layer it belongs to, and its name there."""
        owners = {layer.path: layer for layer in self._layers}
        for path, name in self._names.items():
            owner, _, param = path.rpartition(".")
            yield name, owners[owner], param
        for path, (layer, key) in self._state_paths.items():
            yield path, layer, key

    def torch_key(self, key: str) -> str:
        """Return what PyTorch calls an array, given xpnn's path and the layer's word: models say what they rename."""
        return key

    def to_torch_state_dict(self) -> dict[str, Any]:
        """Return the weights under PyTorch's names; see `xpnn.models.torch_weights`."""
        return torch_weights.to_torch_state_dict(self)

    def load_torch_state_dict(self, state: Mapping[str, Array]) -> None:
        """Set the weights from the equal PyTorch net's; see `xpnn.models.torch_weights`."""
        torch_weights.load_torch_state_dict(self, state)

    @property
    def rng_state(self) -> dict[str, tuple[int, ...]]:
        """The state of every layer's generator, by layer path; may be set."""
        return {layer.path: layer.rng.state for layer in self._layers if isinstance(layer.rng, Generator)}

    @rng_state.setter
    def rng_state(self, state: Mapping[str, tuple[int, ...]]) -> None:
        for layer in self._layers:
            if isinstance(layer.rng, Generator):  # and not one of the user's own, of another kind
                layer.rng.state = state[layer.path]

    def first_nonfinite(self, X: Array) -> str:
        """Return the name of the layer where NaN or infinity first shows for this batch; "" for none."""
        with self.unchanged():
            return self.net.first_nonfinite(self._enter(X))[0]

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Within, batches may be tried: what layers then draw, and what their state becomes, is forgotten after."""
        rng_state, state = self.rng_state, self.state
        try:
            yield
        finally:
            self.rng_state = rng_state
            for path, (layer, key) in self._state_paths.items():
                layer.state[key] = state[path]


def unscale(grads: Array, scale: Array) -> Array:
    """The definition of how gradients of a scaled loss become those of the loss, in their place."""
    grads[...] = grads * (1.0 / scale)
    return grads


def nan_unless_finite(loss: Array, grads: Array) -> Array:
    """The definition of the loss, but NaN where a gradient is NaN or infinite; a kernel may write that into the loss.

    Where products rectify by themselves, a number that is none may not come as far as the loss: one among the inputs
    or the gradients shows here. Weights are not looked at; a step along such gradients is not taken in the first place.
    """
    xp = namespace(loss)
    return xp.where(xp.all(xp.isfinite(grads)), loss, math.nan * loss)


def best_labels(score: Callable[[Array], Any], X: Array, batch_size: int, backend: Backend) -> tuple[Array, int]:
    """Return the label with the highest score for each example, batch by batch; nothing waits for the device.

    Where memory is too short for a batch, that and the others are smaller: the labels are the same.

    Parameters
    ----------
    score : callable
        ``score(x) -> scores (n, C)`` on `backend`, for a batch of X.
    X : array (N, ...)

    Returns
    -------
    labels : int64 array (N,)
    batch_size : int
        How many examples at a time there was memory for.

    Raises
    ------
    OutOfMemory
        Where it is too short for a single one.
    """
    xp = backend.namespace

    def labels(start: int, stop: int) -> Array:
        return xp.argmax(score(X[start:stop, ...]), axis=1)

    parts, batch_size = in_parts(labels, X.shape[0], batch_size, backend)
    return xp.concat(parts), batch_size


def _path(layer: Layer, key: str) -> str:
    return f"{layer.path}.{key}" if layer.path else key
