"""Wan Animate: Wan, whose first latent frame is always the reference picture and is kept.

Poses are added to the tokens, and the face comes in by cross-attention, frame by frame.
"""

from __future__ import annotations

from typing import Any

from dattn.adapters import wan
from dattn.adapters.base import Adapter, Inputs, in_patches
from dattn.grid import TokenGrid


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid]:
    """Latents [batch, channels, 1 + frames, height, width], each axis divided by its patch."""
    sizes = inputs.get(0, "hidden_states").shape[2:]
    frames, height, width = in_patches(sizes, model.config.patch_size)
    grid = TokenGrid(frames - 1, height, width, text=height * width, text_first=True)
    return {"": grid, "text": grid}


ADAPTER = Adapter(
    family="wan_animate",
    title="Wan Animate",
    models=("WanAnimateTransformer3DModel",),
    text="separate cross-attention, reference picture first",
    video=True,
    sites=wan.sites,
    grids=grids,
    text_sites=wan.text_sites,
)
