"""Sana-Video: linear attention over the video, which no pattern can help; text in cross-attention."""

from __future__ import annotations

from typing import Any

from dattn.adapters import sana
from dattn.adapters.base import Adapter, Inputs, in_patches, sites_in
from dattn.grid import TokenGrid

LINEAR = "its attention is linear: it has no pairs of tokens to leave out"


sites = sites_in("transformer_blocks.*.attn1", why=LINEAR)
text_sites = sites_in("transformer_blocks.*.attn2", level="text")


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid | str]:
    """Latents [batch, channels, frames, height, width], each axis divided by its patch."""
    sizes = in_patches(inputs.get(0, "hidden_states").shape[2:], model.config.patch_size)
    return {"": LINEAR, "text": TokenGrid(*sizes)}


ADAPTER = Adapter(
    family="sana_video",
    title="Sana-Video",
    models=("SanaVideoTransformer3DModel",),
    text="separate cross-attention",
    video=True,
    sites=sites,
    grids=grids,
    text_sites=text_sites,
    written=sana.written,
)
