"""Flux.1: one joint sequence, text first, then the picture; reference pictures (Kontext) come last and are kept.

The picture's height and width are in ``img_ids`` alone: rows of (picture, row, column).
"""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, Positions, Site


def sites(model: Any) -> list[Site]:
    """``transformer_blocks.<i>.attn``, then ``single_transformer_blocks.<i>.attn``."""
    names = ("transformer_blocks", "single_transformer_blocks")
    return [Site(f"{name}.{i}.attn", block.attn) for name in names for i, block in enumerate(getattr(model, name))]


def grids(model: Any, inputs: Inputs) -> dict[str, Positions]:
    """From ``img_ids``."""
    return {"": positions(inputs, 4)}


def positions(inputs: Inputs, place: int) -> Positions:
    """From ``img_ids`` [tokens, 3 or more], the argument at ``place``, which some pipelines give a batch."""
    text = inputs.get(1, "encoder_hidden_states").shape[1]
    ids = inputs.get(place, "img_ids")
    return Positions(ids[0] if ids.ndim == 3 else ids, text)


ADAPTER = Adapter(
    family="flux",
    title="Flux.1",
    models=("FluxTransformer2DModel",),
    text="joint, text first",
    video=False,
    sites=sites,
    grids=grids,
)
