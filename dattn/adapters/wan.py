"""Wan 2.1 and 2.2 and what is built on them: video tokens only in self-attention, text and image in cross-attention.

VACE's control branch has self-attention on the same grid; its reference pictures are the first frames of the latents,
and nothing tells them apart.
"""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, Site, in_patches, sites_in
from dattn.grid import TokenGrid

CAUSAL = "the model masks the frames to come itself, which a pattern cannot honour"


def sites(model: Any) -> list[Site]:
    """``vace_blocks.<i>.attn1`` where there are any, which run first, then ``blocks.<i>.attn1``."""
    return _in_all_blocks(model, "attn1")


def text_sites(model: Any) -> list[Site]:
    """``attn2`` beside them; an image prompt is looked at in a call apart."""
    return _in_all_blocks(model, "attn2", "text")


def _in_all_blocks(model: Any, name: str, level: str = "") -> list[Site]:
    lists = [blocks for blocks in ("vace_blocks", "blocks") if hasattr(model, blocks)]
    return [site for blocks in lists for site in sites_in(f"{blocks}.*.{name}", level=level)(model)]


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid | str]:
    """Latents [batch, channels, frames, height, width], each axis divided by its patch."""
    sizes = inputs.get(0, "hidden_states").shape[2:]
    grid = TokenGrid(*in_patches(sizes, model.config.patch_size))
    masked = getattr(model.config, "num_frame_per_block", 1) > 1
    return {"": CAUSAL if masked else grid, "text": grid}


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
    text_sites=text_sites,
)
