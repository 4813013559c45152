"""Allegro: video tokens only in self-attention (``attn1``), text in cross-attention."""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, sites_in
from dattn.grid import TokenGrid

sites = sites_in("transformer_blocks.*.attn1")
text_sites = sites_in("transformer_blocks.*.attn2")


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid]:
    """Latents [batch, channels, frames, height, width]; height and width are divided by the patch."""
    frames, height, width = inputs.get(0, "hidden_states").shape[2:]
    patch = model.config.patch_size
    return {"": TokenGrid(frames, height // patch, width // patch)}


ADAPTER = Adapter(
    family="allegro",
    title="Allegro",
    models=("AllegroTransformer3DModel",),
    text="separate cross-attention",
    video=True,
    sites=sites,
    grids=grids,
    text_sites=text_sites,
)
