"""Hunyuan-DiT: picture tokens only in self-attention (``attn1``), both texts in cross-attention."""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, Site
from dattn.grid import TokenGrid


def sites(model: Any) -> list[Site]:
    """``blocks.<i>.attn1``."""
    return [Site(f"blocks.{i}.attn1", block.attn1) for i, block in enumerate(model.blocks)]


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid]:
    """Latents [batch, channels, height, width] divided by the patch."""
    size = (side // model.config.patch_size for side in inputs.get(0, "hidden_states").shape[2:])
    return {"": TokenGrid(1, *size)}


ADAPTER = Adapter(
    family="hunyuan_dit",
    title="Hunyuan-DiT",
    models=("HunyuanDiT2DModel",),
    text="separate cross-attention",
    video=False,
    sites=sites,
    grids=grids,
)
