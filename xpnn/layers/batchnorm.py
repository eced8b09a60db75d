"""Batch normalization, of vectors and of images."""

from typing import Any, ClassVar

from xpnn.arguments import check_flag, check_keys, check_number
from xpnn.backend import Array, Shape, library_of, namespace, one_kind, written
from xpnn.kernels import fast_path
from xpnn.layers import initializers
from xpnn.layers.activation import GELU, ReLU, gelu_and_slope, positive_part, where_positive
from xpnn.layers.fused import name_of
from xpnn.layers.layer import Cache, Layer, Spec, check_dout
from xpnn.layers.precision import is_half, narrowed, rounded, widened
from xpnn.layers.rows import add_rows, images, pixels

SETTINGS, RUNNING = ("mode", "eps", "momentum", "unbiased"), ("running_mean", "running_var")


def batchnorm_forward(x: Array, gamma: Array, beta: Array, bn_param: dict[str, Any]) -> tuple[Array, Cache]:
    """Normalize each feature over the batch: ``out = gamma (x - mean) / sqrt(var + eps) + beta``.

    In train mode mean and var are the batch's (var with 1/N), and the running statistics follow them:
    ``running = momentum running + (1 - momentum) batch``. In test mode the running statistics are used. Statistics of
    half precision are single.

    Parameters
    ----------
    x : array (N, D)
    gamma, beta : array (D,)
        Scale and shift.
    bn_param : dict
        ``mode``, ``"train"`` or ``"test"``; ``eps`` (1e-5); ``momentum`` (0.9), the weight of the old running
        value; ``unbiased`` (False), whether running_var follows the variance with 1/(N - 1), as PyTorch's does;
        ``running_mean`` and ``running_var``, arrays (D,), zeros at first, written back in train mode.

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
        For another mode or key, an eps below 0, a momentum outside [0, 1], too few examples to take statistics of, or
        shapes that do not fit.

    Source: Ioffe and Szegedy, "Batch normalization", ICML 2015.
    """
    return _forward(x, gamma, beta, bn_param)


def _forward(
    x: Array, gamma: Array, beta: Array, bn_param: dict[str, Any], activation: str = ""
) -> tuple[Array, Cache]:
    """`batchnorm_forward`, and an activation if asked for: its input is not kept, but computed again."""
    xp = one_kind("batchnorm", x=x, gamma=gamma, beta=beta)
    if x.ndim != 2 or gamma.shape != x.shape[1:] or beta.shape != x.shape[1:]:
        raise ValueError(
            "batchnorm: expected x (N, D), gamma (D,) and beta (D,); "
            f"received x {tuple(x.shape)}, gamma {tuple(gamma.shape)} and beta {tuple(beta.shape)}"
        )
    check_keys("batchnorm", bn_param, *SETTINGS, *RUNNING, private=("gamma", "beta"))
    eps, momentum = _check_settings("batchnorm", bn_param.get("eps", 1e-5), bn_param.get("momentum", 0.9))
    mode, unbiased, n = bn_param.get("mode"), bool(bn_param.get("unbiased", False)), x.shape[0]
    if mode not in ("train", "test"):
        raise ValueError(f"batchnorm: expected mode 'train' or 'test'; received {mode!r}")
    if mode == "train" and n == 0:
        raise ValueError("batchnorm: expected at least one example to take statistics of; received none")
    if mode == "train" and n == 1 and unbiased:
        raise ValueError("batchnorm: expected at least two values to take an unbiased variance of; received one")
    dtype = xp.float32 if is_half(x) else x.dtype
    for key in RUNNING:
        if key not in bn_param:
            bn_param[key] = xp.zeros(x.shape[1:], dtype=dtype, device=x.device)
        one_kind("batchnorm", x=x, **{key: bn_param[key]})
        if bn_param[key].shape != x.shape[1:]:
            received = tuple(bn_param[key].shape)
            raise ValueError(f"batchnorm: expected {key} of shape {tuple(x.shape[1:])}; received {received}")
    running_mean, running_var = (xp.astype(bn_param[key], dtype, copy=False) for key in RUNNING)
    library, of_params, gamma, beta = library_of(x), gamma.dtype, widened(gamma), widened(beta)
    fast = fast_path("layers.batchnorm.batch_statistics", library)
    rows = x if fast else widened(x)  # kernels take halves; else one copy serves every pass
    if mode == "train":
        correction = n / (n - 1) if unbiased else 1.0
        mean, inv_std, scale, beta, running_mean, running_var = (fast or batch_statistics)(
            rows, running_mean, running_var, gamma, beta, momentum, correction, eps
        )
        bn_param["running_mean"], bn_param["running_var"] = running_mean, running_var
    else:
        mean = running_mean
        inv_std, scale, beta = (fast_path("layers.batchnorm.scales", library) or scales)(running_var, gamma, beta, eps)
    if activation.startswith("gelu"):
        fast = fast_path("layers.batchnorm.normalize_gelu", library)
        out = (fast or normalize_gelu)(rows, mean, scale, beta, activation.removeprefix("gelu_"))
    else:
        name, plain = ("normalize_relu", normalize_relu) if activation else ("normalize", normalize)
        out = (fast_path(f"layers.batchnorm.{name}", library) or plain)(rows, mean, scale, beta)
    return rounded(out, x), (rows, mean, inv_std, scale, beta, activation, mode, of_params)


def _check_settings(where: str, eps: float, momentum: float) -> tuple[float, float]:
    eps = check_number(where, "a finite eps >= 0", eps, lambda number: number >= 0)
    return eps, check_number(where, "momentum in [0, 1]", momentum, lambda number: 0 <= number <= 1)


def batchnorm_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """Differentiate `batchnorm_forward`, in train mode through the batch's mean and variance.

    ``dx = gamma / std (dout - mean(dout) - x_hat mean(dout x_hat))``, in test mode ``dx = gamma / std dout``;
    ``dgamma = sum_i dout_i x_hat_i``; ``dbeta = sum_i dout_i``, where ``x_hat = (x - mean) / std``.

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
    return _backward(dout, cache)


def _backward(
    dout: Array, cache: Cache, with_dx: bool = True, dgamma: Array | None = None, dbeta: Array | None = None
) -> tuple[Any, Array, Array]:
    """`batchnorm_backward`, with dx or with None in its place; dgamma and dbeta as `param_grads` takes them."""
    x, mean, inv_std, scale, beta, activation, mode, of_params = cache
    check_dout("batchnorm_backward", dout, x, x.shape)
    library, before = library_of(x), (x, mean, scale, beta, activation)
    douts = dout if dout.dtype == x.dtype else widened(dout)
    fast = fast_path("layers.batchnorm.param_grads", library)
    dgamma, dbeta, shift, slope = (fast or param_grads)(douts, *before, inv_std, dgamma, dbeta)
    dx = None
    if with_dx and mode == "test":
        dx = rounded(gradient_before(douts, *before) * scale, dout)
    elif with_dx:
        fast = fast_path("layers.batchnorm.input_grad", library)
        dx = rounded((fast or input_grad)(douts, *before, shift, slope), dout)
    return dx, narrowed(dgamma, of_params), narrowed(dbeta, of_params)


# The definitions. Rows (N, D) may be of half precision; what is computed of them, but other rows, is single.


def moments(x: Array) -> tuple[Array, Array]:
    """The definition of a batch's mean and variance: of each column of rows (N, D)."""
    mean = add_rows(x) / x.shape[0]
    centered = x - mean
    return mean, add_rows(centered * centered) / x.shape[0]


def batch_statistics(
    x: Array,
    running_mean: Array,
    running_var: Array,
    gamma: Array,
    beta: Array,
    momentum: float,
    correction: float,
    eps: float,
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """The definition of a batch's mean and what else `normalize` takes, and of the running statistics that follow it.

    Returns mean, ``1 / std``, ``gamma / std``, beta, running_mean and running_var, which follows the variance times
    `correction`. No result is an argument itself: the steps to come change those.
    """
    mean, var = (fast_path("layers.batchnorm.moments", library_of(x)) or moments)(widened(x))
    running_mean = momentum * running_mean + (1 - momentum) * mean
    running_var = momentum * running_var + (1 - momentum) * correction * var
    return mean, *scales(var, gamma, beta, eps), running_mean, running_var


def scales(var: Array, gamma: Array, beta: Array, eps: float) -> tuple[Array, Array, Array]:
    """The definition of ``1 / std``, ``gamma / std`` and a copy of beta."""
    xp = namespace(var)
    inv_std = 1.0 / xp.sqrt(var + eps)
    return inv_std, gamma * inv_std, xp.asarray(beta, copy=True)


def normalize(x: Array, mean: Array, scale: Array, beta: Array) -> Array:
    """The definition of what `batchnorm_forward` returns: ``scale (x - mean) + beta``."""
    return rounded(_normalized(x, mean, scale, beta), x)


def normalize_relu(x: Array, mean: Array, scale: Array, beta: Array) -> Array:
    """The definition of what a batch norm and a ReLU behind it return."""
    return rounded(positive_part(_normalized(x, mean, scale, beta)), x)


def normalize_gelu(x: Array, mean: Array, scale: Array, beta: Array, approximate: str) -> Array:
    """The definition of what a batch norm and a GELU behind it return."""
    return rounded(gelu_and_slope(_normalized(x, mean, scale, beta), approximate)[0], x)


def _normalized(x: Array, mean: Array, scale: Array, beta: Array) -> Array:
    return (x - mean) * scale + beta


def gradient_before(dout: Array, x: Array, mean: Array, scale: Array, beta: Array, activation: str) -> Array:
    """Return the gradient before the activation, if there is one. Its input, computed again, is of no half type."""
    if not activation:
        return dout
    out = _normalized(x, mean, scale, beta)
    if activation == "relu":
        return where_positive(dout, out)
    return dout * gelu_and_slope(out, activation.removeprefix("gelu_"))[1]


def param_grads(
    dout: Array,
    x: Array,
    mean: Array,
    scale: Array,
    beta: Array,
    activation: str,
    inv_std: Array,
    dgamma: Array | None = None,
    dbeta: Array | None = None,
) -> tuple[Array, Array, Array, Array]:
    """The definition of dgamma, dbeta and the means in `batchnorm_backward`: of dout, and of ``dout x_hat / std``.

    The gradients are in the arrays that are given for them.
    """
    if activation == "relu":
        fast = fast_path("layers.batchnorm.gradient_sums_relu", library_of(x))
        sums, products = (fast or gradient_sums_relu)(dout, x, mean, scale, beta)
    else:
        before = gradient_before(dout, x, mean, scale, beta, activation)
        fast = fast_path("layers.batchnorm.gradient_sums", library_of(x))
        sums, products = (fast or gradient_sums)(before, x, mean)
    grads, part = products * inv_std, 1.0 / max(x.shape[0], 1)
    return written(grads, dgamma), written(sums, dbeta), sums * part, grads * part * inv_std


def gradient_sums(dout: Array, x: Array, mean: Array) -> tuple[Array, Array]:
    """The definition of the sums in `param_grads`: over rows, of dout and of ``dout (x - mean)``."""
    dout = widened(dout)
    return add_rows(dout), add_rows(dout * (x - mean))


def gradient_sums_relu(dout: Array, x: Array, mean: Array, scale: Array, beta: Array) -> tuple[Array, Array]:
    """The definition of these sums after `normalize_relu`."""
    return gradient_sums(gradient_before(dout, x, mean, scale, beta, "relu"), x, mean)


def input_grad(
    dout: Array, x: Array, mean: Array, scale: Array, beta: Array, activation: str, shift: Array, slope: Array
) -> Array:
    """The definition of dx in `batchnorm_backward`, given the means of `param_grads`."""
    if activation == "relu":
        fast = fast_path("layers.batchnorm.input_gradient_relu", library_of(x))
        dx = (fast or input_gradient_relu)(dout, x, mean, scale, beta, shift, slope)
    else:
        before = gradient_before(dout, x, mean, scale, beta, activation)
        fast = fast_path("layers.batchnorm.input_gradient", library_of(x))
        dx = (fast or input_gradient)(before, x, mean, scale, shift, slope)
    return rounded(dx, dout)


def input_gradient(dout: Array, x: Array, mean: Array, scale: Array, shift: Array, slope: Array) -> Array:
    """The definition of `input_grad` with no activation: ``scale (dout - shift - slope (x - mean))``."""
    return (dout - shift - (x - mean) * slope) * scale


def input_gradient_relu(
    dout: Array, x: Array, mean: Array, scale: Array, beta: Array, shift: Array, slope: Array
) -> Array:
    """The definition of it after `normalize_relu`."""
    return input_gradient(gradient_before(dout, x, mean, scale, beta, "relu"), x, mean, scale, shift, slope)


def spatial_batchnorm_forward(x: Array, gamma: Array, beta: Array, bn_param: dict[str, Any]) -> tuple[Array, Cache]:
    """Normalize each channel over the batch and its pixels: `batchnorm_forward` with the N H W pixels as examples.

    Parameters
    ----------
    x : array (N, C, H, W)
    gamma, beta : array (C,)
        Scale and shift.
    bn_param : dict
        As for `batchnorm_forward`, with running statistics (C,).

    Returns
    -------
    out : array (N, C, H, W)
    cache : object
        For `spatial_batchnorm_backward`.

    Raises
    ------
    TypeError
        When the arrays are of different kinds or hold no floating-point numbers.
    ValueError
        For another mode or key, an eps below 0, a momentum outside [0, 1], too few pixels, or shapes that do not fit.

    Source: Ioffe and Szegedy, "Batch normalization", ICML 2015, section 3.2.
    """
    return _spatial_forward(x, gamma, beta, bn_param)


def _spatial_forward(
    x: Array, gamma: Array, beta: Array, bn_param: dict[str, Any], activation: str = ""
) -> tuple[Array, Cache]:
    one_kind("spatial_batchnorm", x=x, gamma=gamma, beta=beta)
    if x.ndim != 4 or gamma.shape != x.shape[1:2] or beta.shape != x.shape[1:2]:
        raise ValueError(
            "spatial_batchnorm: expected x (N, C, H, W), gamma (C,) and beta (C,); "
            f"received x {tuple(x.shape)}, gamma {tuple(gamma.shape)} and beta {tuple(beta.shape)}"
        )
    out, cache = _forward(pixels(x), gamma, beta, bn_param, activation)
    return images(out, x.shape), (cache, x.shape)


def spatial_batchnorm_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """Differentiate `spatial_batchnorm_forward`; see `batchnorm_backward`.

    Parameters
    ----------
    dout : array (N, C, H, W)
        The gradient of the loss by out.
    cache : object
        From `spatial_batchnorm_forward`.

    Returns
    -------
    dx : array (N, C, H, W)
    dgamma, dbeta : array (C,)
    """
    return _spatial_backward(dout, cache)


def _spatial_backward(
    dout: Array, cache: Cache, with_dx: bool = True, dgamma: Array | None = None, dbeta: Array | None = None
) -> tuple[Any, Array, Array]:
    pixel_cache, shape = cache
    check_dout("spatial_batchnorm_backward", dout, pixel_cache[0], shape)
    dx, dgamma, dbeta = _backward(pixels(dout), pixel_cache, with_dx, dgamma, dbeta)
    return (images(dx, shape) if with_dx else None), dgamma, dbeta


class BatchNorm(Layer):
    """`batchnorm_forward` of vectors (D,), or `spatial_batchnorm_forward` of images (C, H, W).

    Its parameters are gamma and beta, of D or C numbers; the running statistics are state.

    Parameters
    ----------
    eps : float
        Added to the variance.
    momentum : float
        The weight of the old running value.
    scale : bool
        Whether gamma is learned; else it is state, and stays at ones.
    center : bool
        Whether beta is learned; else it is state, and stays at zeros.
    unbiased : bool
        Whether running_var is as PyTorch's: it starts at ones and follows the variance with 1/(N - 1).

    Attributes
    ----------
    bn_param : dict
        The dict that `batchnorm_forward` is called with; it is also the layer's `state`.
    """

    is_single = True
    fuses: ClassVar[dict[type[Layer], str]] = {
        ReLU: "layers.batchnorm.normalize_relu",
        GELU: "layers.batchnorm.normalize_gelu",
    }
    state_names = RUNNING
    torch_names: ClassVar[dict[str, str]] = {
        "gamma": "weight",
        "beta": "bias",
        "running_mean": "running_mean",
        "running_var": "running_var",
    }

    def __init__(
        self,
        *,
        eps: float = 1e-5,
        momentum: float = 0.9,
        scale: bool = True,
        center: bool = True,
        unbiased: bool = False,
        name: str = "",
    ) -> None:
        super().__init__(name)
        where = name or "batchnorm"
        _check_settings(where, eps, momentum)
        unbiased = check_flag(where, "unbiased", unbiased)
        self.learned = {"gamma": check_flag(where, "scale", scale), "beta": check_flag(where, "center", center)}
        self.bn_param: dict[str, Any] = {"mode": "train", "eps": eps, "momentum": momentum, "unbiased": unbiased}
        self.state = self.bn_param

    def output_shape(self, input_shape: Shape) -> Shape:
        if len(input_shape) not in (1, 3):
            where = self.path or "batchnorm"
            raise ValueError(f"{where}: expected input of shape (D,) or (C, H, W); received {input_shape}")
        return input_shape

    def _affine_specs(self, input_shape: Shape, learned: bool) -> dict[str, Spec]:
        specs = {
            "gamma": Spec(input_shape[:1], initializers.ones),
            "beta": Spec(input_shape[:1], initializers.zeros),
        }
        return {key: spec for key, spec in specs.items() if self.learned[key] is learned}

    def param_specs(self, input_shape: Shape) -> dict[str, Spec]:
        return self._affine_specs(input_shape, learned=True)

    def state_specs(self, input_shape: Shape) -> dict[str, Spec]:
        var_init = initializers.ones if self.bn_param["unbiased"] else initializers.zeros
        first = dict(zip(self.state_names, (initializers.zeros, var_init), strict=True))
        statistics = {name: Spec(input_shape[:1], init) for name, init in first.items()}
        return self._affine_specs(input_shape, learned=False) | statistics

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        return self._forward(x, train)

    def forward_through(self, x: Array, after: Layer, train: bool = False) -> tuple[Array, Cache]:
        return self._forward(x, train, name_of(after))

    def _forward(self, x: Array, train: bool, activation: str = "") -> tuple[Array, Cache]:
        self.bn_param["mode"] = "train" if train else "test"
        gamma, beta = ((self.params if self.learned[key] else self.state)[key] for key in ("gamma", "beta"))
        return (_forward if x.ndim == 2 else _spatial_forward)(x, gamma, beta, self.bn_param, activation)

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        lent = self.grads.pop("gamma", None), self.grads.pop("beta", None)
        dx, dgamma, dbeta = (_backward if dout.ndim == 2 else _spatial_backward)(dout, cache, input_grad, *lent)
        grads = {"gamma": dgamma, "beta": dbeta}
        return dx, {key: grad for key, grad in grads.items() if self.learned[key]}
