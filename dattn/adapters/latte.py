"""Latte: blocks over space, where frames are samples of a batch, take turns with blocks over time; text apart.

A block over time sees as many tokens as there are frames, at one place; it is left alone.
"""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Grids, Inputs, Site, in_patches, sites_in
from dattn.grid import TokenGrid

FEW = "attends over time alone, a few tokens"


def sites(model: Any) -> list[Site]:
    """``transformer_blocks.<i>.attn1`` and ``temporal_transformer_blocks.<i>.attn1`` by turns."""
    found = []
    pairs = zip(model.transformer_blocks, model.temporal_transformer_blocks, strict=True)
    for i, (space, time) in enumerate(pairs):
        found.append(Site(f"transformer_blocks.{i}.attn1", space.attn1, "space"))
        found.append(Site(f"temporal_transformer_blocks.{i}.attn1", time.attn1, "time", FEW))
    return found


text_sites = sites_in("transformer_blocks.*.attn2", level="space")


def grids(model: Any, inputs: Inputs) -> dict[str, Grids]:
    """Latents [batch, channels, frames, height, width]; a frame is a grid."""
    size = in_patches(inputs.get(0, "hidden_states").shape[3:], model.config.patch_size)
    return {"space": TokenGrid(1, *size), "time": FEW}


ADAPTER = Adapter(
    family="latte",
    title="Latte",
    models=("LatteTransformer3DModel",),
    text="separate cross-attention",
    video=False,  # a layer sees one picture
    sites=sites,
    grids=grids,
    text_sites=text_sites,
)
