"""Layers: the course's functions, and the Layer objects built on them. A file per family."""

from xpnn.layers.activation import ReLU, relu_backward, relu_forward
from xpnn.layers.affine import Affine, affine_backward, affine_forward
from xpnn.layers.composite import (
    affine_batchnorm_relu_backward,
    affine_batchnorm_relu_forward,
    affine_relu_backward,
    affine_relu_forward,
)
from xpnn.layers.dropout import Dropout, dropout_backward, dropout_forward
from xpnn.layers.layer import Layer, Spec
from xpnn.layers.normalization import BatchNorm, Standardize, batchnorm_backward, batchnorm_forward
from xpnn.layers.sequential import Sequential
from xpnn.losses import softmax_loss, svm_loss

__all__ = [
    "Affine",
    "BatchNorm",
    "Dropout",
    "Layer",
    "ReLU",
    "Sequential",
    "Spec",
    "Standardize",
    "affine_backward",
    "affine_batchnorm_relu_backward",
    "affine_batchnorm_relu_forward",
    "affine_forward",
    "affine_relu_backward",
    "affine_relu_forward",
    "batchnorm_backward",
    "batchnorm_forward",
    "dropout_backward",
    "dropout_forward",
    "relu_backward",
    "relu_forward",
    "softmax_loss",
    "svm_loss",
]
