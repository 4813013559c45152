"""LTX-Video: video tokens only in self-attention (``attn1``), text in cross-attention; latents come as tokens.

Given frames stand before or after the video, and then only the table of their times and places tells them apart.
"""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, Positions, sites_in
from dattn.grid import TokenGrid

sites = sites_in("transformer_blocks.*.attn1")
text_sites = sites_in("transformer_blocks.*.attn2")


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid | Positions]:
    """From ``video_coords`` [batch, 3, tokens], or the sizes in tokens that are passed where there is no such table."""
    coords = inputs.get(8, "video_coords")
    if coords is not None:
        return {"": Positions(coords[0].T, 0, video=True)}
    return {"": TokenGrid(*(inputs.get(4 + i, name) for i, name in enumerate(("num_frames", "height", "width"))))}


ADAPTER = Adapter(
    family="ltx",
    title="LTX-Video",
    models=("LTXVideoTransformer3DModel",),
    text="separate cross-attention",
    video=True,
    sites=sites,
    grids=grids,
    one_stream=True,
    text_sites=text_sites,
)
