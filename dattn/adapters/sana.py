"""Sana: picture tokens alone in self-attention, which is linear: no pattern can help. Text is in cross-attention."""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, sites_in

WHY = "its attention is linear"


sites = sites_in("transformer_blocks.*.attn1", why=WHY)


def grids(model: Any, inputs: Inputs) -> dict[str, str]:
    """None is needed."""
    return {"": WHY}


ADAPTER = Adapter(
    family="sana",
    title="Sana",
    models=("SanaTransformer2DModel",),
    text="separate cross-attention",
    video=False,
    sites=sites,
    grids=grids,
)
