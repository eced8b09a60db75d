"""Normalization of each example by itself: layer, group and root-mean-square normalization."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from xpnn.arguments import check_keys, check_number, check_whole
from xpnn.backend import Array, Shape, library_of, namespace, one_kind
from xpnn.kernels import fast_path
from xpnn.layers import initializers
from xpnn.layers.layer import Cache, Layer, Spec, check_dout
from xpnn.layers.precision import in_single_precision
from xpnn.layers.rows import images, pixels, sum_rows


def layernorm_forward(x: Array, gamma: Array, beta: Array, ln_param: Mapping[str, Any]) -> tuple[Array, Cache]:
    """Normalize each example over its features: ``out = gamma (x - mean) / sqrt(var + eps) + beta``.

    Parameters
    ----------
    x : array (..., D)
        mean and var (with 1/D) are taken over the last axis.
    gamma, beta : array (D,)
        Scale and shift.
    ln_param : dict
        ``eps`` (1e-5); ``mode``, which changes nothing, for a dict shared with batch norm.

    Returns
    -------
    out : array (..., D)
    cache : object
        For `layernorm_backward`.

    Raises
    ------
    TypeError
        When the arrays are of different kinds or hold no floating-point numbers.
    ValueError
        When the shapes do not fit, eps is negative or not finite, or a key is unknown.

    Source: Ba, Kiros and Hinton, "Layer normalization", 2016.
    """
    one_kind("layernorm", x=x, gamma=gamma, beta=beta)
    if x.ndim < 1 or x.shape[-1] == 0 or gamma.shape != x.shape[-1:] or beta.shape != x.shape[-1:]:
        raise ValueError(
            "layernorm: expected x (..., D) of at least one feature, gamma (D,) and beta (D,); "
            f"received x {tuple(x.shape)}, gamma {tuple(gamma.shape)} and beta {tuple(beta.shape)}"
        )
    compute = fast_path("layers.normalization.layernorm", library_of(x)) or layernorm
    out, x_hat, inv_std = compute(x, gamma, beta, _eps("layernorm", ln_param))
    return out, (x_hat, inv_std, gamma)


def layernorm_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """Differentiate `layernorm_forward`, through mean and variance.

    ``dx = (g - mean(g) - x_hat mean(g x_hat)) / std`` with ``g = gamma dout``; ``dgamma = sum_i dout_i x_hat_i``;
    ``dbeta = sum_i dout_i``.

    Parameters
    ----------
    dout : array (..., D)
        The gradient of the loss by out.
    cache : object
        From `layernorm_forward`.

    Returns
    -------
    dx : array (..., D)
    dgamma, dbeta : array (D,)
    """
    x_hat, inv_std, gamma = cache
    check_dout("layernorm_backward", dout, x_hat, x_hat.shape)
    compute = fast_path("layers.normalization.layernorm_grad", library_of(dout)) or layernorm_grad
    return compute(dout, x_hat, inv_std, gamma), *_param_grads(_rows(dout), _rows(x_hat))


def layernorm(x: Array, gamma: Array, beta: Array, eps: float) -> tuple[Array, Array, Array]:
    """The definition of `layernorm_forward`: out, ``(x - mean) / std`` and ``1 / std`` (..., 1)."""
    x_hat, inv_std = _standardize(x, -1, eps)
    out = gamma * x_hat
    out += beta
    return out, x_hat, inv_std


def layernorm_grad(dout: Array, x_hat: Array, inv_std: Array, gamma: Array) -> Array:
    """The definition of dx in `layernorm_backward`."""
    return _standardize_backward(gamma * dout, x_hat, inv_std, -1)


def spatial_groupnorm_forward(
    x: Array, gamma: Array, beta: Array, G: int, gn_param: Mapping[str, Any]
) -> tuple[Array, Cache]:
    """Normalize each image over its pixels and the channels of each of G groups.

    ``out = gamma (x - mean) / sqrt(var + eps) + beta``; with one group a layer norm, with C an instance norm.

    Parameters
    ----------
    x : array (N, C, H, W)
    gamma, beta : array (1, C, 1, 1) or (C,)
        Scale and shift of each channel.
    G : int
        The number of groups of C / G channels that follow each other.
    gn_param : dict
        ``eps`` (1e-5); ``mode``, which changes nothing, for a dict shared with batch norm.

    Returns
    -------
    out : array (N, C, H, W)
    cache : object
        For `spatial_groupnorm_backward`.

    Raises
    ------
    TypeError
        When the arrays are of different kinds or hold no floating-point numbers.
    ValueError
        When the shapes do not fit, G does not divide C, eps is negative or not finite, or a key is unknown.

    Source: Wu and He, "Group normalization", ECCV 2018.
    """
    xp = one_kind("spatial_groupnorm", x=x, gamma=gamma, beta=beta)
    shapes = {(x.shape[1],), (1, x.shape[1], 1, 1)} if x.ndim == 4 else set()
    if math.prod(x.shape[1:]) == 0 or not {tuple(gamma.shape), tuple(beta.shape)} <= shapes:
        raise ValueError(
            "spatial_groupnorm: expected x (N, C, H, W) of at least one pixel, gamma and beta (1, C, 1, 1) or (C,); "
            f"received x {tuple(x.shape)}, gamma {tuple(gamma.shape)} and beta {tuple(beta.shape)}"
        )
    n, c, h, w = x.shape
    if c % check_whole("spatial_groupnorm", "G", G):
        raise ValueError(f"spatial_groupnorm: expected G to divide the {c} channels; received {G!r}")
    groups = xp.reshape(pixels(x), (n, h * w, G, c // G))
    scale, shift = (xp.reshape(vector, (G, c // G)) for vector in (gamma, beta))
    compute = fast_path("layers.normalization.groupnorm", library_of(x)) or groupnorm
    out, x_hat, inv_std = compute(groups, scale, shift, _eps("spatial_groupnorm", gn_param))
    return images(out, x.shape), (x_hat, inv_std, gamma, beta.shape, x.shape)


def spatial_groupnorm_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """Differentiate `spatial_groupnorm_forward`; the formula is that of `layernorm_backward`.

    Parameters
    ----------
    dout : array (N, C, H, W)
        The gradient of the loss by out.
    cache : object
        From `spatial_groupnorm_forward`.

    Returns
    -------
    dx : array (N, C, H, W)
    dgamma, dbeta : arrays
        Of the shapes of gamma and beta.
    """
    x_hat, inv_std, gamma, beta_shape, x_shape = cache
    xp = check_dout("spatial_groupnorm_backward", dout, x_hat, x_shape)
    rows = pixels(dout)
    dgamma, dbeta = _param_grads(rows, xp.reshape(x_hat, rows.shape))
    compute = fast_path("layers.normalization.groupnorm_grad", library_of(dout)) or groupnorm_grad
    dx = compute(xp.reshape(rows, x_hat.shape), x_hat, inv_std, xp.reshape(gamma, x_hat.shape[2:]))
    return images(dx, x_shape), xp.reshape(dgamma, gamma.shape), xp.reshape(dbeta, beta_shape)


def groupnorm(x: Array, gamma: Array, beta: Array, eps: float) -> tuple[Array, Array, Array]:
    """The definition of `spatial_groupnorm_forward` for pixels (N, H W, G, C / G): as `layernorm`, of each group."""
    x_hat, inv_std = _standardize(x, (1, 3), eps)
    out = x_hat * gamma
    out += beta
    return out, x_hat, inv_std


def groupnorm_grad(dout: Array, x_hat: Array, inv_std: Array, gamma: Array) -> Array:
    """The definition of dx in `spatial_groupnorm_backward`, for pixels (N, H W, G, C / G)."""
    return _standardize_backward(dout * gamma, x_hat, inv_std, (1, 3))


def rmsnorm_forward(x: Array, gamma: Array, rms_param: Mapping[str, Any]) -> tuple[Array, Cache]:
    """Divide each example by the root mean square of its features: ``out = gamma x / sqrt(mean(x²) + eps)``.

    Parameters
    ----------
    x : array (..., D)
        The mean is taken over the last axis.
    gamma : array (D,)
        Scale.
    rms_param : dict
        ``eps`` (1e-5); ``mode``, which changes nothing, for a dict shared with batch norm.

    Returns
    -------
    out : array (..., D)
    cache : object
        For `rmsnorm_backward`.

    Raises
    ------
    TypeError
        When the arrays are of different kinds or hold no floating-point numbers.
    ValueError
        When the shapes do not fit, eps is negative or not finite, or a key is unknown.

    Source: Zhang and Sennrich, "Root mean square layer normalization", NeurIPS 2019.
    """
    one_kind("rmsnorm", x=x, gamma=gamma)
    if x.ndim < 1 or x.shape[-1] == 0 or gamma.shape != x.shape[-1:]:
        raise ValueError(
            "rmsnorm: expected x (..., D) of at least one feature and gamma (D,); "
            f"received x {tuple(x.shape)} and gamma {tuple(gamma.shape)}"
        )
    compute = fast_path("layers.normalization.rmsnorm", library_of(x)) or rmsnorm
    out, x_hat, inv_rms = compute(x, gamma, _eps("rmsnorm", rms_param))
    return out, (x_hat, inv_rms, gamma)


def rmsnorm_backward(dout: Array, cache: Cache) -> tuple[Array, Array]:
    """Differentiate `rmsnorm_forward`, through the root mean square.

    ``dx = (g - x_hat mean(g x_hat)) / rms`` with ``g = gamma dout``; ``dgamma = sum_i dout_i x_hat_i``.

    Parameters
    ----------
    dout : array (..., D)
        The gradient of the loss by out.
    cache : object
        From `rmsnorm_forward`.

    Returns
    -------
    dx : array (..., D)
    dgamma : array (D,)
    """
    x_hat, inv_rms, gamma = cache
    check_dout("rmsnorm_backward", dout, x_hat, x_hat.shape)
    compute = fast_path("layers.normalization.rmsnorm_grad", library_of(dout)) or rmsnorm_grad
    return compute(dout, x_hat, inv_rms, gamma), _param_grads(_rows(dout), _rows(x_hat), has_beta=False)[0]


def rmsnorm(x: Array, gamma: Array, eps: float) -> tuple[Array, Array, Array]:
    """The definition of `rmsnorm_forward`: out, ``x / rms`` and ``1 / rms`` (..., 1)."""
    xp = namespace(x)
    inv_rms = 1.0 / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + eps)
    x_hat = x * inv_rms
    return gamma * x_hat, x_hat, inv_rms


def rmsnorm_grad(dout: Array, x_hat: Array, inv_rms: Array, gamma: Array) -> Array:
    """The definition of dx in `rmsnorm_backward`."""
    dx_hat = gamma * dout
    dx = x_hat * -namespace(dout).mean(dx_hat * x_hat, axis=-1, keepdims=True)
    dx += dx_hat
    dx *= inv_rms
    return dx


def param_grads(dout: Array, x_hat: Array, has_beta: bool) -> tuple[Array, Array | None]:
    """The definition of dgamma and, if there is one, dbeta in the backward passes: sums over rows (N, D)."""
    return sum_rows(dout * x_hat), sum_rows(dout) if has_beta else None


def _param_grads(dout: Array, x_hat: Array, has_beta: bool = True) -> tuple[Array, Any]:
    return (fast_path("layers.normalization.param_grads", library_of(dout)) or param_grads)(dout, x_hat, has_beta)


def _rows(x: Array) -> Array:
    return namespace(x).reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


def _eps(where: str, param: Mapping[str, Any]) -> float:
    check_keys(where, param, "eps", "mode")
    return _check_eps(where, param.get("eps", 1e-5))


def _check_eps(where: str, eps: float) -> float:
    return check_number(where, "a finite eps >= 0", eps, lambda number: number >= 0)


def _standardize(x: Array, axis: int | tuple[int, ...], eps: float) -> tuple[Array, Array]:
    """Return ``(x - mean) / sqrt(var + eps)`` with the statistics over `axis`, and the ``1 / sqrt(var + eps)``."""
    xp = namespace(x)
    x_hat = x - xp.mean(x, axis=axis, keepdims=True)
    inv_std = 1.0 / xp.sqrt(xp.mean(x_hat * x_hat, axis=axis, keepdims=True) + eps)
    x_hat *= inv_std
    return x_hat, inv_std


def _standardize_backward(dx_hat: Array, x_hat: Array, inv_std: Array, axis: int | tuple[int, ...]) -> Array:
    xp = namespace(dx_hat)
    dx = x_hat * -xp.mean(dx_hat * x_hat, axis=axis, keepdims=True)
    dx += dx_hat
    dx -= xp.mean(dx_hat, axis=axis, keepdims=True)
    dx *= inv_std
    return dx


@in_single_precision
class LayerNorm(Layer):
    """`layernorm_forward` of examples (..., D), with parameters gamma (D,) and beta (D,).

    Parameters
    ----------
    eps : float
        Added to the variance.
    """

    torch_names: ClassVar[dict[str, str]] = {"gamma": "weight", "beta": "bias"}

    def __init__(self, *, eps: float = 1e-5, name: str = "") -> None:
        super().__init__(name)
        self.ln_param = {"eps": _check_eps(name or "layernorm", eps)}

    def output_shape(self, input_shape: Shape) -> Shape:
        return _check_features(self.path or "layernorm", input_shape)

    def param_specs(self, input_shape: Shape) -> dict[str, Spec]:
        return {"gamma": Spec(input_shape[-1:], initializers.ones), "beta": Spec(input_shape[-1:], initializers.zeros)}

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        return layernorm_forward(x, self.params["gamma"], self.params["beta"], self.ln_param)

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        dx, dgamma, dbeta = layernorm_backward(dout, cache)
        return dx, {"gamma": dgamma, "beta": dbeta}


@in_single_precision
class GroupNorm(Layer):
    """`spatial_groupnorm_forward` of images (C, H, W), with parameters gamma (C,) and beta (C,).

    Parameters
    ----------
    groups : int
        G, which divides C.
    eps : float
        Added to the variance.
    """

    torch_names: ClassVar[dict[str, str]] = {"gamma": "weight", "beta": "bias"}

    def __init__(self, groups: int, *, eps: float = 1e-5, name: str = "") -> None:
        super().__init__(name)
        where = name or "groupnorm"
        self.groups, self.gn_param = check_whole(where, "groups", groups), {"eps": _check_eps(where, eps)}

    def output_shape(self, input_shape: Shape) -> Shape:
        if len(input_shape) != 3 or math.prod(input_shape) == 0 or input_shape[0] % self.groups:
            raise ValueError(
                f"{self.path or 'groupnorm'}: expected input of shape (C, H, W) with channels for {self.groups} equal "
                f"groups; received {input_shape}"
            )
        return input_shape

    def param_specs(self, input_shape: Shape) -> dict[str, Spec]:
        return {"gamma": Spec(input_shape[:1], initializers.ones), "beta": Spec(input_shape[:1], initializers.zeros)}

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        return spatial_groupnorm_forward(x, self.params["gamma"], self.params["beta"], self.groups, self.gn_param)

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        dx, dgamma, dbeta = spatial_groupnorm_backward(dout, cache)
        return dx, {"gamma": dgamma, "beta": dbeta}


@in_single_precision
class RMSNorm(Layer):
    """`rmsnorm_forward` of examples (..., D), with parameter gamma (D,).

    Parameters
    ----------
    eps : float
        Added to the mean square.
    """

    torch_names: ClassVar[dict[str, str]] = {"gamma": "weight"}

    def __init__(self, *, eps: float = 1e-5, name: str = "") -> None:
        super().__init__(name)
        self.rms_param = {"eps": _check_eps(name or "rmsnorm", eps)}

    def output_shape(self, input_shape: Shape) -> Shape:
        return _check_features(self.path or "rmsnorm", input_shape)

    def param_specs(self, input_shape: Shape) -> dict[str, Spec]:
        return {"gamma": Spec(input_shape[-1:], initializers.ones)}

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        return rmsnorm_forward(x, self.params["gamma"], self.rms_param)

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        dx, dgamma = rmsnorm_backward(dout, cache)
        return dx, {"gamma": dgamma}


def _check_features(where: str, input_shape: Shape) -> Shape:
    if len(input_shape) < 1 or input_shape[-1] < 1:
        raise ValueError(f"{where}: expected input of shape (..., D) with at least one feature; received {input_shape}")
    return input_shape
