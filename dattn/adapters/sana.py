"""Sana: picture tokens alone in self-attention, which is linear: no pattern can help. Text is in cross-attention."""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, in_patches, sites_in
from dattn.adapters.text import Asked, Written, cleaned
from dattn.grid import TokenGrid

WHY = "its attention is linear"


sites = sites_in("transformer_blocks.*.attn1", why=WHY)
text_sites = sites_in("transformer_blocks.*.attn2", level="text")


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid | str]:
    """Latents [batch, channels, height, width] divided by the patch."""
    size = in_patches(inputs.get(0, "hidden_states").shape[2:], model.config.patch_size)
    return {"": WHY, "text": TokenGrid(1, *size)}


def written(pipeline: Any, prompt: str, asked: Asked) -> Written:
    """Behind instructions; of both the pipeline takes the first token, and as many of the last ones as it may."""
    instructions = "\n".join(asked.get("complex_human_instruction") or ())
    own = cleaned(pipeline, prompt, asked)
    if not instructions:
        return Written(own)
    return Written(own, instructions, dropped=len(pipeline.tokenizer.encode(instructions)) - 2)


ADAPTER = Adapter(
    family="sana",
    title="Sana",
    models=("SanaTransformer2DModel",),
    text="separate cross-attention",
    video=False,
    sites=sites,
    grids=grids,
    text_sites=text_sites,
    written=written,
)
