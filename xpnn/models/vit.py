"""A small vision transformer."""

import re
from typing import Any

from xpnn.arguments import check_whole
from xpnn.backend import Shape
from xpnn.layers import (
    GELU,
    LayerNorm,
    Linear,
    MultiHeadAttention,
    PatchEmbedding,
    PositionalEmbedding,
    Residual,
    Sequential,
    TokenMean,
)
from xpnn.layers.initializers import small_normal
from xpnn.layers.standardize import Standardization, standardizing
from xpnn.models.model import Model


class VisionTransformer(Model):
    """Patches as tokens - positions - `depth` blocks of attention and MLP - mean over tokens - layer norm - linear.

    A block is ``x + attention(norm(x))``, then ``x + mlp(norm(x))``, an MLP with one hidden layer of GELUs.

    Parameters
    ----------
    patch : int
        Side of a patch in pixels.
    dim, depth, heads : int
        Numbers of a token, blocks, heads of attention.
    mlp_dim : int, optional
        Size of the hidden layer; 4 `dim` by default.
    num_classes : int
    input_dim : (int, int, int)
        Channels, height and width of an image.
    standardize : (mean, std), optional
        For a first layer ``(x - mean) / std``, so that the net takes raw images.
    **options
        As for `Model`: loss, reg, dtype, backend, rng.

    Source: Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021; the mean over tokens after Beyer, Zhai and
    Kolesnikov, "Better plain ViT baselines for ImageNet-1k", 2022. The net, and so the names of `to_torch_state_dict`,
    is timm's with ``global_pool="avg", class_token=False``.
    """

    def __init__(
        self,
        patch: int = 4,
        dim: int = 128,
        depth: int = 6,
        heads: int = 4,
        *,
        mlp_dim: int | None = None,
        num_classes: int = 10,
        input_dim: Shape = (3, 32, 32),
        standardize: Standardization | None = None,
        **options: Any,
    ) -> None:
        layers = standardizing(standardize)
        layers += [PatchEmbedding(patch, dim, name="patches"), PositionalEmbedding(name="positions")]
        layers += [
            _block(dim, heads, mlp_dim or 4 * dim, name=f"block{i + 1}")
            for i in range(check_whole("VisionTransformer", "depth", depth, 0))
        ]
        layers += [TokenMean(), _norm("norm"), Linear(num_classes, init=small_normal, name="head")]
        super().__init__(Sequential(*layers), input_dim, **options)

    def torch_key(self, key: str) -> str:
        key = re.sub(r"block(\d+)\.attention", lambda match: f"blocks.{int(match[1]) - 1}", key)
        key = re.sub(r"block(\d+)\.mlp\.(fc|norm)", _mlp_key, key)
        for ours, timms in _TIMM:
            key = re.sub(ours, timms, key)
        return key


_TIMM = (
    ("^patches", "patch_embed.proj"),
    ("^positions", "pos_embed"),
    ("^norm", "fc_norm"),
    ("in_proj_", "qkv."),
    ("out_proj", "proj"),
)


def _mlp_key(match: re.Match[str]) -> str:
    return f"blocks.{int(match[1]) - 1}.{'mlp.' if match[2] == 'fc' else ''}{match[2]}"


def _block(dim: int, heads: int, mlp_dim: int, name: str) -> Sequential:
    return Sequential(
        Residual(_norm("norm1"), MultiHeadAttention(heads, name="attn"), name="attention"),
        Residual(
            _norm("norm2"),
            Linear(mlp_dim, init=small_normal, name="fc1"),
            GELU(),
            Linear(dim, init=small_normal, name="fc2"),
            name="mlp",
        ),
        name=name,
    )


def _norm(name: str) -> LayerNorm:
    return LayerNorm(eps=1e-6, name=name)
