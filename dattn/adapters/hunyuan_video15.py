"""HunyuanVideo 1.5: one joint sequence, video first, then a picture's tokens and two texts, whose padding is masked.

Without a picture its tokens are masked too. The mask hides padding as keys and as queries: a square.
"""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, sites_in
from dattn.grid import TokenGrid

CONTEXTS = ((2, "encoder_hidden_states"), (5, "encoder_hidden_states_2"), (7, "image_embeds"))


sites = sites_in("transformer_blocks.*.attn")  # the refiner sees text alone


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid]:
    """Latents [batch, channels, frames, height, width], each axis divided by its patch."""
    frames, height, width = inputs.get(0, "hidden_states").shape[2:]
    text = sum(inputs.get(*context).shape[1] for context in CONTEXTS)
    patch = model.config.patch_size
    return {"": TokenGrid(frames // model.config.patch_size_t, height // patch, width // patch, text=text)}


ADAPTER = Adapter(
    family="hunyuan_video15",
    title="HunyuanVideo 1.5",
    models=("HunyuanVideo15Transformer3DModel",),
    text="joint, text last, padding masked",
    video=True,
    sites=sites,
    grids=grids,
    pairs=True,
)
