"""Convolution of images: as in every library of the field, a cross-correlation."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from xpnn.arguments import check_flag, check_keys, check_whole
from xpnn.backend import Array, Shape, library_of, namespace, one_kind, written
from xpnn.kernels import fast_path
from xpnn.layers import initializers
from xpnn.layers.activation import GELU, ReLU, gelu_and_slope, positive_part, relu_backward
from xpnn.layers.fused import activated_grad, name_of
from xpnn.layers.layer import Cache, Initializer, Layer, Spec, check_dout, check_init
from xpnn.layers.precision import narrowed
from xpnn.layers.rows import images, pixels, sum_rows
from xpnn.windows import Pair, Window, as_pair


def conv_forward(x: Array, w: Array, b: Array | None, conv_param: Mapping[str, Any]) -> tuple[Array, Cache]:
    """Correlate images with filters: ``out[n,f,i,j] = b[f] + sum_cuv x[n,c,s i + d u - p,s j + d v - p] w[f,c,u,v]``.

    s, p and d are stride, pad and dilation; outside the image x is zero. The output has
    ``H' = 1 + (H + 2 p - d (KH - 1) - 1) // s`` rows, and columns by the same rule.

    Parameters
    ----------
    x : array (N, C, H, W)
    w : array (F, C / groups, KH, KW)
    b : array (F,) or None
    conv_param : dict
        ``stride`` (1), ``pad`` (0), ``dilation`` (1): a whole number, or one for each axis; ``groups`` (1): channels
        and filters are split into so many parts, and a filter sees its own part's channels alone.

    Returns
    -------
    out : array (N, F, H', W')
    cache : object
        For `conv_backward`.

    Raises
    ------
    TypeError
        When the arrays are of different kinds or hold no floating-point numbers.
    ValueError
        For a stride of 0, shapes that do not fit, or a window larger than the padded image.

    Source: LeCun et al., "Gradient-based learning applied to document recognition", 1998; UCLA ECE C147, homework 5.
    """
    one_kind("conv", x=x, w=w, **({} if b is None else {"b": b}))
    check_keys("conv", conv_param, "stride", "pad", "dilation", "groups")
    groups = check_whole("conv", "groups", conv_param.get("groups", 1))
    if x.ndim != 4 or w.ndim != 4 or x.shape[1] != w.shape[1] * groups or w.shape[0] % groups or 0 in w.shape:
        raise ValueError(
            "conv: expected x (N, C, H, W) and w (F, C / groups, KH, KW), F a multiple of groups; "
            f"received x {tuple(x.shape)}, w {tuple(w.shape)} and groups {groups}"
        )
    if b is not None and b.shape != w.shape[:1]:
        raise ValueError(f"conv: expected b of shape {tuple(w.shape[:1])}; received {tuple(b.shape)}")
    window = _window("conv", tuple(w.shape[2:]), conv_param)
    window.check("conv", tuple(x.shape[2:]))
    return _conv(x, _filters(w, w.dtype), b, window, groups)


def _filters(w: Array, dtype: Any) -> Array:
    return (fast_path("layers.convolution.arranged", library_of(w)) or arranged)(w, dtype)


class Fused(NamedTuple):
    """The cache of a convolution that has computed the activation behind it, too."""

    own: Cache
    activation: str
    kept: Array  # for the activation's gradient


def _conv(
    x: Array, w: Array, b: Array | None, window: Window, groups: int, activation: str = ""
) -> tuple[Array, Cache]:
    """`conv_forward` with what `_filters` returns, and an activation if asked for."""
    cache = x, w, b is not None, window, groups
    if activation:
        fast = fast_path("layers.convolution.correlate_activated", library_of(x))
        out, kept = (fast or correlate_activated)(x, w, b, window, groups, activation)
        return out, Fused(cache, activation, kept)
    fast = fast_path("layers.convolution.correlate", library_of(x))
    return (fast or correlate)(x, w, b, window, groups), cache


def conv_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array | None]:
    """Differentiate `conv_forward`.

    ``dw[f,c,u,v] = sum_nij dout[n,f,i,j] x[n,c,s i + d u - p,s j + d v - p]``, dx the same with w in place of x, summed
    over f, i and j; ``db[f] = sum_nij dout[n,f,i,j]``.

    Parameters
    ----------
    dout : array (N, F, H', W')
        The gradient of the loss by out.
    cache : object
        From `conv_forward`.

    Returns
    -------
    dx : array (N, C, H, W)
    dw : array (F, C / groups, KH, KW)
    db : array (F,), None where there was no bias
    """
    dout, cache, db = _bias_grad(dout, cache)
    return _input_grad(dout, cache), _filter_grad(dout, cache), db


def _bias_grad(dout: Array, cache: Cache, out: Array | None = None) -> tuple[Array, Cache, Array | None]:
    """Return db, in `out` where that saves a copy, with the gradient and the cache of the convolution alone."""
    own = cache.own if isinstance(cache, Fused) else cache
    x, w, has_bias, window, _ = own
    check_dout("conv_backward", dout, x, (x.shape[0], w.shape[0], *window.counts(x.shape[2:])))
    if own is cache:
        return dout, own, sum_rows(pixels(dout), out) if has_bias else None
    if cache.activation == "relu" and not has_bias:
        return relu_backward(dout, cache.kept), own, None
    fast = fast_path("layers.fused.activated_grad", library_of(x))
    rows, db = (fast or activated_grad)(pixels(dout), pixels(cache.kept), cache.activation, out)
    return images(rows, dout.shape), own, db if has_bias else None


def _filter_grad(dout: Array, cache: Cache, out: Array | None = None) -> Array:
    x, _, _, window, groups = cache
    fast = fast_path("layers.convolution.correlate_filter_grad", library_of(x))
    return (fast or correlate_filter_grad)(dout, x, window, groups, out)


def _input_grad(dout: Array, cache: Cache) -> Array:
    x, w, _, window, groups = cache
    fast = fast_path("layers.convolution.correlate_input_grad", library_of(x))
    return (fast or correlate_input_grad)(dout, w, tuple(x.shape[2:]), window, groups)


def arranged(w: Array, dtype: Any) -> Array:
    """The definition of filters in that dtype and in the order of memory that a library's convolutions like best.

    They are what the gradients are computed with, too, so that they are brought into that order once.
    """
    return narrowed(w, dtype)


def correlate(x: Array, w: Array, b: Array | None, window: Window, groups: int) -> Array:
    """The definition of `conv_forward`: the filters as a matrix, times every window as a column."""
    xp, n, f = namespace(x), x.shape[0], w.shape[0]
    columns = _columns(xp, x, window, groups)
    filters = xp.reshape(w, (groups, f // groups, columns.shape[2]))
    out = xp.reshape(xp.matmul(filters, columns), (n, f, *window.counts(x.shape[2:])))
    return out if b is None else out + xp.reshape(b, (f, 1, 1))


def correlate_activated(
    x: Array, w: Array, b: Array | None, window: Window, groups: int, activation: str
) -> tuple[Array, Array]:
    """The definition of a convolution with a ``"relu"``, ``"gelu_none"`` or ``"gelu_tanh"`` behind it.

    And of what `activated_grad` needs, as images: the output of a ReLU, or the input of a GELU.
    """
    before = correlate(x, w, b, window, groups)
    if activation == "relu":
        out = positive_part(before)
        return out, out
    return gelu_and_slope(before, activation.removeprefix("gelu_"))[0], before


def correlate_filter_grad(dout: Array, x: Array, window: Window, groups: int, out: Array | None = None) -> Array:
    """The definition of dw, in `out` where it is given: the product of an output's gradient with the columns it saw."""
    xp, (n, f, height, width) = namespace(x), dout.shape
    columns = _columns(xp, x, window, groups)
    douts = xp.reshape(dout, (n, groups, f // groups, height * width))
    dw = xp.sum(xp.matmul(douts, xp.matrix_transpose(columns)), axis=0)
    return written(xp.reshape(dw, (f, x.shape[1] // groups, *window.size)), out)


def correlate_input_grad(dout: Array, w: Array, image: Pair, window: Window, groups: int) -> Array:
    """The definition of dx: columns of gradients, each added where its window was taken from."""
    xp, (n, f, height, width) = namespace(dout), dout.shape
    (_, c, kh, kw), (ph, pw) = w.shape, window.pad
    douts = xp.reshape(dout, (n, groups, f // groups, height * width))
    filters = xp.reshape(w, (groups, f // groups, c * kh * kw))
    dcolumns = xp.matmul(xp.matrix_transpose(filters), douts)
    dtaps = xp.reshape(dcolumns, (n, groups * c, kh * kw, height, width))
    dx = xp.zeros((n, groups * c, *window.padded(image)), dtype=dout.dtype, device=dout.device)
    for k, (rows, cols) in enumerate(window.slices((height, width))):
        dx[:, :, rows, cols] += dtaps[:, :, k, :, :]
    return dx[:, :, ph : ph + image[0], pw : pw + image[1]]


def _columns(xp: Any, x: Array, window: Window, groups: int) -> Array:
    """The windows of x: (N, groups, C / groups KH KW, H' W')."""
    (n, c), (height, width) = x.shape[:2], window.counts(x.shape[2:])
    padded = _zero_pad(xp, x, window.pad)
    taps = [padded[:, :, rows, cols] for rows, cols in window.slices((height, width))]
    return xp.reshape(xp.stack(taps, axis=2), (n, groups, c // groups * len(taps), height * width))


def _zero_pad(xp: Any, x: Array, pad: Pair) -> Array:
    """Images with rows and columns of zeros around them."""
    (ph, pw), (n, c, height, width) = pad, x.shape
    if ph == pw == 0:
        return x
    padded = xp.zeros((n, c, height + 2 * ph, width + 2 * pw), dtype=x.dtype, device=x.device)
    padded[:, :, ph : ph + height, pw : pw + width] = x
    return padded


def _window(where: str, size: Pair, conv_param: Mapping[str, Any]) -> Window:
    return Window(
        size,
        as_pair(where, "a stride", conv_param.get("stride", 1), 1),
        as_pair(where, "a pad", conv_param.get("pad", 0), 0),
        as_pair(where, "a dilation", conv_param.get("dilation", 1), 1),
    )


# The course has several implementations to compare; here there is one, and it is the fast one.
conv_forward_naive = conv_forward_fast = conv_forward_im2col = conv_forward_strides = conv_forward
conv_backward_naive = conv_backward_fast = conv_backward_im2col = conv_backward_strides = conv_backward


class Conv(Layer):
    """`conv_forward` with parameters W (F, C / groups, KH, KW) and b (F,).

    Parameters
    ----------
    filters : int
        F, the number of output channels.
    kernel : int or (int, int)
        The window's height and width.
    stride, dilation : int or (int, int)
    pad : int or (int, int) or "same"
        Zeros on each side; ``"same"`` keeps the image's size, for an odd window and a stride of 1.
    groups : int
        Into how many parts channels and filters are split.
    bias : bool
    init, bias_init : initializer
        First values of W and b.
    train_weights : bool
        False keeps W as it starts: it is then state, not a parameter.
    """

    fuses: ClassVar[dict[type[Layer], str]] = dict.fromkeys((ReLU, GELU), "layers.convolution.correlate_activated")
    torch_names: ClassVar[dict[str, str]] = {"W": "weight", "b": "bias"}

    def __init__(
        self,
        filters: int,
        kernel: int | Pair,
        *,
        stride: int | Pair = 1,
        pad: int | Pair | str = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
        init: Initializer = initializers.kaiming,
        bias_init: Initializer = initializers.zeros,
        train_weights: bool = True,
        name: str = "",
    ) -> None:
        super().__init__(name)
        where = name or "conv"
        self.filters, self.groups = check_whole(where, "filters", filters), check_whole(where, "groups", groups)
        if self.filters % groups:
            raise ValueError(f"{where}: expected filters, a multiple of groups {groups}; received {filters}")
        same = isinstance(pad, str) and pad == "same"
        param = {"stride": stride, "dilation": dilation, "pad": 0 if same else pad}
        self.window = _window(where, as_pair(where, "a kernel", kernel, 1), param)
        if same:
            (high, wide), strides = self.window.extent, self.window.stride
            if not high % 2 or not wide % 2 or strides != (1, 1):
                received = f"a window of {high} x {wide} and a stride of {stride}"
                raise ValueError(
                    f"{where}: expected an odd window and a stride of 1 for pad 'same'; received {received}"
                )
            self.window = self.window._replace(pad=(high // 2, wide // 2))
        self.init, self.bias_init = check_init(where, init), check_init(where, bias_init)
        self.bias = check_flag(where, "bias", bias)
        self.train_weights = check_flag(where, "train_weights", train_weights)

    def _w_spec(self, input_shape: Shape) -> Spec:
        return Spec((self.filters, input_shape[0] // self.groups, *self.window.size), self.init, decay=True)

    def output_shape(self, input_shape: Shape) -> Shape:
        where = self.path or "conv"
        if len(input_shape) != 3 or input_shape[0] < 1 or input_shape[0] % self.groups:
            expected = "input of shape (C, H, W)" + f", C a multiple of {self.groups}" * (self.groups > 1)
            raise ValueError(f"{where}: expected {expected}; received {input_shape}")
        _, height, width = input_shape
        self.window.check(where, (height, width))
        return self.filters, *self.window.counts((height, width))

    def param_specs(self, input_shape: Shape) -> dict[str, Spec]:
        specs = {"W": self._w_spec(input_shape)} if self.train_weights else {}
        return specs | ({"b": Spec((self.filters,), self.bias_init)} if self.bias else {})

    def state_specs(self, input_shape: Shape) -> dict[str, Spec]:
        return {} if self.train_weights else {"W": self._w_spec(input_shape)}

    def flops(self, input_shape: Shape) -> int:
        return 2 * math.prod(self._w_spec(input_shape).shape) * math.prod(self.output_shape(input_shape)[1:])

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        return self._forward(x)

    def forward_through(self, x: Array, after: Layer, train: bool = False) -> tuple[Array, Cache]:
        return self._forward(x, name_of(after))

    def _forward(self, x: Array, activation: str = "") -> tuple[Array, Cache]:
        w = self.params["W"] if self.train_weights else self.state["W"]
        w = _filters(w, w.dtype if self.train_weights else x.dtype)
        return _conv(x, w, self.params.get("b"), self.window, self.groups, activation)

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        dout, cache, db = _bias_grad(dout, cache, self.grads.pop("b", None))
        grads = {"W": _filter_grad(dout, cache, self.grads.pop("W", None))} if self.train_weights else {}
        if db is not None:
            grads["b"] = db
        return (_input_grad(dout, cache) if input_grad else None), grads
