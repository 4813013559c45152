"""PixArt-α and PixArt-Σ: picture tokens only in self-attention (``attn1``), text in cross-attention."""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, in_patches, sites_in
from dattn.grid import TokenGrid

sites = sites_in("transformer_blocks.*.attn1")
text_sites = sites_in("transformer_blocks.*.attn2")


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid]:
    """Latents [batch, channels, height, width] divided by the patch."""
    size = in_patches(inputs.get(0, "hidden_states").shape[2:], model.config.patch_size)
    return {"": TokenGrid(1, *size)}


ADAPTER = Adapter(
    family="pixart",
    title="PixArt-α, PixArt-Σ",
    models=("PixArtTransformer2DModel",),
    text="separate cross-attention",
    video=False,
    sites=sites,
    grids=grids,
    text_sites=text_sites,
)
