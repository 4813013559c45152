"""Cosmos 1, 2 and 2.5: video tokens only in self-attention (``attn1``), text and image in cross-attention.

Condition and padding masks are channels of the latents and change no sequence.
"""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, in_patches, sites_in
from dattn.grid import TokenGrid

sites = sites_in("transformer_blocks.*.attn1")


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid]:
    """Latents [batch, channels, frames, height, width], each axis divided by its patch."""
    sizes = inputs.get(0, "hidden_states").shape[2:]
    return {"": TokenGrid(*in_patches(sizes, model.config.patch_size))}


ADAPTER = Adapter(
    family="cosmos",
    title="Cosmos 1, 2, 2.5",
    models=("CosmosTransformer3DModel",),
    text="separate cross-attention",
    video=True,
    sites=sites,
    grids=grids,
)
