"""Lumina 2: one joint sequence, text without its padding first, so that pictures of a batch start at different places.

The noise refiner sees the picture alone.
"""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, Site, in_patches
from dattn.adapters.text import Asked, Written
from dattn.grid import TokenGrid

TEXT = "it sees text alone"


def sites(model: Any) -> list[Site]:
    """``attn`` of ``context_refiner``, ``noise_refiner`` and ``layers``."""
    parts = (("context_refiner", "text", TEXT), ("noise_refiner", "noise_refiner", ""), ("layers", "", ""))
    return [
        Site(f"{part}.{i}.attn", block.attn, level, why)
        for part, level, why in parts
        for i, block in enumerate(getattr(model, part))
    ]


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid | tuple[TokenGrid, ...] | str]:
    """Latents [batch, channels, height, width]; the lengths of texts are in a mask alone, where the model reads them.

    What is behind a picture is padding up to the longest sample, which the model masks.
    """
    patch = model.config.patch_size
    height, width = in_patches(inputs.get(0, "hidden_states").shape[2:], patch)
    texts = inputs.get(3, "encoder_attention_mask").sum(1).tolist()
    joint = tuple(TokenGrid(1, height, width, text=(text, max(texts) - text)) for text in texts)
    return {"text": TEXT, "noise_refiner": TokenGrid(1, height, width), "": joint}


def written(pipeline: Any, prompt: str, asked: Asked) -> Written:
    """Behind a system prompt."""
    return Written(prompt, (asked.get("system_prompt") or pipeline.system_prompt) + " <Prompt Start> ")


ADAPTER = Adapter(
    family="lumina2",
    title="Lumina 2",
    models=("Lumina2Transformer2DModel",),
    text="joint, text first",
    video=False,
    sites=sites,
    grids=grids,
    written=written,
)
