"""Containers of branches: sums, concatenations and residuals, nested to any depth."""

import numpy as np
import pytest

from oracles import EPS, normals
from xpnn.gradient_check import eval_numerical_gradient, rel_error
from xpnn.layers import (
    Affine,
    BatchNorm,
    Concat,
    Conv,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Identity,
    MaxPool,
    Parallel,
    ReLU,
    Residual,
    Sequential,
)
from xpnn.models import Model


def built(net, input_shape, kind, dtype="float64"):
    return Model(net, input_shape, dtype=dtype, backend=kind.backend, rng=0)


def forward_and_backward(layer, x, dout):
    out, cache = layer.forward(x)
    return out, *layer.backward(dout, cache)


def test_parallel_adds_its_branches(kind, dtype):
    net = Parallel(Affine(3), Affine(3))
    model = built(net, (4,), kind, dtype)
    assert list(model.params) == ["affine1.W", "affine1.b", "affine2.W", "affine2.b"]
    x, dout = kind(normals((5, 4)), dtype), kind(normals((5, 3), 1), dtype)
    out, dx, grads = forward_and_backward(net, x, dout)
    parts = [forward_and_backward(branch, x, dout) for branch in net.layers.values()]
    kind.assert_close(out, sum(kind.to_numpy(part[0]) for part in parts))
    kind.assert_close(dx, sum(kind.to_numpy(part[1]) for part in parts))
    for key, part in zip(net.layers, parts, strict=True):
        kind.assert_close(grads[f"{key}.W"], kind.to_numpy(part[2]["W"]))


def test_concat_puts_channels_side_by_side(kind, dtype):
    net = Concat(Identity(), Conv(2, 1), Identity(name="again"))
    built(Sequential(net, Flatten()), (1, 2, 3), kind, dtype)
    x, dout = kind(normals((5, 1, 2, 3)), dtype), kind(normals((5, 4, 2, 3), 1), dtype)
    assert net.output_shape((1, 2, 3)) == (4, 2, 3)
    out, dx, grads = forward_and_backward(net, x, dout)
    middle, middle_dx, middle_grads = forward_and_backward(net.layers["conv1"], x, dout[:, 1:3, ...])
    x, dout = kind.to_numpy(x), kind.to_numpy(dout)
    kind.assert_close(out, np.concatenate([x, kind.to_numpy(middle), x], axis=1))
    kind.assert_close(dx, dout[:, :1] + kind.to_numpy(middle_dx) + dout[:, 3:], atol=4 * EPS[dtype])
    assert list(grads) == ["conv1.W", "conv1.b"]
    kind.assert_close(grads["conv1.W"], kind.to_numpy(middle_grads["W"]))


def test_residual_adds_its_input(kind, dtype):
    net = Residual(Affine(4), ReLU())
    built(net, (4,), kind, dtype)
    x, dout = kind(normals((5, 4)), dtype), kind(normals((5, 4), 1), dtype)
    out, dx, _ = forward_and_backward(net, x, dout)
    inner, inner_dx, _ = forward_and_backward(_as_sequential(net), x, dout)
    kind.assert_close(out, kind.to_numpy(inner) + kind.to_numpy(x))
    kind.assert_close(dx, kind.to_numpy(inner_dx) + kind.to_numpy(dout))


def _as_sequential(residual):
    """The residual's own layers without the sum; they keep their parameters."""
    plain = Sequential(Identity())
    plain.layers = residual.layers
    return plain


def test_a_shortcut_may_change_the_shape(kind, dtype):
    net = Residual(Affine(3), shortcut=Affine(3))
    model = built(net, (4,), kind, dtype)
    assert list(model.params) == ["affine1.W", "affine1.b", "shortcut.W", "shortcut.b"]
    x, dout = kind(normals((5, 4)), dtype), kind(normals((5, 3), 1), dtype)
    out, dx, grads = forward_and_backward(net, x, dout)
    main = forward_and_backward(net.layers["affine1"], x, dout)
    added = forward_and_backward(net.shortcut, x, dout)
    kind.assert_close(out, kind.to_numpy(main[0]) + kind.to_numpy(added[0]))
    kind.assert_close(dx, kind.to_numpy(main[1]) + kind.to_numpy(added[1]))
    kind.assert_close(grads["shortcut.W"], kind.to_numpy(added[2]["W"]))


def deep_net():
    block = Residual(
        Conv(3, 3, pad="same"),
        BatchNorm(),
        ReLU(),
        Concat(Identity(), Sequential(Conv(2, 1, name="narrow"), ReLU()), name="split"),
        shortcut=Sequential(Conv(5, 1), BatchNorm()),
        name="block2",
    )
    return Sequential(
        Conv(2, 3, name="stem"), block, Parallel(MaxPool(2), MaxPool(2, name="again")), GlobalAvgPool(), Affine(3)
    )


def test_names_read_like_paths():
    model = Model(deep_net(), (2, 6, 6), rng=0)
    assert [name for name in model.params if name.startswith("block2")] == [
        "block2.conv1.W",
        "block2.conv1.b",
        "block2.batchnorm1.gamma",
        "block2.batchnorm1.beta",
        "block2.split.sequential1.narrow.W",
        "block2.split.sequential1.narrow.b",
        "block2.shortcut.conv1.W",
        "block2.shortcut.conv1.b",
        "block2.shortcut.batchnorm1.gamma",
        "block2.shortcut.batchnorm1.beta",
    ]
    assert "block2.shortcut.batchnorm1.running_mean" in model.state


def test_gradients_of_a_deep_net_agree_with_numerical_ones(kind):
    model = built(deep_net(), (2, 6, 6), kind)
    for i, name in enumerate(model.params):  # away from zero, where the ReLUs have corners
        model.params[name] = normals(model.params.shapes[name], i) * 0.5
    x, y = kind(normals((3, 2, 6, 6), 100)), kind([0, 2, 1], "int64")
    _, grads = model.loss(x, y)
    for name in ("stem.W", "block2.split.sequential1.narrow.W", "block2.shortcut.conv1.W", "affine1.b"):
        numerical = eval_numerical_gradient(lambda _: model.loss(x, y)[0], model.params[name], verbose=False)
        assert rel_error(grads[name], numerical) < 1e-7


def test_no_gradient_by_the_images_is_computed_where_none_is_needed(kind):
    for net in (
        Residual(Affine(4), shortcut=Affine(4)),
        Residual(ReLU(), shortcut=Affine(4)),
        Residual(Affine(4)),
        Parallel(Affine(4), Identity()),
        Concat(Affine(4), Identity()),
    ):
        built(net, (4,), kind)
        x = kind(normals((3, 4)))
        out, cache = net.forward(x)
        dx, expected = net.backward(out, cache)
        assert dx is not None
        nothing, grads = net.backward(out, cache, input_grad=False)
        assert nothing is None
        assert grads.keys() == expected.keys()
        for name in grads:
            kind.assert_close(grads[name], kind.to_numpy(expected[name]))


def test_the_layer_of_the_first_nan_is_found_within_branches():
    model = Model(deep_net(), (2, 6, 6), rng=0)
    x = normals((2, 2, 6, 6)).astype("float32")
    assert model.first_nonfinite(x) == ""
    for name in ("block2.shortcut.conv1", "block2.split.sequential1.narrow", "stem"):
        broken = model.params[f"{name}.W"]
        broken[...] = np.nan
        assert model.first_nonfinite(x) == name


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            Residual(Affine(3), name="block"),
            r"block: expected a shortcut of shape \(3,\), as the layers give; received \(4,\)",
        ),
        (
            Parallel(Affine(3), Affine(4)),
            r"parallel: expected branches with .*; received affine1: \(3,\), affine2: \(4,\)",
        ),
        (
            Concat(Flatten(), Sequential(Affine(2), BatchNorm()), Conv(1, 1)),
            r"conv1: expected input of shape \(C, H, W\)",
        ),
    ],
)
def test_branches_that_do_not_fit_are_reported(net, message):
    with pytest.raises(ValueError, match=message):
        net.output_shape((4,))


def test_concat_refuses_images_of_other_sizes():
    with pytest.raises(
        ValueError, match=r"concat: expected outputs .* channels alone; received identity1: \(1, 4, 4\), maxp"
    ):
        Concat(Identity(), MaxPool(2)).output_shape((1, 4, 4))


@pytest.mark.parametrize("container", [Sequential, Parallel, Concat, Residual])
def test_what_is_no_layer_is_refused(container):
    name = container.__name__.lower()
    with pytest.raises(TypeError, match=f"{name}: expected layers; received int"):
        container(3)
    with pytest.raises(ValueError, match=f"{name}: expected at least one layer; received none"):
        container()
    with pytest.raises(ValueError, match=f"{name}: expected distinct names without dots; received 'a'"):
        container(Affine(2, name="a"), Affine(2, name="a"))


def test_shortcut_must_be_a_layer_and_its_name_is_taken():
    with pytest.raises(TypeError, match="residual: expected a layer for shortcut; received 3"):
        Residual(Affine(3), shortcut=3)
    with pytest.raises(ValueError, match="residual: expected layers with other names than 'shortcut'"):
        Residual(Affine(3, name="shortcut"))


def test_flatten_keeps_the_order_whatever_the_layout(kind, dtype):
    x = normals((2, 3, 2, 2))
    last = kind.xp.permute_dims(kind(np.ascontiguousarray(x.transpose(0, 2, 3, 1)), dtype), (0, 3, 1, 2))
    out, cache = Flatten().forward(last)
    kind.assert_close(out, x.reshape(2, 12).astype(dtype))
    dx, _ = Flatten().backward(out, cache)
    kind.assert_close(dx, x.astype(dtype))
    assert Flatten().output_shape((3, 2, 2)) == (12,)


def test_scores_are_the_output_of_forward_in_test_mode(kind):
    block = Sequential(Residual(Affine(4), BatchNorm(), Dropout(0.5), shortcut=Affine(4)), ReLU())
    net = Sequential(Concat(block, Parallel(Affine(2), Affine(2))), Affine(3))
    model = built(net, (4,), kind)
    x = kind(normals((5, 4)))
    model.loss(x, kind(np.array([0, 1, 2, 0, 1])))  # moves the running statistics
    expected, _ = net.forward(x, train=False)
    assert kind.to_numpy(model.loss(x)).tolist() == kind.to_numpy(expected).tolist()


class Doubling:
    def forward(self, x, train=False):
        out, cache = super().forward(x, train)
        return 2.0 * out, cache


class Doubled(Doubling, Sequential):
    pass


class Quadrupled(Doubled):
    def forward(self, x, train=False):
        out, cache = super().forward(x, train)
        return 2.0 * out, cache


@pytest.mark.parametrize("container", [Doubled, Quadrupled])
def test_a_container_with_a_forward_of_its_own_is_asked_for_scores(kind, container):
    net = container(Affine(3))
    model = built(Sequential(net), (4,), kind)
    x = kind(normals((5, 4)))
    assert kind.to_numpy(model.loss(x)).tolist() == kind.to_numpy(net.forward(x)[0]).tolist()
