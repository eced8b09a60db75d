"""Attention: of queries to keys, and of the tokens of an example to each other."""

import math
from typing import ClassVar

from xpnn.arguments import check_flag, check_whole
from xpnn.backend import Array, Shape, one_kind
from xpnn.layers import initializers
from xpnn.layers.affine import linear_backward, linear_forward, linear_param_grads
from xpnn.layers.layer import Cache, Initializer, Layer, Spec, check_dout, check_init
from xpnn.layers.precision import narrowed
from xpnn.products import product


def attention_forward(q: Array, k: Array, v: Array, causal: bool = False) -> tuple[Array, Cache]:
    """Scaled dot-product attention: ``out = softmax(q kᵀ / sqrt(D)) v``, with the softmax over the keys.

    Parameters
    ----------
    q : array (..., T, D)
        Queries; the axes before are those of the batch, such as (N, heads).
    k : array (..., S, D)
        Keys.
    v : array (..., S, M)
        Values.
    causal : bool
        Whether token t sees only the tokens up to t; then S = T.

    Returns
    -------
    out : array (..., T, M)
    cache : object
        For `attention_backward`.

    Raises
    ------
    TypeError
        When the arrays are of different kinds or hold no floating-point numbers.
    ValueError
        When the shapes do not fit.

    Source: Vaswani et al., "Attention is all you need", NeurIPS 2017.
    """
    xp = one_kind("attention", q=q, k=k, v=v)
    fits = min(q.ndim, k.ndim, v.ndim) >= 2 and q.shape[:-2] == k.shape[:-2] == v.shape[:-2]
    if not fits or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2] or 0 in k.shape[-2:]:
        raise ValueError(
            "attention: expected q (..., T, D), k (..., S, D) and v (..., S, M) of at least one key; "
            f"received q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)}"
        )
    t, s = q.shape[-2], k.shape[-2]
    if causal and t != s:
        raise ValueError(f"attention: expected as many keys as queries where it is causal; received {s} and {t}")
    scaled = narrowed(q * (1.0 / math.sqrt(q.shape[-1])), q.dtype)
    scores = product(scaled, xp.matrix_transpose(k))
    if causal:
        position = xp.arange(t, device=q.device)
        scores = narrowed(xp.where(position[None, :] <= position[:, None], scores, -math.inf), scores.dtype)
    scores -= xp.max(scores, axis=-1, keepdims=True)  # so that exp does not overflow
    weights = xp.exp(scores)
    weights /= xp.sum(weights, axis=-1, keepdims=True)
    return product(weights, v), (scaled, k, v, weights)


def attention_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """Differentiate `attention_forward`.

    With the weights ``p = softmax(q kᵀ / sqrt(D))``: ``dv = pᵀ dout``; ``dp = dout vᵀ``;
    ``ds = p (dp - sum_j p_j dp_j)``; ``dq = ds k / sqrt(D)``; ``dk = dsᵀ q / sqrt(D)``.

    Parameters
    ----------
    dout : array (..., T, M)
        The gradient of the loss by out.
    cache : object
        From `attention_forward`.

    Returns
    -------
    dq : array (..., T, D)
    dk : array (..., S, D)
    dv : array (..., S, M)
    """
    scaled, k, v, weights = cache
    xp = check_dout("attention_backward", dout, v, (*weights.shape[:-1], v.shape[-1]))
    dv = product(xp.matrix_transpose(weights), dout)
    dscores = product(dout, xp.matrix_transpose(v))
    dscores -= xp.sum(dscores * weights, axis=-1, keepdims=True)
    dscores *= weights  # 0 where a mask was, too
    dq = product(dscores, k)
    dq *= 1.0 / math.sqrt(k.shape[-1])
    return dq, product(xp.matrix_transpose(dscores), scaled), dv


def multihead_attention_forward(
    x: Array, w_qkv: Array, b_qkv: Array, w_out: Array, b_out: Array, num_heads: int, causal: bool = False
) -> tuple[Array, Cache]:
    """Self-attention of the tokens of each example, in heads that each see D / num_heads features.

    ``q, k, v = split(x w_qkv + b_qkv)``; ``out = concat_h(attention(q_h, k_h, v_h)) w_out + b_out``.

    Parameters
    ----------
    x : array (N, T, D)
        N examples of T tokens.
    w_qkv : array (D, 3 D)
        Queries, keys and values; within each the heads follow each other.
    b_qkv : array (3 D,)
    w_out : array (D, D)
    b_out : array (D,)
    num_heads : int
        Divides D.
    causal : bool
        Whether token t sees only the tokens up to t.

    Returns
    -------
    out : array (N, T, D)
    cache : object
        For `multihead_attention_backward`.

    Raises
    ------
    TypeError
        When the arrays are of different kinds or hold no floating-point numbers.
    ValueError
        When the shapes do not fit, or num_heads does not divide D.

    Source: Vaswani et al., "Attention is all you need", NeurIPS 2017, section 3.2.2.
    """
    xp = one_kind("multihead_attention", x=x, w_qkv=w_qkv, b_qkv=b_qkv, w_out=w_out, b_out=b_out)
    d = x.shape[-1] if x.ndim == 3 else 0
    received = {"w_qkv": w_qkv, "b_qkv": b_qkv, "w_out": w_out, "b_out": b_out}
    expected = {"w_qkv": (d, 3 * d), "b_qkv": (3 * d,), "w_out": (d, d), "b_out": (d,)}
    if 0 in x.shape[1:] or any(tuple(array.shape) != expected[name] for name, array in received.items()):
        shapes = ", ".join(f"{name} {tuple(array.shape)}" for name, array in {"x": x, **received}.items())
        raise ValueError(
            "multihead_attention: expected x (N, T, D) of at least one token, w_qkv (D, 3 D), b_qkv (3 D,), "
            f"w_out (D, D) and b_out (D,); received {shapes}"
        )
    if d % check_whole("multihead_attention", "num_heads", num_heads):
        raise ValueError(f"multihead_attention: expected num_heads to divide {d} features; received {num_heads}")
    n, t, _ = x.shape
    qkv, in_cache = linear_forward(x, w_qkv, b_qkv)
    heads = xp.permute_dims(xp.reshape(qkv, (n, t, 3, num_heads, d // num_heads)), (2, 0, 3, 1, 4))
    seen, cache = attention_forward(heads[0, ...], heads[1, ...], heads[2, ...], causal)
    out, out_cache = linear_forward(xp.reshape(xp.permute_dims(seen, (0, 2, 1, 3)), (n, t, d)), w_out, b_out)
    return out, (in_cache, cache, out_cache, (n, t, num_heads, d // num_heads))


def multihead_attention_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array, Array, Array]:
    """Differentiate `multihead_attention_forward`: its parts in reverse.

    Parameters
    ----------
    dout : array (N, T, D)
        The gradient of the loss by out.
    cache : object
        From `multihead_attention_forward`.

    Returns
    -------
    dx : array (N, T, D)
    dw_qkv : array (D, 3 D)
    db_qkv : array (3 D,)
    dw_out : array (D, D)
    db_out : array (D,)
    """
    dqkv, dw_out, db_out = _multihead_grads(dout, cache)
    dx, dw_qkv, db_qkv = linear_backward(dqkv, cache[0])
    return dx, dw_qkv, db_qkv, dw_out, db_out


def _multihead_grads(dout: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """The gradients by queries, keys and values (N, T, 3 D), by w_out and by b_out."""
    in_cache, attention_cache, out_cache, (n, t, num_heads, size) = cache
    xp = check_dout("multihead_attention_backward", dout, in_cache[0], (n, t, num_heads * size))
    dseen, dw_out, db_out = linear_backward(dout, out_cache)
    dseen = xp.permute_dims(xp.reshape(dseen, (n, t, num_heads, size)), (0, 2, 1, 3))
    by_token = [xp.permute_dims(grad, (0, 2, 1, 3)) for grad in attention_backward(dseen, attention_cache)]
    return xp.reshape(xp.stack(by_token, axis=2), (n, t, 3 * num_heads * size)), dw_out, db_out


class MultiHeadAttention(Layer):
    """`multihead_attention_forward` of examples (T, D): T tokens that attend to each other.

    Its parameters are W_qkv (D, 3 D), b_qkv (3 D,), W_out (D, D) and b_out (D,).

    Parameters
    ----------
    heads : int
        Divides D.
    causal : bool
        Whether token t sees only the tokens up to t.
    init : initializer
        First values of W_qkv and W_out; the biases start at zeros.
    """

    param_names = ("W_qkv", "b_qkv", "W_out", "b_out")
    torch_names: ClassVar[dict[str, str]] = {
        "W_qkv": "in_proj_weight",
        "b_qkv": "in_proj_bias",
        "W_out": "out_proj.weight",
        "b_out": "out_proj.bias",
    }
    torch_transposed: ClassVar[frozenset[str]] = frozenset({"W_qkv", "W_out"})

    def __init__(
        self, heads: int, *, causal: bool = False, init: Initializer = initializers.small_normal, name: str = ""
    ) -> None:
        super().__init__(name)
        where = name or "multiheadattention"
        self.heads, self.causal = check_whole(where, "heads", heads), check_flag(where, "causal", causal)
        self.init = check_init(where, init)

    def output_shape(self, input_shape: Shape) -> Shape:
        if len(input_shape) != 2 or 0 in input_shape or input_shape[1] % self.heads:
            raise ValueError(
                f"{self.path or 'multiheadattention'}: expected input of shape (T, D) with features for {self.heads} "
                f"equal heads; received {input_shape}"
            )
        return input_shape

    def flops(self, input_shape: Shape) -> int:
        t, d = input_shape
        return 2 * t * d * 4 * d + 2 * 2 * t * t * d  # the projections; scores and weighted values

    def param_specs(self, input_shape: Shape) -> dict[str, Spec]:
        d = input_shape[1]
        return {
            "W_qkv": Spec((d, 3 * d), self.init, decay=True),
            "b_qkv": Spec((3 * d,), initializers.zeros),
            "W_out": Spec((d, d), self.init, decay=True),
            "b_out": Spec((d,), initializers.zeros),
        }

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        w_qkv, b_qkv, w_out, b_out = (self.params[key] for key in self.param_names)
        return multihead_attention_forward(x, w_qkv, b_qkv, w_out, b_out, self.heads, self.causal)

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        dx: Array | None = None
        if input_grad:
            dx, *grads = multihead_attention_backward(dout, cache)
        else:
            dqkv, *out_grads = _multihead_grads(dout, cache)
            grads = [*linear_param_grads(dqkv, cache[0]), *out_grads]
        return dx, dict(zip(self.param_names, grads, strict=True))
