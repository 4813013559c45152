"""Sana: picture tokens only in self-attention, which is linear, so that no pattern can help; text in cross-attention."""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, Site
from dattn.grid import TokenGrid


def sites(model: Any) -> list[Site]:
    """``transformer_blocks.<i>.attn1``."""
    why = "its attention is linear"
    blocks = enumerate(model.transformer_blocks)
    return [Site(f"transformer_blocks.{i}.attn1", block.attn1, why=why) for i, block in blocks]


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid]:
    """Latents [batch, channels, height, width]."""
    patch = model.config.patch_size
    return {"": TokenGrid(1, *(size // patch for size in inputs.get(0, "hidden_states").shape[2:]))}


ADAPTER = Adapter(
    family="sana",
    title="Sana",
    models=("SanaTransformer2DModel",),
    text="separate cross-attention",
    video=False,
    sites=sites,
    grids=grids,
)
