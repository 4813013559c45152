"""Sana-Video: linear attention over the video, which no pattern can help; text in cross-attention."""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, Site
from dattn.grid import TokenGrid

LINEAR = "its attention is linear: it has no pairs of tokens to leave out"


def sites(model: Any) -> list[Site]:
    """``transformer_blocks.<i>.attn1``, all of them linear."""
    return [Site(f"transformer_blocks.{i}.attn1", b.attn1, why=LINEAR) for i, b in enumerate(model.transformer_blocks)]


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid]:
    """Latents [batch, channels, frames, height, width], each axis divided by its patch."""
    sizes = inputs.get(0, "hidden_states").shape[2:]
    return {"": TokenGrid(*(size // patch for size, patch in zip(sizes, model.config.patch_size, strict=True)))}


ADAPTER = Adapter(
    family="sana_video",
    title="Sana-Video",
    models=("SanaVideoTransformer3DModel",),
    text="separate cross-attention",
    video=True,
    sites=sites,
    grids=grids,
)
