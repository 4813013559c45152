"""Flux.1: one joint sequence, text first, then the picture; reference pictures (Kontext) come last and are kept.

The picture's height and width are in ``img_ids`` alone: rows of (picture, row, column). Reading them is not something
that a compiler can trace, so ``torch.compile`` breaks its graph there, and ``fullgraph=True`` refuses the model.
"""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, Site
from dattn.grid import TokenGrid


def sites(model: Any) -> list[Site]:
    """``transformer_blocks.<i>.attn``, then ``single_transformer_blocks.<i>.attn``."""
    names = ("transformer_blocks", "single_transformer_blocks")
    return [Site(f"{name}.{i}.attn", block.attn) for name in names for i, block in enumerate(getattr(model, name))]


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid]:
    """The first picture's size; what follows it counts as text."""
    text = inputs.get(1, "encoder_hidden_states").shape[1]
    ids = inputs.get(4, "img_ids")
    ids = (ids[0] if ids.ndim == 3 else ids)[:, :3]
    own = int((ids[:, 0] == ids[0, 0]).sum())
    width = int((ids[:own, 1] == ids[0, 1]).sum())  # counted, not read: bfloat16 has no numbers like 257
    return {"": TokenGrid(1, own // width, width, text=(text, len(ids) - own))}


ADAPTER = Adapter(
    family="flux",
    title="Flux.1",
    models=("FluxTransformer2DModel",),
    text="joint, text first",
    sites=sites,
    grids=grids,
)
