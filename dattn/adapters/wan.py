"""Wan 2.1 and 2.2 and what is built on them: video tokens only in self-attention, text and image in cross-attention.

VACE's control branch has self-attention on the same grid; its reference pictures are the first frames of the latents,
and nothing tells them apart.
"""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, Site, in_patches
from dattn.grid import TokenGrid


def sites(model: Any) -> list[Site]:
    """``vace_blocks.<i>.attn1`` where there are any, which run first, then ``blocks.<i>.attn1``."""
    names = [name for name in ("vace_blocks", "blocks") if hasattr(model, name)]
    return [Site(f"{name}.{i}.attn1", block.attn1) for name in names for i, block in enumerate(getattr(model, name))]


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid | str]:
    """Latents [batch, channels, frames, height, width], each axis divided by its patch."""
    if getattr(model.config, "num_frame_per_block", 1) > 1:
        return {"": "the model masks the frames to come itself, which a pattern cannot honour"}
    sizes = inputs.get(0, "hidden_states").shape[2:]
    return {"": TokenGrid(*in_patches(sizes, model.config.patch_size))}


ADAPTER = Adapter(
    family="wan",
    title="Wan 2.1, Wan 2.2, Wan VACE, SkyReels-V2, ChronoEdit",
    models=(
        "WanTransformer3DModel",
        "WanVACETransformer3DModel",
        "SkyReelsV2Transformer3DModel",
        "ChronoEditTransformer3DModel",
    ),
    text="separate cross-attention",
    video=True,
    sites=sites,
    grids=grids,
)
