"""Kandinsky 5: visual tokens only in self-attention, text in cross-attention and in blocks of its own.

A model with attention of its own choosing (NABLA) also puts its tokens in another order; it is left alone.
"""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, Site
from dattn.grid import TokenGrid


def sites(model: Any) -> list[Site]:
    """``visual_transformer_blocks.<i>.self_attention``; the text blocks see text alone."""
    blocks = enumerate(model.visual_transformer_blocks)
    return [Site(f"visual_transformer_blocks.{i}.self_attention", block.self_attention) for i, block in blocks]


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid | str]:
    """Latents [batch, frames, height, width, channels], each axis divided by its patch."""
    if inputs.get(7, "sparse_params") is not None:
        return {"": "the model's own sparse attention is on, and with it another order of tokens"}
    sizes = inputs.get(0, "hidden_states").shape[1:4]
    return {"": TokenGrid(*(size // patch for size, patch in zip(sizes, model.config.patch_size, strict=True)))}


ADAPTER = Adapter(
    family="kandinsky5",
    title="Kandinsky 5",
    models=("Kandinsky5Transformer3DModel",),
    text="separate cross-attention",
    video=True,
    sites=sites,
    grids=grids,
)
