"""Hunyuan-DiT: picture tokens only in self-attention (``attn1``), both texts in cross-attention."""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, in_patches, sites_in
from dattn.grid import TokenGrid

sites = sites_in("blocks.*.attn1")


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid]:
    """Latents [batch, channels, height, width] divided by the patch."""
    size = in_patches(inputs.get(0, "hidden_states").shape[2:], model.config.patch_size)
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
