"""PyTorch, where it is installed: the oracle of every test in this folder.

With ``XPNN_DEMAND_TORCH`` set, a missing PyTorch is an error; without it, the folder is skipped by name.
"""

import os

import pytest

try:
    import torch
except ModuleNotFoundError:
    if os.environ.get("XPNN_DEMAND_TORCH"):
        raise
    pytest.skip("torch is not installed", allow_module_level=True)

__all__ = ["torch"]
