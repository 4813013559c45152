"""Mochi: one joint sequence, video first, then text.

Its processor attends sample by sample, each with as much text as is no padding.
"""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, Site
from dattn.grid import TokenGrid


def sites(model: Any) -> list[Site]:
    """``transformer_blocks.<i>.attn1``."""
    return [Site(f"transformer_blocks.{i}.attn1", block.attn1) for i, block in enumerate(model.transformer_blocks)]


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid]:
    """Latents [batch, channels, frames, height, width], height and width divided by the patch."""
    frames, height, width = inputs.get(0, "hidden_states").shape[2:]
    text = inputs.get(1, "encoder_hidden_states").shape[1]
    patch = model.config.patch_size
    return {"": TokenGrid(frames, height // patch, width // patch, text=text)}


ADAPTER = Adapter(
    family="mochi",
    title="Mochi 1",
    models=("MochiTransformer3DModel",),
    text="joint, text last",
    video=True,
    sites=sites,
    grids=grids,
)
