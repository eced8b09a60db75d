"""Kernels for PyTorch: its own functions."""

from typing import Any

import torch

from xpnn.kernels import kernel


@kernel("special.erf", "torch")
def erf(x: Any) -> Any:
    return torch.special.erf(x)
