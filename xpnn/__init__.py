"""xpnn: neural networks written once against the array API standard, on NumPy and CuPy."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from xpnn.models import (
        Airbench,
        FullyConnectedNet,
        Model,
        ResNet,
        ResNet9,
        ThreeLayerConvNet,
        TwoLayerNet,
        VisionTransformer,
    )
    from xpnn.training import Solver

# Loaded when first asked for, so that `import xpnn` is quick.
_MODELS = (
    "Airbench",
    "FullyConnectedNet",
    "Model",
    "ResNet",
    "ResNet9",
    "ThreeLayerConvNet",
    "TwoLayerNet",
    "VisionTransformer",
)
_HOMES = {**dict.fromkeys(_MODELS, "xpnn.models"), "Solver": "xpnn.training"}
_ROOMS = ("backend", "data", "gradient_check", "layers", "losses", "models", "optim", "random", "training")

__all__ = [
    "Airbench",
    "FullyConnectedNet",
    "Model",
    "ResNet",
    "ResNet9",
    "Solver",
    "ThreeLayerConvNet",
    "TwoLayerNet",
    "VisionTransformer",
    "__version__",
    *_ROOMS,
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"xpnn.{name}")
    raise AttributeError(f"module 'xpnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
