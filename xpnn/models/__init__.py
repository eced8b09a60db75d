"""Nets built from layers."""

from xpnn.models.fully_connected import FullyConnectedNet, TwoLayerNet
from xpnn.models.model import Model

__all__ = ["FullyConnectedNet", "Model", "TwoLayerNet"]
