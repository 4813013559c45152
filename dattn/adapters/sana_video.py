"""Sana-Video: linear attention over the video, which no pattern can help; text in cross-attention."""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, sites_in

LINEAR = "its attention is linear: it has no pairs of tokens to leave out"


sites = sites_in("transformer_blocks.*.attn1", why=LINEAR)


def grids(model: Any, inputs: Inputs) -> dict[str, str]:
    """None is needed."""
    return {"": LINEAR}


ADAPTER = Adapter(
    family="sana_video",
    title="Sana-Video",
    models=("SanaVideoTransformer3DModel",),
    text="separate cross-attention",
    video=True,
    sites=sites,
    grids=grids,
)
