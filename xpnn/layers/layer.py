"""What every layer is: a forward and a backward, named parameters, and an output shape known without running."""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

from xpnn import backend as backends
from xpnn.backend import Array, Backend, Shape, describe, namespace, one_kind
from xpnn.random import Generator

METHODS = {"forward", "infer", "backward"}
Cache = Any  # what a forward pass keeps for its backward pass
Initializer = Callable[..., Array]  # (generator, shape, dtype, backend) -> array


def check_dout(where: str, dout: Array, cached: Array | Backend, shape: Shape) -> Any:
    """Return the namespace of a gradient; raise where it is not of the kind of the cache, or of the output's shape.

    A cache that needs no array has the backend instead.
    """
    xp = one_kind(where, dout=dout)
    kind = cached if isinstance(cached, Backend) else backends.of(cached)
    if backends.of(dout) is not kind:
        received = f"dout: {describe(dout)}, cache: {kind if cached is kind else describe(cached)}"
        raise TypeError(f"{where}: expected dout and cache of one kind; received {received}")
    if tuple(dout.shape) != tuple(shape):
        raise ValueError(f"{where}: expected dout of shape {tuple(shape)}, as out; received {tuple(dout.shape)}")
    return xp


def check_init(where: str, init: Any) -> Initializer:
    """Return an initializer; raise TypeError for what cannot be one."""
    if not callable(init):
        raise TypeError(f"{where}: expected an initializer; received {init!r}")
    return init


class Spec(NamedTuple):
    """A parameter, or a piece of state, before it exists."""

    shape: Shape
    init: Initializer
    decay: bool = False  # whether the L2 penalty counts it


class Layer:
    """A function of one array with parameters, differentiated by hand.

    A subclass gives `forward` and `backward`; where they differ from the default, `output_shape`, `param_specs`
    and `state_specs`. A layer computes nothing until a `Model` has put arrays into `params` and `state`.

    Attributes
    ----------
    name : str
        As given; a container names the others.
    path : str
        Where the layer is within the net, such as ``"block1.affine2"``; errors begin with it.
    params : dict of str to array
        Learned: views into the model's flat buffer.
    grads : dict of str to array
        Where `backward` may write gradients, instead of into new arrays: views into a buffer, during a model's step, of
        single precision where the layer computes in halves. It takes out what it writes to, since a container may run
        a layer several times and add up.
    state : dict
        Not learned, but saved: the arrays that `state_specs` names, such as running statistics.
    compute_dtype : str
        That the layer's model computes in; "" without one.
    rng : Generator or None
        The layer's own stream, where `uses_rng`.
    """

    uses_rng: ClassVar[bool] = False
    takes_integers: ClassVar[bool] = False  # whether its input is indices, which a model does not cast
    takes_bytes: ClassVar[bool] = False  # whether a model does not cast uint8 for it either, where it is first
    is_single: ClassVar[bool] = False  # whether it computes halves in single precision: see `precision`
    # The classes of layers that a `Sequential` has it compute, too, when they are behind it, each with the kernel that
    # makes this quicker. Of a class itself: what a subclass computes may be another thing.
    fuses: ClassVar[dict[type["Layer"], str]] = {}
    # The names that PyTorch's equal module has for params and state, which of them it holds transposed, and which
    # with an axis of one in front.
    torch_names: ClassVar[dict[str, str]] = {}
    torch_transposed: ClassVar[frozenset[str]] = frozenset()
    torch_batched: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, name: str = "") -> None:
        if not isinstance(name, str):
            raise TypeError(f"{type(self).__name__.lower()}: expected name, a string; received {name!r:.60}")
        self.name = self.path = name
        self.params: dict[str, Array] = {}
        self.grads: dict[str, Array] = {}
        self.state: dict[str, Array] = {}
        self.compute_dtype = ""
        self.rng: Generator | None = None
        self.owned = False  # a model puts its arrays into its own layers only

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path}>"

    @property
    def has_params(self) -> bool:
        return bool(self.params)

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of one output example, given that of one input example."""
        return input_shape

    def param_specs(self, input_shape: Shape) -> dict[str, Spec]:
        return {}

    def state_specs(self, input_shape: Shape) -> dict[str, Spec]:
        return {}

    def flops(self, input_shape: Shape) -> int:
        """Count the multiplications and additions of the matrix products in one example's forward pass."""
        return 0

    def walk(self, input_shape: Shape) -> Iterator[tuple["Layer", Shape]]:
        """Yield every layer that is no container, with the shape of its input."""
        yield self, input_shape

    def place(self, path: str) -> None:
        """Set the layer's path within the net."""
        self.path = path

    def first_nonfinite(self, x: Array) -> tuple[str, Array]:
        """Run forward; return the name of the layer where NaN or infinity first shows, "" for none, and the output."""
        xp = namespace(x)
        out, _ = self.forward(x, train=True)
        finite = all(bool(xp.all(xp.isfinite(a))) for a in (*self.params.values(), out))
        return ("" if finite else self.path or type(self).__name__.lower()), out

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        """Return the output for a batch, and what `backward` needs."""
        raise NotImplementedError(f"{type(self).__name__}: expected a method forward; the class has none")

    def forward_through(self, x: Array, after: "Layer", train: bool = False) -> tuple[Array, Cache]:
        """Return what `after`, of a class in `fuses`, makes of the output, and what `backward` needs for both."""
        raise NotImplementedError(f"{type(self).__name__}: expected a method forward_through; the class has none")

    def infer(self, x: Array) -> Array:
        """Return the output for a batch in test mode, and keep nothing."""
        return self.forward(x, train=False)[0]

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        """Return the gradient of the loss by the input, and by each parameter.

        Without `input_grad` the first may be None: nobody needs the gradient by the images.
        """
        raise NotImplementedError(f"{type(self).__name__}: expected a method backward; the class has none")


def are_plain(*layers: Layer) -> bool:
    """Whether each computes what its class says: no method was set on it."""
    return not any(METHODS & vars(layer).keys() for layer in layers)
