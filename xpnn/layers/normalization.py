"""Normalization: by fixed statistics of the data, and by those of the batch."""

from typing import Any

from xpnn.backend import Array, Shape, one_kind
from xpnn.layers import initializers
from xpnn.layers.layer import Cache, Layer, Spec, check_dout


def batchnorm_forward(x: Array, gamma: Array, beta: Array, bn_param: dict[str, Any]) -> tuple[Array, Cache]:
    """Normalize each feature over the batch: ``out = gamma (x - mean) / sqrt(var + eps) + beta``.

    In train mode mean and var are the batch's (var with 1/N), and the running statistics follow them:
    ``running = momentum running + (1 - momentum) batch``. In test mode the running statistics are used.

    Parameters
    ----------
    x : array (N, D)
    gamma, beta : array (D,)
        Scale and shift.
    bn_param : dict
        ``mode``, ``"train"`` or ``"test"``; ``eps`` (1e-5); ``momentum`` (0.9), the weight of the old running
        value; ``running_mean`` and ``running_var``, arrays (D,), zeros at first, written back in train mode.

    Returns
    -------
    out : array (N, D)
    cache : object
        For `batchnorm_backward`.

    Raises
    ------
    TypeError
        When the arrays are of different kinds or hold no floating-point numbers.
    ValueError
        For another mode, or shapes that do not fit.

    Source: Ioffe and Szegedy, "Batch normalization", ICML 2015.
    """
    xp = one_kind("batchnorm", x=x, gamma=gamma, beta=beta)
    if x.ndim != 2 or gamma.shape != x.shape[1:] or beta.shape != x.shape[1:]:
        raise ValueError(
            "batchnorm: expected x (N, D), gamma (D,) and beta (D,); "
            f"received x {tuple(x.shape)}, gamma {tuple(gamma.shape)} and beta {tuple(beta.shape)}"
        )
    mode, eps, momentum = (
        bn_param.get("mode"),
        float(bn_param.get("eps", 1e-5)),
        float(bn_param.get("momentum", 0.9)),
    )
    if mode not in ("train", "test"):
        raise ValueError(f"batchnorm: expected mode 'train' or 'test'; received {mode!r}")
    if mode == "train" and x.shape[0] == 0:
        raise ValueError("batchnorm: expected at least one example to take statistics of; received none")
    for key in ("running_mean", "running_var"):
        if key not in bn_param:
            bn_param[key] = xp.zeros(x.shape[1:], dtype=x.dtype, device=x.device)
        one_kind("batchnorm", x=x, **{key: bn_param[key]})
        if bn_param[key].shape != x.shape[1:]:
            received = tuple(bn_param[key].shape)
            raise ValueError(f"batchnorm: expected {key} of shape {tuple(x.shape[1:])}; received {received}")
        bn_param[key] = xp.astype(bn_param[key], x.dtype, copy=False)
    if mode == "train":
        mean = xp.mean(x, axis=0)
        centered = x - mean
        var = xp.mean(centered * centered, axis=0)
        bn_param["running_mean"] = momentum * bn_param["running_mean"] + (1 - momentum) * mean
        bn_param["running_var"] = momentum * bn_param["running_var"] + (1 - momentum) * var
    else:
        centered = x - bn_param["running_mean"]
        var = bn_param["running_var"]
    inv_std = 1.0 / xp.sqrt(var + eps)
    x_hat = centered * inv_std
    return gamma * x_hat + beta, (x_hat, inv_std, gamma, mode)


def batchnorm_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """Differentiate `batchnorm_forward`, in train mode through the batch's mean and variance.

    ``dx = gamma / std (dout - mean(dout) - x_hat mean(dout x_hat))``, in test mode ``dx = gamma / std dout``;
    ``dgamma = sum_i dout_i x_hat_i``; ``dbeta = sum_i dout_i``.

    Parameters
    ----------
    dout : array (N, D)
        The gradient of the loss by out.
    cache : object
        From `batchnorm_forward`.

    Returns
    -------
    dx : array (N, D)
    dgamma, dbeta : array (D,)
    """
    x_hat, inv_std, gamma, mode = cache
    xp = check_dout("batchnorm_backward", dout, x_hat, x_hat.shape)
    dbeta = xp.sum(dout, axis=0)
    dgamma = xp.sum(dout * x_hat, axis=0)
    if mode == "train":
        n = dout.shape[0]
        dx = (dout - dbeta / n - x_hat * (dgamma / n)) * (gamma * inv_std)
    else:
        dx = dout * (gamma * inv_std)
    return dx, dgamma, dbeta


class BatchNorm(Layer):
    """`batchnorm_forward` with parameters gamma (D,) and beta (D,) and running statistics as state.

    Parameters
    ----------
    eps : float
        Added to the variance.
    momentum : float
        The weight of the old running value.

    Attributes
    ----------
    bn_param : dict
        The dict that `batchnorm_forward` is called with; it is also the layer's `state`.
    """

    state_names = ("running_mean", "running_var")

    def __init__(self, *, eps: float = 1e-5, momentum: float = 0.9, name: str = "") -> None:
        super().__init__(name)
        if not eps >= 0 or not 0 <= momentum <= 1:
            where = name or "batchnorm"
            raise ValueError(f"{where}: expected eps >= 0 and momentum in [0, 1]; received {eps!r} and {momentum!r}")
        self.bn_param: dict[str, Any] = {"mode": "train", "eps": eps, "momentum": momentum}
        self.state = self.bn_param

    def output_shape(self, input_shape: Shape) -> Shape:
        if len(input_shape) != 1:
            raise ValueError(f"{self.path or 'batchnorm'}: expected input of shape (D,); received {input_shape}")
        return input_shape

    def param_specs(self, input_shape: Shape) -> dict[str, Spec]:
        return {"gamma": Spec(input_shape, initializers.ones), "beta": Spec(input_shape, initializers.zeros)}

    def state_specs(self, input_shape: Shape) -> dict[str, Spec]:
        return {name: Spec(input_shape, initializers.zeros) for name in self.state_names}

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        self.bn_param["mode"] = "train" if train else "test"
        return batchnorm_forward(x, self.params["gamma"], self.params["beta"], self.bn_param)

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        dx, dgamma, dbeta = batchnorm_backward(dout, cache)
        return dx, {"gamma": dgamma, "beta": dbeta}


class Standardize(Layer):
    """``(x - mean) / std`` with fixed statistics of the training data, so that a model takes raw images.

    Parameters
    ----------
    mean : float or array
        Of the shape of one example, or one that broadcasts to it.
    std : float or array, optional
        The same; None to subtract the mean alone.

    The two are state: saved with the model and restored from a checkpoint.
    """

    def __init__(self, mean: Any = 0.0, std: Any = None, name: str = "") -> None:
        super().__init__(name)
        self.statistics = {"mean": mean} if std is None else {"mean": mean, "std": std}

    def state_specs(self, input_shape: Shape) -> dict[str, Spec]:
        return {key: Spec(input_shape, initializers.constant(value)) for key, value in self.statistics.items()}

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        centered = x - self.state["mean"]
        return (centered / self.state["std"] if "std" in self.state else centered), None

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        return (dout / self.state["std"] if "std" in self.state else dout), {}
