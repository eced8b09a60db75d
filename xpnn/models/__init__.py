"""Nets built from layers."""

from xpnn.models.airbench import Airbench
from xpnn.models.convnet import ThreeLayerConvNet
from xpnn.models.fully_connected import FullyConnectedNet, TwoLayerNet
from xpnn.models.model import Model
from xpnn.models.resnet import ResNet, ResNet9
from xpnn.models.vit import VisionTransformer

__all__ = [
    "Airbench",
    "FullyConnectedNet",
    "Model",
    "ResNet",
    "ResNet9",
    "ThreeLayerConvNet",
    "TwoLayerNet",
    "VisionTransformer",
]
