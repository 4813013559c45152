"""Chroma: Flux.1 with a mask over text, which Diffusers' pipeline gives as numbers: 1 is then added where both are text
or picture, and 0 where either is padding. As True and False it hides padding.
"""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, Positions
from dattn.adapters.flux import positions, sites


def grids(model: Any, inputs: Inputs) -> dict[str, Positions]:
    """From ``img_ids``."""
    return {"": positions(inputs, 3)}


ADAPTER = Adapter(
    family="chroma",
    title="Chroma",
    models=("ChromaTransformer2DModel",),
    text="joint, text first, padding masked",
    video=False,
    sites=sites,
    grids=grids,
    pairs=True,
)
