"""Attention, linear layers and embeddings against PyTorch, over random shapes and memory layouts."""

import math

import numpy as np
import pytest
from oracle_layers import LAYOUTS, assert_equal_layers, draw, give_parameters
from oracle_torch import torch

from oracles import EPS
from xpnn.layers import (
    Affine,
    Embedding,
    Linear,
    MultiHeadAttention,
    PatchEmbedding,
    PositionalEmbedding,
    Sequential,
    TokenMean,
    attention_backward,
    attention_forward,
)

SEEDS = range(6)


def tolerance(terms, dtype, size=1.0):
    """Sums of so many products, mostly of about `size` and below 5 times that, with both signs."""
    return terms * 5 * size * EPS[dtype]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_attention(kind, dtype, seed, causal):
    n, heads, t, s, d, m = map(int, np.random.default_rng(seed).integers(1, 9, 6))
    s = t if causal else s
    *arrays, dout = draw(seed, (n, heads, t, d), (n, heads, s, d), (n, heads, s, m), (n, heads, t, m), dtype=dtype)
    tensors = [torch.from_numpy(a).requires_grad_() for a in arrays]
    expected = torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=causal)
    expected.backward(torch.from_numpy(dout))
    out, cache = attention_forward(*map(kind, arrays), causal=causal)
    atol = tolerance(t + s + d + m, dtype)
    kind.assert_close(out, expected.detach().numpy(), atol=atol)
    for grad, tensor in zip(attention_backward(kind(dout), cache), tensors, strict=True):
        kind.check(grad, dtype, tuple(tensor.shape))
        kind.assert_close(grad, tensor.grad.numpy(), atol=atol)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_multi_head_attention(kind, dtype, seed, causal):
    n, heads, t, size = map(int, np.random.default_rng(seed).integers(1, 6, 4))
    d = heads * size
    layer, module = MultiHeadAttention(heads, causal=causal), torch.nn.MultiheadAttention(d, heads, batch_first=True)
    module = give_parameters(kind, layer, module, (t, d), dtype, seed)
    x, dout = draw(100 + seed, (n, t, d), (n, t, d), dtype=dtype)
    mask = torch.triu(torch.ones(t, t, dtype=torch.bool), 1) if causal else None
    # queries and keys are sums of d products, so sqrt(d) in size; gradients multiply two of them, twice
    atol = tolerance(n * t + 4 * d, dtype, 2.0 * d)
    assert_equal_layers(
        kind, layer, module, x, dout, atol, call=lambda tx: module(tx, tx, tx, need_weights=False, attn_mask=mask)[0]
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_linear(kind, dtype, seed, bias):
    rng = np.random.default_rng(seed)
    *shape, units = map(int, rng.integers(1, 9, rng.integers(3, 6)))
    layer, module = Linear(units, bias=bias), torch.nn.Linear(shape[-1], units, bias)
    module = give_parameters(kind, layer, module, tuple(shape[1:]), dtype, seed)
    x, dout = draw(100 + seed, shape, (*shape[:-1], units), dtype=dtype)
    terms = max(math.prod(shape[:-1]), shape[-1], units)
    assert_equal_layers(kind, layer, module, x, dout, tolerance(terms, dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_affine(kind, dtype, seed, layout):
    *shape, units = map(int, np.random.default_rng(seed).integers(1, 7, 5))
    layer, linear = Affine(units), torch.nn.Linear(math.prod(shape[1:]), units)
    linear = give_parameters(kind, layer, linear, tuple(shape[1:]), dtype, seed)
    x, dout = draw(100 + seed, shape, (shape[0], units), dtype=dtype)
    terms = max(math.prod(shape[1:]), shape[0], units)
    call = lambda tx: linear(tx.flatten(1))  # noqa: E731
    assert_equal_layers(kind, layer, linear, x, dout, tolerance(terms, dtype), layout=layout, call=call)


@pytest.mark.parametrize("seed", SEEDS)
def test_embedding(kind, dtype, seed):
    rng = np.random.default_rng(seed)
    n, t, v, d = map(int, rng.integers(1, 12, 4))
    layer, module = Embedding(v, d), torch.nn.Embedding(v, d)
    module = give_parameters(kind, layer, module, (t,), dtype, seed)
    (dout,) = draw(100 + seed, (n, t, d), dtype=dtype)
    assert_equal_layers(kind, layer, module, rng.integers(0, v, (n, t)), dout, tolerance(n * t, dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_patch_embedding_is_a_convolution(kind, dtype, seed, layout):
    n, c, high, wide, size, d = map(int, np.random.default_rng(seed).integers(1, 5, 6))
    shape, tokens = (n, c, high * size, wide * size), (n, high * wide, d)
    layer, conv = PatchEmbedding(size, d), torch.nn.Conv2d(c, d, size, stride=size)
    conv = give_parameters(kind, layer, conv, shape[1:], dtype, seed)
    x, dout = draw(100 + seed, shape, tokens, dtype=dtype)
    terms = max(n * high * wide, c * size * size, d)
    call = lambda tx: conv(tx).flatten(2).transpose(1, 2)  # noqa: E731
    assert_equal_layers(kind, layer, conv, x, dout, tolerance(terms, dtype), layout=layout, call=call)


class Positions(torch.nn.Module):
    """As vision transformers hold them: a parameter of the net itself, with an axis for the batch."""

    def __init__(self, tokens, dim):
        super().__init__()
        self.pos_embed = torch.nn.Parameter(torch.zeros(1, tokens, dim))

    def forward(self, x):
        return x + self.pos_embed


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_positional_embedding(kind, dtype, seed, layout):
    n, t, d = shape = tuple(map(int, np.random.default_rng(seed).integers(1, 9, 3)))
    layer = Sequential(PositionalEmbedding(name="pos_embed"))
    module = give_parameters(kind, layer, Positions(t, d), (t, d), dtype, seed)
    x, dout = draw(100 + seed, shape, shape, dtype=dtype)
    assert_equal_layers(kind, layer, module, x, dout, tolerance(n, dtype), layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_mean_of_tokens(kind, dtype, seed, layout):
    n, t, d = map(int, np.random.default_rng(seed).integers(1, 9, 3))
    x, dout = draw(100 + seed, (n, t, d), (n, d), dtype=dtype)
    mean = lambda tx: tx.mean(dim=1)  # noqa: E731
    assert_equal_layers(kind, TokenMean(), torch.nn.Identity(), x, dout, tolerance(t, dtype), layout=layout, call=mean)
