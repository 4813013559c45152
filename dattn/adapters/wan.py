"""Wan 2.1 and 2.2: video tokens only in self-attention (``attn1``), text and image in cross-attention."""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, Site
from dattn.grid import TokenGrid


def sites(model: Any) -> list[Site]:
    """``blocks.<i>.attn1``."""
    return [Site(f"blocks.{i}.attn1", block.attn1) for i, block in enumerate(model.blocks)]


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid]:
    """Latents [batch, channels, frames, height, width], each axis divided by its patch."""
    sizes = inputs.get(0, "hidden_states").shape[2:]
    return {"": TokenGrid(*(size // patch for size, patch in zip(sizes, model.config.patch_size, strict=True)))}


ADAPTER = Adapter(
    family="wan",
    title="Wan 2.1, Wan 2.2",
    models=("WanTransformer3DModel",),
    text="separate cross-attention",
    sites=sites,
    grids=grids,
)
