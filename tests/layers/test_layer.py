import numpy as np
import pytest

from xpnn import layers
from xpnn.layers import (
    Affine,
    AvgPool,
    BatchNorm,
    Conv,
    Dropout,
    Embedding,
    GroupNorm,
    Layer,
    LayerNorm,
    LeakyReLU,
    Linear,
    MaxPool,
    MultiHeadAttention,
    PatchEmbedding,
    ReLU,
    RMSNorm,
    Scale,
    Sequential,
    Standardize,
)

IMAGES, ONES, VECTORS = np.ones((2, 4, 3, 3)), np.ones(4), np.ones((2, 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Conv("4", 3), "conv: expected filters, a whole number of at least 1, below 2**31; received '4'"),
        (lambda: Conv(4, 3, groups="2"), "conv: expected groups, a whole number of at least 1, below 2**31"),
        (lambda: Conv(4, 3, bias="no"), "conv: expected bias, True or False; received 'no'"),
        (lambda: Conv(4, 3, train_weights=None), "conv: expected train_weights, True or False; received None"),
        (lambda: Conv(4, 3, stride=10**30), "conv: expected a stride of at least 1, one number or two below 2**31"),
        (lambda: Conv(10**30, 3), "conv: expected filters, a whole number of at least 1, below 2**31; received 10000"),
        (lambda: Conv(name=3, filters=4, kernel=3), "conv: expected name, a string; received 3"),
        (lambda: ReLU(name=None), "relu: expected name, a string; received None"),
        (lambda: Sequential(ReLU(), name=3), "sequential: expected name, a string; received 3"),
        (lambda: Affine("a"), "affine: expected units, a whole number of at least 1, below 2**31; received 'a'"),
        (lambda: Affine(0, name="out"), "out: expected units, a whole number of at least 1, below 2**31; received 0"),
        (lambda: Linear("a"), "linear: expected units, a whole number of at least 1, below 2**31; received 'a'"),
        (lambda: Linear(2, bias=3), "linear: expected bias, True or False; received 3"),
        (lambda: Dropout("a"), "dropout: expected p, the probability to drop, in [0, 1); received 'a'"),
        (lambda: Dropout(None), "dropout: expected p, the probability to drop, in [0, 1); received None"),
        (lambda: Dropout(dropout_param={"p": 0.5, "sed": 1}), "dropout: expected a dict of p, mode, seed and rng; rec"),
        (lambda: Standardize(0, "a"), "standardize: expected std, numbers above 0; received 'a'"),
        (lambda: Standardize(0.0, 0.0), "standardize: expected std, numbers above 0; received 0.0"),
        (lambda: Standardize("a"), "standardize: expected mean, finite numbers; received 'a'"),
        (lambda: LeakyReLU("a"), "leaky_relu: expected a finite negative_slope of at least 0; received 'a'"),
        (lambda: BatchNorm(momentum="a"), "batchnorm: expected momentum in [0, 1]; received 'a'"),
        (lambda: BatchNorm(eps="a"), "batchnorm: expected a finite eps >= 0; received 'a'"),
        (lambda: BatchNorm(scale="no"), "batchnorm: expected scale, True or False; received 'no'"),
        (lambda: Scale("a"), "scale: expected a finite factor; received 'a'"),
        (lambda: Scale(10**400), "scale: expected a finite factor; received 1000"),
        (lambda: GroupNorm("a"), "groupnorm: expected groups, a whole number of at least 1, below 2**31; received 'a'"),
        (lambda: LayerNorm(eps="a"), "layernorm: expected a finite eps >= 0; received 'a'"),
        (lambda: RMSNorm(eps=None), "rmsnorm: expected a finite eps >= 0; received None"),
        (lambda: MultiHeadAttention("a"), "multiheadattention: expected heads, a whole number of at least 1, below"),
        (lambda: MultiHeadAttention(2, causal="a"), "multiheadattention: expected causal, True or False; received 'a'"),
        (lambda: Embedding("a", 2), "embedding: expected num_embeddings, a whole number of at least 1, below 2**31"),
        (lambda: Embedding(2, "a"), "embedding: expected dim, a whole number of at least 1, below 2**31; received 'a'"),
        (lambda: PatchEmbedding("a", 2), "patchembedding: expected size, a whole number of at least 1, below 2**31"),
        (lambda: PatchEmbedding(2, 0), "patchembedding: expected dim, a whole number of at least 1, below 2**31; rec"),
        (lambda: MaxPool("a"), "maxpool: expected a window of at least 1, one number or two below 2**31; received 'a'"),
        (lambda: AvgPool(2, 0), "avgpool: expected a stride of at least 1, one number or two below 2**31; received 0"),
        (lambda: layers.initializers.normal("a"), "normal: expected a standard deviation of at least 0; received 'a'"),
        (lambda: layers.initializers.uniform("a"), "uniform: expected bound above 0; received 'a'"),
    ],
)
def test_an_impossible_setting_is_refused_by_the_name_of_its_layer(make, message):
    with pytest.raises((TypeError, ValueError)) as error:
        make()
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: layers.spatial_groupnorm_forward(IMAGES, ONES, ONES, "a", {}),
            "spatial_groupnorm: expected G, a whole number of at least 1, below 2**31; received 'a'",
        ),
        (
            lambda: layers.conv_forward(IMAGES, IMAGES, None, None),
            "conv: expected a dict of stride, pad, dilation and groups; received NoneType",
        ),
        (
            lambda: layers.max_pool_forward(IMAGES, None),
            "max_pool: expected a dict of pool_height, pool_width and stride; received NoneType",
        ),
        (
            lambda: layers.batchnorm_forward(VECTORS, ONES, ONES, {"mode": "train", "epsilon": 100.0}),
            "batchnorm: expected a dict of mode, eps, momentum, unbiased, running_mean and running_var; "
            "received 'epsilon'",
        ),
        (
            lambda: layers.spatial_batchnorm_forward(IMAGES, ONES, ONES, {"mode": "train", "epsilon": 100.0}),
            "batchnorm: expected a dict of mode, eps, momentum, unbiased, running_mean and running_var; "
            "received 'epsilon'",
        ),
        (
            lambda: layers.layernorm_forward(VECTORS, ONES, ONES, {"epsilon": 1.0}),
            "layernorm: expected a dict of eps and mode; received 'epsilon'",
        ),
        (
            lambda: layers.rmsnorm_forward(VECTORS, ONES, {"epsilon": 1.0}),
            "rmsnorm: expected a dict of eps and mode; received 'epsilon'",
        ),
        (
            lambda: layers.spatial_groupnorm_forward(IMAGES, ONES, ONES, 2, {"epsilon": 1.0}),
            "spatial_groupnorm: expected a dict of eps and mode; received 'epsilon'",
        ),
        (
            lambda: layers.dropout_forward(VECTORS, {"mode": "train", "p": 0.5, "sed": 1}),
            "dropout: expected a dict of p, mode, seed and rng; received 'sed'",
        ),
        (
            lambda: layers.dropout_forward(VECTORS, {"mode": "train", "p": "a"}),
            "dropout: expected p, the probability to drop, in [0, 1); received 'a'",
        ),
        (
            lambda: layers.softmax_loss(VECTORS, np.zeros(2, dtype="int64"), label_smoothing="a"),
            "softmax_loss: expected label_smoothing from 0 to 1; received 'a'",
        ),
        (
            lambda: layers.layernorm_forward(np.full((2, 4), "abc"), ONES, ONES, {}),
            "layernorm: expected x of a floating-point dtype; received str",
        ),
    ],
)
def test_an_impossible_argument_is_refused_by_the_name_of_its_function(call, message):
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    assert str(error.value) == message


def test_the_norms_of_an_example_take_the_mode_that_course_code_passes():
    param = {"mode": "train"}
    layers.layernorm_forward(VECTORS, ONES, ONES, param)
    layers.spatial_groupnorm_forward(IMAGES, ONES, ONES, 2, param)
    assert param == {"mode": "train"}


@pytest.mark.parametrize("method", ["forward", "backward"])
def test_a_layer_without_a_method_says_which_of_which_class(method):
    class Half(Layer):
        pass

    with pytest.raises(NotImplementedError, match=f"^Half: expected a method {method}; the class has none"):
        getattr(Half(), method)(VECTORS, None)
