"""Dropout."""

from collections.abc import Mapping
from operator import mul
from typing import Any

from xpnn import backend as backends
from xpnn.arguments import check_keys, check_number
from xpnn.backend import Array, one_kind
from xpnn.layers.elementwise import elementwise
from xpnn.layers.layer import Cache, Layer, check_dout
from xpnn.random import DROPOUT, Generator, as_generator


def dropout_forward(x: Array, dropout_param: Mapping[str, Any]) -> tuple[Array, Cache]:
    """Inverted dropout: drop each number with probability p, scale the others by 1 / (1 - p).

    Parameters
    ----------
    x : array of any shape
    dropout_param : dict
        ``p``, the probability to drop, in [0, 1); ``mode``, ``"train"`` or ``"test"`` (returns x as it is);
        optionally ``seed``: the same seed gives the same mask at every call; or ``rng``, a `Generator`
        to draw from. With neither, NumPy's global state gives a seed.

    Returns
    -------
    out : array of x's shape
    cache : object
        For `dropout_backward`.

    Raises
    ------
    TypeError
        When x holds no floating-point numbers.
    ValueError
        For p outside [0, 1), another mode or another key.

    Source: Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 2014.
    """
    one_kind("dropout", x=x)
    p, mode = _check_param("dropout", dropout_param), dropout_param.get("mode")
    if mode not in ("train", "test"):
        raise ValueError(f"dropout: expected mode 'train' or 'test'; received {mode!r}")
    if mode == "test" or p == 0:
        return x, None
    mask = _generator(dropout_param).dropout_mask(x.shape, p, x.dtype, backends.of(x))
    return elementwise(mul, x, mask), mask


def dropout_backward(dout: Array, cache: Cache) -> Array:
    """Differentiate `dropout_forward`: ``dx = dout mask``, in test mode ``dx = dout``.

    Parameters
    ----------
    dout : array of x's shape
        The gradient of the loss by out.
    cache : object
        From `dropout_forward`.

    Returns
    -------
    dx : array of x's shape
    """
    if cache is None:
        return dout
    check_dout("dropout_backward", dout, cache, cache.shape)
    return elementwise(mul, dout, cache)


def _check_param(where: str, dropout_param: Mapping[str, Any]) -> float:
    """Return p."""
    check_keys(where, dropout_param, "p", "mode", "seed", "rng")
    expected = "p, the probability to drop, in [0, 1)"
    return check_number(where, expected, dropout_param.get("p"), lambda p: 0 <= p < 1)


def _generator(dropout_param: Mapping[str, Any]) -> Generator:
    seed = dropout_param.get("seed")
    return Generator(seed, DROPOUT) if seed is not None else as_generator(dropout_param.get("rng"), DROPOUT)


class Dropout(Layer):
    """`dropout_forward` as a layer, drawing from the layer's own stream.

    Parameters
    ----------
    p : float
        The probability to drop, in [0, 1).
    dropout_param : dict, optional
        A dict to use in place of one made from `p`; layers that share it change together.
    """

    uses_rng = True

    def __init__(self, p: float = 0.5, dropout_param: dict[str, Any] | None = None, name: str = "") -> None:
        super().__init__(name)
        self.dropout_param: dict[str, Any] = {"p": p, "mode": "train"} if dropout_param is None else dropout_param
        _check_param(name or "dropout", self.dropout_param)

    @property
    def recordable(self) -> bool:
        """Whether a device can record what it draws: from one generator, not from a new one at each step."""
        param = self.dropout_param
        return param.get("seed") is None and isinstance(param.get("rng", self.rng), Generator)

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        self.dropout_param["mode"] = "train" if train else "test"
        return dropout_forward(x, {"rng": self.rng, **self.dropout_param})

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        return dropout_backward(dout, cache), {}
