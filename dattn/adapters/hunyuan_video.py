"""HunyuanVideo: one joint sequence, video first, then text, whose padding the model masks.

A first frame that is given (``token_replace``) or joined as channels (``latent_concat``) sits on the video's own grid.
"""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, sites_in
from dattn.grid import TokenGrid

sites = sites_in("transformer_blocks.*.attn", "single_transformer_blocks.*.attn")  # the refiner sees text alone


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid]:
    """Latents [batch, channels, frames, height, width], each axis divided by its patch."""
    frames, height, width = inputs.get(0, "hidden_states").shape[2:]
    text = inputs.get(2, "encoder_hidden_states").shape[1]
    patch = model.config.patch_size
    return {"": TokenGrid(frames // model.config.patch_size_t, height // patch, width // patch, text=text)}


ADAPTER = Adapter(
    family="hunyuan_video",
    title="HunyuanVideo",
    models=("HunyuanVideoTransformer3DModel",),
    text="joint, text last, padding masked",
    video=True,
    sites=sites,
    grids=grids,
)
