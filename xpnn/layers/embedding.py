"""Tokens: embeddings of indices, of patches and of positions, and their mean."""

import math
from typing import ClassVar

from xpnn import backend as backends
from xpnn.arguments import check_whole
from xpnn.backend import Array, Shape, describe, dtype_name, indices_below, is_array, is_integer, namespace, one_kind
from xpnn.layers import initializers
from xpnn.layers.affine import linear_forward, linear_input_grad, linear_param_grads
from xpnn.layers.layer import Cache, Initializer, Layer, Spec, check_dout, check_init
from xpnn.layers.rows import sum_rows
from xpnn.products import product

ONE_HOT_NUMBERS = 2**22  # how many numbers of a one-hot matrix `embedding_backward` makes at a time


def embedding_forward(indices: Array, w: Array) -> tuple[Array, Cache]:
    """Look up rows of a table: ``out_i = w[indices_i]``.

    Parameters
    ----------
    indices : array (...) of integers
        From 0 to V - 1, such as tokens (N, T).
    w : array (V, D)
        A row for each of V possible indices.

    Returns
    -------
    out : array (..., D)
    cache : object
        For `embedding_backward`.

    Raises
    ------
    TypeError
        When w holds no floating-point numbers, indices no integers, or they are of different kinds.
    ValueError
        When w is no matrix; or for an index out of range, where indices are on the host.
    """
    xp = one_kind("embedding", w=w)
    if not is_array(indices) or backends.of(indices) is not backends.of(w):
        received = f"indices: {describe(indices)}, w: {describe(w)}"
        raise TypeError(f"embedding: expected indices and w of one kind; received {received}")
    if not is_integer(indices):
        raise TypeError(f"embedding: expected indices of an integer dtype; received {dtype_name(indices.dtype)}")
    if w.ndim != 2:
        raise ValueError(f"embedding: expected w (V, D); received w {tuple(w.shape)}")
    flat = indices_below("embedding", "indices", xp.reshape(indices, (math.prod(indices.shape),)), w.shape[0])
    out = xp.reshape(xp.take(w, flat, axis=0), (*indices.shape, w.shape[1]))
    return out, (flat, w, out.shape)


def embedding_backward(dout: Array, cache: Cache) -> Array:
    """Differentiate `embedding_forward`: ``dw_v`` is the sum of ``dout_i`` over all i whose index is v.

    The standard has no function that adds at indices, so that this is a product with a one-hot matrix, made
    piece by piece where it would be large.

    Parameters
    ----------
    dout : array (..., D)
        The gradient of the loss by out.
    cache : object
        From `embedding_forward`.

    Returns
    -------
    dw : array (V, D)
    """
    flat, w, out_shape = cache
    xp = check_dout("embedding_backward", dout, w, out_shape)
    rows = xp.reshape(dout, (flat.shape[0], w.shape[1]))
    dw = xp.zeros(w.shape, dtype=w.dtype, device=w.device)
    vocabulary = xp.arange(w.shape[0], dtype=xp.int64, device=w.device)[:, None]
    piece = max(ONE_HOT_NUMBERS // max(w.shape[0], 1), 1)
    for start in range(0, flat.shape[0], piece):
        stop = min(start + piece, flat.shape[0])
        one_hot = xp.astype(vocabulary == flat[None, start:stop], w.dtype)
        dw += product(one_hot, rows[start:stop, :])
    return dw


def patch_embedding_forward(x: Array, w: Array, b: Array) -> tuple[Array, Cache]:
    """Make a token of each patch of an image: a convolution whose stride is the size of its filters.

    Parameters
    ----------
    x : array (N, C, H, W)
    w : array (D, C, P, P)
        Filters; P divides H and W.
    b : array (D,)

    Returns
    -------
    out : array (N, T, D)
        T = H W / P² patches, row by row.
    cache : object
        For `patch_embedding_backward`.

    Raises
    ------
    TypeError
        When the arrays are of different kinds or hold no floating-point numbers.
    ValueError
        When the shapes do not fit.

    Source: Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021.
    """
    xp = one_kind("patch_embedding", x=x, w=w, b=b)
    fits = x.ndim == w.ndim == 4 and b.shape == w.shape[:1] and x.shape[1] == w.shape[1] and 0 not in w.shape
    if not fits or w.shape[2] != w.shape[3] or x.shape[2] % w.shape[2] or x.shape[3] % w.shape[2]:
        raise ValueError(
            "patch_embedding: expected x (N, C, H, W), w (D, C, P, P) with P dividing H and W, and b (D,); "
            f"received x {tuple(x.shape)}, w {tuple(w.shape)} and b {tuple(b.shape)}"
        )
    n, c, height, width = x.shape
    p = w.shape[2]
    patches = xp.permute_dims(xp.reshape(x, (n, c, height // p, p, width // p, p)), (0, 2, 4, 1, 3, 5))
    tokens = xp.reshape(patches, (n, (height // p) * (width // p), c * p * p))
    out, cache = linear_forward(tokens, _as_matrix(w), b)
    return out, (cache, x.shape, w.shape)


def patch_embedding_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """Differentiate `patch_embedding_forward`.

    Parameters
    ----------
    dout : array (N, T, D)
        The gradient of the loss by out.
    cache : object
        From `patch_embedding_forward`.

    Returns
    -------
    dx : array (N, C, H, W)
    dw : array (D, C, P, P)
    db : array (D,)
    """
    token_cache, (n, c, height, width), w_shape = cache
    dw, db = _patch_param_grads(dout, cache)
    xp, p = namespace(dout), w_shape[2]
    dpatches = xp.reshape(linear_input_grad(dout, token_cache), (n, height // p, width // p, c, p, p))
    return xp.reshape(xp.permute_dims(dpatches, (0, 3, 1, 4, 2, 5)), (n, c, height, width)), dw, db


def _patch_param_grads(dout: Array, cache: Cache) -> tuple[Array, Array]:
    token_cache, (n, _, height, width), w_shape = cache
    p = w_shape[2]
    shape = (n, (height // p) * (width // p), w_shape[0])
    xp = check_dout("patch_embedding_backward", dout, token_cache[0], shape)
    dw, db = linear_param_grads(dout, token_cache)
    return xp.reshape(dw.T, w_shape), db


def _as_matrix(w: Array) -> Array:
    """Filters (D, C, P, P) as a matrix (C P P, D)."""
    return namespace(w).reshape(w, (w.shape[0], math.prod(w.shape[1:]))).T


def positional_embedding_forward(x: Array, w: Array) -> tuple[Array, Cache]:
    """Add a vector to each token by its position: ``out[n,t] = x[n,t] + w[t]``.

    Parameters
    ----------
    x : array (N, T, D)
        N examples of T tokens.
    w : array (T, D)
        A row for each position.

    Returns
    -------
    out : array (N, T, D)
    cache : object
        For `positional_embedding_backward`.

    Raises
    ------
    TypeError
        When the arrays are of different kinds or hold no floating-point numbers.
    ValueError
        When the shapes do not fit.

    Source: Gehring et al., "Convolutional sequence to sequence learning", ICML 2017, section 3.1.
    """
    one_kind("positional_embedding", x=x, w=w)
    if x.ndim != 3 or w.shape != x.shape[1:]:
        raise ValueError(
            "positional_embedding: expected x (N, T, D) and w (T, D); "
            f"received x {tuple(x.shape)} and w {tuple(w.shape)}"
        )
    return x + w, (backends.of(x), x.shape)


def positional_embedding_backward(dout: Array, cache: Cache) -> tuple[Array, Array]:
    """Differentiate `positional_embedding_forward`: ``dx = dout``, ``dw = sum_n dout_n``.

    Parameters
    ----------
    dout : array (N, T, D)
        The gradient of the loss by out.
    cache : object
        From `positional_embedding_forward`.

    Returns
    -------
    dx : array (N, T, D)
        dout itself.
    dw : array (T, D)
    """
    kind, (n, t, d) = cache
    xp = check_dout("positional_embedding_backward", dout, kind, (n, t, d))
    return dout, xp.reshape(sum_rows(xp.reshape(dout, (n, t * d))), (t, d))


def token_mean_forward(x: Array) -> tuple[Array, Cache]:
    """Average the tokens of each example: ``out[n] = mean_t x[n,t]``.

    Parameters
    ----------
    x : array (N, T, D)
        N examples of T tokens.

    Returns
    -------
    out : array (N, D)
    cache : object
        For `token_mean_backward`.

    Raises
    ------
    TypeError
        When x holds no floating-point numbers.
    ValueError
        When x has another number of dimensions, or no token.

    Source: Beyer, Zhai and Kolesnikov, "Better plain ViT baselines for ImageNet-1k", 2022.
    """
    xp = one_kind("token_mean", x=x)
    if x.ndim != 3 or x.shape[1] == 0:
        raise ValueError(f"token_mean: expected x (N, T, D) of at least one token; received x {tuple(x.shape)}")
    return xp.mean(x, axis=1), (backends.of(x), x.shape)


def token_mean_backward(dout: Array, cache: Cache) -> Array:
    """Differentiate `token_mean_forward`: each token has an equal part of the gradient, ``dx[n,t] = dout[n] / T``.

    Parameters
    ----------
    dout : array (N, D)
        The gradient of the loss by out.
    cache : object
        From `token_mean_forward`.

    Returns
    -------
    dx : array (N, T, D)
    """
    kind, (n, t, d) = cache
    xp = check_dout("token_mean_backward", dout, kind, (n, d))
    return xp.broadcast_to((dout / t)[:, None, :], (n, t, d))


class Embedding(Layer):
    """`embedding_forward` of examples of indices, with parameter W (num_embeddings, dim).

    Parameters
    ----------
    num_embeddings : int
        V: indices are from 0 to V - 1.
    dim : int
        D, the number of features.
    init : initializer
        First values of W.
    """

    takes_integers = True
    torch_names: ClassVar[dict[str, str]] = {"W": "weight"}

    def __init__(
        self, num_embeddings: int, dim: int, *, init: Initializer = initializers.small_normal, name: str = ""
    ) -> None:
        super().__init__(name)
        where = name or "embedding"
        self.num_embeddings = check_whole(where, "num_embeddings", num_embeddings)
        self.dim = check_whole(where, "dim", dim)
        self.init = check_init(where, init)

    def output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape, self.dim)

    def param_specs(self, input_shape: Shape) -> dict[str, Spec]:
        return {"W": Spec((self.num_embeddings, self.dim), self.init)}

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        return embedding_forward(x, self.params["W"])

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        return None, {"W": embedding_backward(dout, cache)}  # there is no gradient by integers


class PositionalEmbedding(Layer):
    """`positional_embedding_forward` of examples (T, D), with parameter W (T, D).

    Parameters
    ----------
    init : initializer
        First values of W.
    """

    torch_names: ClassVar[dict[str, str]] = {"W": ""}  # a parameter of the net itself
    torch_batched: ClassVar[frozenset[str]] = frozenset({"W"})

    def __init__(self, *, init: Initializer = initializers.small_normal, name: str = "") -> None:
        super().__init__(name)
        self.init = check_init(name or "positionalembedding", init)

    def output_shape(self, input_shape: Shape) -> Shape:
        return _check_tokens(self.path or "positionalembedding", input_shape)

    def param_specs(self, input_shape: Shape) -> dict[str, Spec]:
        return {"W": Spec(input_shape, self.init)}

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        return positional_embedding_forward(x, self.params["W"])

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        dx, dw = positional_embedding_backward(dout, cache)
        return dx, {"W": dw}


class PatchEmbedding(Layer):
    """`patch_embedding_forward`: images (C, H, W) to tokens (T, D), with parameters W (D, C, size, size) and b (D,).

    W has the shape of the equal convolution's filters.

    Parameters
    ----------
    size : int
        The side of a patch; it divides H and W.
    dim : int
        D, the number of features of a token.
    init : initializer
        First values of W; b starts at zeros.
    """

    torch_names: ClassVar[dict[str, str]] = {"W": "weight", "b": "bias"}

    def __init__(self, size: int, dim: int, *, init: Initializer = initializers.small_normal, name: str = "") -> None:
        super().__init__(name)
        where = name or "patchembedding"
        self.size, self.dim = check_whole(where, "size", size), check_whole(where, "dim", dim)
        self.init = check_init(where, init)

    def output_shape(self, input_shape: Shape) -> Shape:
        if len(input_shape) != 3 or 0 in input_shape or input_shape[1] % self.size or input_shape[2] % self.size:
            where = self.path or "patchembedding"
            raise ValueError(
                f"{where}: expected input of shape (C, H, W), H and W multiples of {self.size}; received {input_shape}"
            )
        return ((input_shape[1] // self.size) * (input_shape[2] // self.size), self.dim)

    def flops(self, input_shape: Shape) -> int:
        return 2 * math.prod(input_shape) * self.dim

    def param_specs(self, input_shape: Shape) -> dict[str, Spec]:
        return {
            "W": Spec((self.dim, input_shape[0], self.size, self.size), self.init, decay=True),
            "b": Spec((self.dim,), initializers.zeros),
        }

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        return patch_embedding_forward(x, self.params["W"], self.params["b"])

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        if input_grad:
            dx, dw, db = patch_embedding_backward(dout, cache)
        else:
            dx, (dw, db) = None, _patch_param_grads(dout, cache)
        return dx, {"W": dw, "b": db}


class TokenMean(Layer):
    """`token_mean_forward` of examples (T, D): the mean (D,) of their tokens."""

    def output_shape(self, input_shape: Shape) -> Shape:
        return _check_tokens(self.path or "tokenmean", input_shape)[1:]

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        return token_mean_forward(x)

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        return token_mean_backward(dout, cache), {}


def _check_tokens(where: str, input_shape: Shape) -> Shape:
    if len(input_shape) != 2 or 0 in input_shape:
        raise ValueError(f"{where}: expected input of shape (T, D), at least one token; received {input_shape}")
    return input_shape
