"""Mochi: one joint sequence, video first, then text.

Its processor attends sample by sample, each with as much text as is no padding.
"""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, sites_in
from dattn.grid import TokenGrid

sites = sites_in("transformer_blocks.*.attn1")


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
