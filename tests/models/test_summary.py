"""What a model tells of itself: layers, shapes, parameters, FLOPs."""

import pytest

from xpnn.layers import (
    GELU,
    Affine,
    AvgPool,
    BatchNorm,
    Conv,
    Dropout,
    Embedding,
    Flatten,
    Linear,
    MaxPool,
    MultiHeadAttention,
    PatchEmbedding,
    PositionalEmbedding,
    ReLU,
    Residual,
    Sequential,
)
from xpnn.models import FullyConnectedNet, Model, ResNet, ThreeLayerConvNet

SUMMARY = """\
layer                   output shape  parameters   FLOPs
conv1 (Conv)            (4, 8, 8)            112  13,824
batchnorm1 (BatchNorm)  (4, 8, 8)              8       0
maxpool1 (MaxPool)      (4, 4, 4)              0       0
relu1 (ReLU)            (4, 4, 4)              0       0
affine2 (Affine)        (5,)                 325     640
batchnorm2 (BatchNorm)  (5,)                  10       0
relu2 (ReLU)            (5,)                   0       0
affine3 (Affine)        (10,)                 60     100
in all                  (10,)                515  14,564
"""


def test_a_summary_is_a_table_of_layers(kind, capsys):
    ThreeLayerConvNet((3, 8, 8), 4, 3, 5, use_batchnorm=True, backend=kind.backend, rng=0).summary()
    assert capsys.readouterr().out == SUMMARY


def test_layers_within_branches_have_rows_of_their_own(capsys):
    Model(Sequential(Affine(4), Residual(Affine(4, name="fc"), ReLU())), (2,), rng=0).summary()
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert rows == ["layer", "affine1", "residual1.fc", "residual1.relu1", "in"]


def test_a_single_layer_goes_by_its_kind(capsys):
    Model(Affine(3), (4,), rng=0).summary()
    assert capsys.readouterr().out == (
        "layer   output shape  parameters  FLOPs\n"
        "Affine  (3,)                  15     24\n"
        "in all  (3,)                  15     24\n"
    )


@pytest.mark.parametrize(
    ("layer", "shape", "flops"),
    [
        (Affine(5), (3, 2, 2), 2 * 12 * 5),
        (Linear(5), (7, 4), 2 * 7 * 4 * 5),
        (Conv(6, 3), (4, 8, 9), 2 * (4 * 3 * 3) * 6 * (6 * 7)),
        (Conv(6, (3, 1), stride=2, pad=(1, 0)), (4, 8, 9), 2 * (4 * 3 * 1) * 6 * (4 * 5)),
        (Conv(6, 3, dilation=2, groups=2, bias=False), (4, 8, 9), 2 * (2 * 3 * 3) * 6 * (4 * 5)),
        (Conv(6, 2, train_weights=False), (4, 8, 9), 2 * (4 * 2 * 2) * 6 * (7 * 8)),
        (PatchEmbedding(2, 5), (3, 4, 6), 2 * (3 * 2 * 2) * 5 * (2 * 3)),
        # queries, keys, values and the last projection; scores, and values by them
        (MultiHeadAttention(2), (7, 6), 2 * 4 * 7 * 6 * 6 + 2 * 2 * 7 * 7 * 6),
        (ReLU(), (3, 4, 5), 0),
        (GELU(), (3, 4, 5), 0),
        (BatchNorm(), (3, 4, 5), 0),
        (MaxPool(2), (3, 4, 5), 0),
        (AvgPool(2), (3, 4, 5), 0),
        (Dropout(0.5), (4,), 0),
        (Flatten(), (3, 4, 5), 0),
        (PositionalEmbedding(), (7, 4), 0),
        (Embedding(11, 3), (7,), 0),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, tuple | int) else None,
)
def test_flops_are_two_for_each_product(layer, shape, flops):
    assert layer.flops(shape) == flops


def flops_of(model):
    return sum(layer.flops(shape) for layer, shape in model.net.walk(model.input_shape))


def test_flops_of_a_fully_connected_net():
    assert flops_of(FullyConnectedNet([500, 100], rng=0)) == 2 * (3072 * 500 + 500 * 100 + 100 * 10)


def test_flops_of_resnet_20_are_those_of_the_literature():
    # 40.6 million multiply-adds without shortcuts, as often given; ours has two convolutions of 1 x 1 more
    shortcuts = 16 * 32 * 16 * 16 + 32 * 64 * 8 * 8
    assert flops_of(ResNet(20, rng=0)) / 2 - shortcuts == pytest.approx(40.55e6, abs=0.05e6)
