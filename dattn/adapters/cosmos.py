"""Cosmos 1, 2 and 2.5: video tokens only in self-attention (``attn1``), text and image in cross-attention.

Condition and padding masks are channels of the latents and change no sequence.
"""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, Site
from dattn.grid import TokenGrid


def sites(model: Any) -> list[Site]:
    """``transformer_blocks.<i>.attn1``."""
    return [Site(f"transformer_blocks.{i}.attn1", block.attn1) for i, block in enumerate(model.transformer_blocks)]


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid]:
    """Latents [batch, channels, frames, height, width], each axis divided by its patch."""
    sizes = inputs.get(0, "hidden_states").shape[2:]
    return {"": TokenGrid(*(size // patch for size, patch in zip(sizes, model.config.patch_size, strict=True)))}


ADAPTER = Adapter(
    family="cosmos",
    title="Cosmos 1, 2, 2.5",
    models=("CosmosTransformer3DModel",),
    text="separate cross-attention",
    video=True,
    sites=sites,
    grids=grids,
)
