"""CogVideoX, CogVideoX 1.5 and ConsisID: one joint sequence, text first, then video."""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, sites_in
from dattn.grid import TokenGrid

sites = sites_in("transformer_blocks.*.attn1")


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid]:
    """Latents [batch, frames, channels, height, width]; 1.5 also joins ``patch_size_t`` frames."""
    _, frames, _, height, width = inputs.get(0, "hidden_states").shape
    text = inputs.get(1, "encoder_hidden_states").shape[1]
    patch = model.config.patch_size
    frames //= getattr(model.config, "patch_size_t", None) or 1
    return {"": TokenGrid(frames, height // patch, width // patch, text=text, text_first=True)}


ADAPTER = Adapter(
    family="cogvideox",
    title="CogVideoX, CogVideoX 1.5, ConsisID",
    models=("CogVideoXTransformer3DModel", "ConsisIDTransformer3DModel"),
    text="joint, text first",
    video=True,
    sites=sites,
    grids=grids,
    frames_first=True,
)
