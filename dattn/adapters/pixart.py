"""PixArt-α and PixArt-Σ: picture tokens only in self-attention (``attn1``), text in cross-attention."""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, Site
from dattn.grid import TokenGrid


def sites(model: Any) -> list[Site]:
    """``transformer_blocks.<i>.attn1``."""
    return [Site(f"transformer_blocks.{i}.attn1", block.attn1) for i, block in enumerate(model.transformer_blocks)]


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid]:
    """Latents [batch, channels, height, width] divided by the patch."""
    size = (side // model.config.patch_size for side in inputs.get(0, "hidden_states").shape[2:])
    return {"": TokenGrid(1, *size)}


ADAPTER = Adapter(
    family="pixart",
    title="PixArt-α, PixArt-Σ",
    models=("PixArtTransformer2DModel",),
    text="separate cross-attention",
    video=False,
    sites=sites,
    grids=grids,
)
