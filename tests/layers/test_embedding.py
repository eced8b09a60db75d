"""Tokens: embeddings of indices, of patches and of positions, and their mean."""

import numpy as np
import pytest

from oracles import normals
from xpnn import backend as backends
from xpnn.layers import (
    Embedding,
    PatchEmbedding,
    PositionalEmbedding,
    Sequential,
    TokenMean,
    embedding,
    embedding_backward,
    embedding_forward,
    patch_embedding_backward,
    patch_embedding_forward,
    positional_embedding_forward,
    token_mean_forward,
)
from xpnn.models import Model

TABLE = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])


@pytest.mark.parametrize("integers", ["int64", "int32", "uint8"])
def test_an_index_takes_its_row(kind, dtype, integers):
    out, _ = embedding_forward(kind([[2, 0], [2, 1]], integers), kind(TABLE, dtype))
    kind.check(out, dtype, (2, 2, 2))
    kind.assert_close(out, [[[5.0, 6.0], [1.0, 2.0]], [[5.0, 6.0], [3.0, 4.0]]])


@pytest.mark.parametrize("numbers", [2**22, 6, 1])
def test_the_gradients_of_equal_indices_add_up(kind, dtype, monkeypatch, numbers):
    monkeypatch.setattr(embedding, "ONE_HOT_NUMBERS", numbers)  # all at once, two or one at a time
    _, cache = embedding_forward(kind([[2, 0], [2, 2]], "int64"), kind(TABLE, dtype))
    dw = embedding_backward(kind([[[1.0, 2.0], [3.0, 4.0]], [[10.0, 20.0], [100.0, 200.0]]], dtype), cache)
    kind.check(dw, dtype, (3, 2))
    kind.assert_close(dw, [[3.0, 4.0], [0.0, 0.0], [111.0, 222.0]])


def test_no_indices_give_no_rows_and_zero_gradients(kind, dtype):
    out, cache = embedding_forward(kind(np.zeros((0, 3)), "int64"), kind(TABLE, dtype))
    kind.check(out, dtype, (0, 3, 2))
    kind.assert_close(embedding_backward(out, cache), np.zeros((3, 2)))


@pytest.mark.parametrize("index", [-1, 3])
def test_an_index_out_of_range_is_reported(kind, index):
    if kind.backend.asynchronous:
        pytest.skip("a GPU is not waited for")
    with pytest.raises(ValueError, match=f"embedding: expected indices from 0 to 2; received {index}"):
        embedding_forward(kind([[0, index]], "int64"), kind(TABLE))
    with pytest.raises(ValueError, match=f"expected indices from 0 to 2; received {2**63}$"):
        embedding_forward(kind(np.array([[0, 2**63]], "uint64")), kind(TABLE))


def test_indices_that_are_no_integers_are_refused(kind):
    with pytest.raises(TypeError, match="embedding: expected indices of an integer dtype; received float64"):
        embedding_forward(kind([[0.0]]), kind(TABLE))


def test_indices_of_another_kind_are_refused():
    strict = backends.get("array-api-strict")
    if not strict.is_available():
        pytest.skip(strict.reason)
    with pytest.raises(TypeError, match=r"^embedding: expected indices and w of one kind; received indices: array_api"):
        embedding_forward(strict.asarray([0]), TABLE)
    with pytest.raises(TypeError, match=r"received indices: list, w: numpy\.ndarray"):
        embedding_forward([0], TABLE)


def test_a_table_that_is_no_matrix_is_reported(kind):
    with pytest.raises(ValueError, match=r"^embedding: expected w \(V, D\); received w \(3,\)"):
        embedding_forward(kind([0], "int64"), kind(np.zeros(3)))


def test_the_embedding_layer_takes_indices(kind, dtype):
    net = Embedding(3, 2)
    model = Model(net, (2,), dtype=dtype, backend=kind.backend, rng=0)
    assert net.takes_integers
    assert model.output_shape == (2, 2)
    model.params = {"W": kind(TABLE, dtype)}
    out, cache = net.forward(kind([[1, 1]], "int64"))
    kind.assert_close(out, [[[3.0, 4.0], [3.0, 4.0]]])
    dx, grads = net.backward(kind(np.ones((1, 2, 2)), dtype), cache)
    assert dx is None
    kind.assert_close(grads["W"], [[0.0, 0.0], [2.0, 2.0], [0.0, 0.0]])


def test_patches_become_tokens_row_by_row(kind, dtype):
    x = np.arange(16.0).reshape(1, 1, 4, 4)
    w = [[[[1.0, 0.0], [0.0, 0.0]]], [[[0.0, 0.0], [0.0, 1.0]]]]  # the first and the last pixel of a patch
    out, cache = patch_embedding_forward(kind(x, dtype), kind(w, dtype), kind([0.0, 100.0], dtype))
    kind.check(out, dtype, (1, 4, 2))
    kind.assert_close(out, [[[0.0, 105.0], [2.0, 107.0], [8.0, 113.0], [10.0, 115.0]]])
    dx, dw, db = patch_embedding_backward(kind([[[1.0, 0], [2.0, 0], [3.0, 0], [0, 4.0]]], dtype), cache)
    kind.assert_close(dx, [[[[1.0, 0, 2, 0], [0, 0, 0, 0], [3, 0, 0, 0], [0, 0, 0, 4]]]])
    kind.assert_close(dw, [[[[28.0, 34], [52, 58]]], [[[40, 44], [56, 60]]]])
    kind.assert_close(db, [6.0, 4.0])


@pytest.mark.parametrize(
    ("x", "w", "b"),
    [
        ((2, 3, 5, 4), (5, 3, 2, 2), (5,)),
        ((2, 3, 4, 4), (5, 2, 2, 2), (5,)),
        ((2, 3, 4, 4), (5, 3, 2, 4), (5,)),
        ((2, 3, 4, 4), (5, 3, 2, 2), (4,)),
        ((3, 4, 4), (5, 3, 2, 2), (5,)),
        ((2, 3, 4, 4), (5, 3, 0, 0), (5,)),
    ],
)
def test_patches_that_do_not_fit_are_reported(kind, x, w, b):
    with pytest.raises(ValueError, match=r"^patch_embedding: expected x \(N, C, H, W\)") as error:
        patch_embedding_forward(kind(np.zeros(x)), kind(np.zeros(w)), kind(np.zeros(b)))
    assert f"received x {x}, w {w} and b {b}" in str(error.value)


def test_the_patch_embedding_layer_has_the_parameters_of_the_equal_convolution(kind, dtype):
    net = PatchEmbedding(2, 5)
    model = Model(net, (3, 4, 6), dtype=dtype, backend=kind.backend, rng=0)
    assert model.output_shape == (6, 5)
    assert {name: tuple(array.shape) for name, array in model.params.items()} == {"W": (5, 3, 2, 2), "b": (5,)}
    assert net.flops((3, 4, 6)) == 6 * 2 * (3 * 2 * 2) * 5
    out, cache = net.forward(kind(normals((2, 3, 4, 6)), dtype))
    kind.check(out, dtype, (2, 6, 5))
    dx, grads = net.backward(out, cache)
    kind.check(dx, dtype, (2, 3, 4, 6))
    kind.check(grads["W"], dtype, (5, 3, 2, 2))
    kind.check(grads["b"], dtype, (5,))


def test_a_position_adds_its_vector_to_every_example(kind, dtype):
    net = PositionalEmbedding()
    model = Model(net, (2, 2), dtype=dtype, backend=kind.backend, rng=0)
    model.params = {"W": kind([[1.0, 2.0], [3.0, 4.0]], dtype)}
    out, cache = net.forward(kind(np.zeros((3, 2, 2)), dtype))
    kind.check(out, dtype)
    kind.assert_close(out, [[[1.0, 2.0], [3.0, 4.0]]] * 3)
    dx, grads = net.backward(kind(np.ones((3, 2, 2)), dtype), cache)
    kind.assert_close(dx, np.ones((3, 2, 2)))
    kind.assert_close(grads["W"], np.full((2, 2), 3.0))


@pytest.mark.parametrize(("x", "w"), [((2, 3, 4), (4, 3)), ((2, 3, 4), (2, 3, 4)), ((3, 4), (3, 4)), ((2, 3, 4), (4,))])
def test_positions_that_do_not_fit_are_reported(kind, x, w):
    with pytest.raises(ValueError, match=r"^positional_embedding: expected x \(N, T, D\) and w \(T, D\)") as error:
        positional_embedding_forward(kind(np.zeros(x)), kind(np.zeros(w)))
    assert f"received x {x} and w {w}" in str(error.value)


@pytest.mark.parametrize("x", [(2, 3), (2, 0, 3), (2, 3, 1, 1)])
def test_tokens_that_have_no_mean_are_reported(kind, x):
    with pytest.raises(ValueError, match=r"^token_mean: expected x \(N, T, D\) of at least one token") as error:
        token_mean_forward(kind(np.zeros(x)))
    assert f"received x {x}" in str(error.value)


def test_embeddings_start_at_a_deviation_of_0_02(kind):
    for net, shape in [
        (Embedding(100, 50), (4,)),
        (PositionalEmbedding(), (100, 50)),
        (PatchEmbedding(4, 100), (3, 8, 8)),
    ]:
        w = kind.to_numpy(Model(net, shape, backend=kind.backend, rng=0).params["W"])
        # the deviation of n draws is itself off by 1 / sqrt(2 n) of it, one in some hundred million times by 6 of these
        np.testing.assert_allclose(w.std(), 0.02, rtol=6 / (2 * w.size) ** 0.5)


def test_the_mean_of_the_tokens_spreads_its_gradient_evenly(kind, dtype):
    net = TokenMean()
    assert net.output_shape((4, 2)) == (2,)
    out, cache = net.forward(kind([[[1.0, 2.0], [3.0, 8.0]]], dtype))
    kind.check(out, dtype)
    kind.assert_close(out, [[2.0, 5.0]])
    dx, grads = net.backward(kind([[4.0, 6.0]], dtype), cache)
    kind.check(dx, dtype)
    kind.assert_close(dx, [[[2.0, 3.0], [2.0, 3.0]]])
    assert grads == {}


@pytest.mark.parametrize(
    ("net", "shape", "message"),
    [
        (
            PatchEmbedding(4, 8),
            (3, 8, 6),
            r"^patchembedding1: expected .* H and W multiples of 4; received",
        ),
        (PatchEmbedding(4, 8), (8, 8), r"^patchembedding1: expected input of shape \(C, H, W\)"),
        (PositionalEmbedding(), (8,), r"^positionalembedding1: expected input of shape \(T, D\), at least one token"),
        (
            TokenMean(),
            (3, 8, 8),
            r"^tokenmean1: expected .*; received \(3, 8, 8\)",
        ),
        (TokenMean(), (0, 8), r"^tokenmean1: expected input of shape \(T, D\), at least one token"),
    ],
)
def test_an_input_that_does_not_fit_is_reported_when_the_net_is_built(net, shape, message):
    with pytest.raises(ValueError, match=message):
        Sequential(net).output_shape(shape)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: Embedding(0, 2), "^embedding: expected num_embeddings, a whole number of at least 1, .*; received 0"),
        (lambda: Embedding(2, 0, name="words"), "^words: expected dim, a whole number of at least 1, .*; received 0"),
        (lambda: PatchEmbedding(0, 8), "^patchembedding: expected size, a whole number of at least 1, .*; received 0"),
    ],
)
def test_impossible_sizes_are_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        layer()


@pytest.mark.parametrize(
    "layer",
    [lambda: Embedding(2, 2, init=1), lambda: PatchEmbedding(2, 2, init=1), lambda: PositionalEmbedding(init=1)],
)
def test_what_is_no_initializer_is_refused(layer):
    with pytest.raises(TypeError, match="embedding: expected an initializer; received 1"):
        layer()
