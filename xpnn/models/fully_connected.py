"""The course's fully connected nets."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from xpnn.arguments import check_flag
from xpnn.backend import Backend
from xpnn.layers import Affine, BatchNorm, Dropout, ReLU, Sequential
from xpnn.layers.initializers import kaiming, normal
from xpnn.layers.standardize import Standardization, standardizing
from xpnn.models.model import Model
from xpnn.random import Generator


class CourseModel(Model):
    """A model whose parameters have the course's names: ``affine2.W`` is ``W2``, ``batchnorm1.gamma`` is ``gamma1``."""

    def param_name(self, path: str) -> str:
        layer, _, param = path.rpartition(".")
        return param + re.sub(r"^\D*", "", layer)


class FullyConnectedNet(CourseModel):
    """{affine - [batch norm] - relu - [dropout]} x (L - 1) - affine - softmax.

    Parameters
    ----------
    hidden_dims : sequence of int
        The size of each hidden layer.
    input_dim, num_classes : int
    dropout : float
        The probability to drop; 0 for no dropout.
    use_batchnorm : bool
    reg : float
        The strength of the L2 penalty on W1, W2, ...
    weight_scale : float or None
        The standard deviation of the first weights; None for Kaiming's, which fits any width.
    dtype : str or dtype
    seed : int, optional
        The course's: every dropout layer draws the same mask at each call, so that gradients can be checked.
        It also gives the first weights, unless `rng` does.
    backend, rng
        As for `Model`.
    standardize : (mean, std), optional
        Arrays or numbers for a first layer ``(x - mean) / std``, so that the net takes raw images; std may be None.

    Attributes
    ----------
    params : Parameters
        W1, b1, [gamma1, beta1], W2, ...
    bn_params : list of dict
        The dict of each batch norm layer, with its running statistics.
    dropout_param : dict
        What all dropout layers share.

    Source: UCLA ECE C147, homework 4.
    """

    def __init__(
        self,
        hidden_dims: Sequence[int],
        input_dim: int = 3 * 32 * 32,
        num_classes: int = 10,
        dropout: float = 0,
        use_batchnorm: bool = False,
        reg: float = 0.0,
        weight_scale: float | None = 1e-2,
        dtype: Any = "float32",
        seed: int | None = None,
        *,
        backend: str | Backend | None = None,
        rng: Generator | int | None = None,
        standardize: Standardization | None = None,
    ) -> None:
        if not isinstance(hidden_dims, Iterable):
            raise TypeError(f"FullyConnectedNet: expected a sequence of sizes hidden_dims; received {hidden_dims!r}")
        self.use_batchnorm = check_flag("FullyConnectedNet", "use_batchnorm", use_batchnorm)
        self.use_dropout = dropout != 0
        self.num_layers = len(hidden_dims) + 1
        self.dropout_param: dict[str, Any] = {"mode": "train", "p": dropout} if self.use_dropout else {}
        if self.use_dropout and seed is not None:
            self.dropout_param["seed"] = seed
        init = kaiming if weight_scale is None else normal(weight_scale)
        layers = standardizing(standardize)
        for units in hidden_dims:
            layers.append(Affine(units, init))
            if use_batchnorm:
                layers.append(BatchNorm())
            layers.append(ReLU())
            if self.use_dropout:
                layers.append(Dropout(dropout_param=self.dropout_param))
        layers.append(Affine(num_classes, init))
        self.bn_params = [layer.bn_param for layer in layers if isinstance(layer, BatchNorm)]
        rng = seed if rng is None else rng
        super().__init__(Sequential(*layers), (input_dim,), reg=reg, dtype=dtype, backend=backend, rng=rng)


class TwoLayerNet(FullyConnectedNet):
    """affine - relu - [dropout] - affine - softmax, with parameters W1, b1, W2 and b2.

    As the course's first net it is float64 by default and `hidden_dims` is one number.
    """

    def __init__(
        self,
        input_dim: int = 3 * 32 * 32,
        hidden_dims: int = 100,
        num_classes: int = 10,
        dropout: float = 0,
        weight_scale: float | None = 1e-3,
        reg: float = 0.0,
        dtype: Any = "float64",
        **kwargs: Any,
    ) -> None:
        super().__init__([hidden_dims], input_dim, num_classes, dropout, False, reg, weight_scale, dtype, **kwargs)
