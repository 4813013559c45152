"""Sana: picture tokens alone in self-attention, which is linear: no pattern can help. Text is in cross-attention."""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, Site

WHY = "its attention is linear"


def sites(model: Any) -> list[Site]:
    """``transformer_blocks.<i>.attn1``."""
    blocks = enumerate(model.transformer_blocks)
    return [Site(f"transformer_blocks.{i}.attn1", block.attn1, why=WHY) for i, block in blocks]


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
