"""CogView 3-Plus and 4, and GLM-Image: one joint sequence, text first, then the picture.

A mask over text is multiplied with itself: as numbers, 1 is added where both are text or picture; as True and False
(when CogView 4 is trained) it hides padding. Training on samples packed into one sequence is left alone, and so are
GLM-Image's steps that look at keys kept of pictures to edit, which are not self-attention.
"""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, in_patches, sites_in
from dattn.adapters.text import Asked, Written, untold
from dattn.grid import TokenGrid

sites = sites_in("transformer_blocks.*.attn1")


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid | str]:
    """Latents [batch, channels, height, width]."""
    if {"batch_flag", "latent_attn_mask"} & set(inputs.kwargs.get("attention_kwargs") or ()):
        return {"": "pictures of several sizes are packed together"}
    patch = model.config.patch_size
    height, width = in_patches(inputs.get(0, "hidden_states").shape[2:], patch)
    text = inputs.get(1, "encoder_hidden_states").shape[1]
    return {"": TokenGrid(1, height, width, text=text, text_first=True)}


def written(pipeline: Any, prompt: str, asked: Asked) -> Written:
    """As it is; CogView 4 puts padding before it."""
    if type(pipeline).__name__.startswith("GlmImage"):
        raise untold(pipeline, "gives its model nothing but what is quoted in the prompt")
    return Written(prompt, last=hasattr(pipeline, "_get_glm_embeds"))


ADAPTER = Adapter(
    family="cogview",
    title="CogView 3-Plus, CogView 4, GLM-Image",
    models=("CogView3PlusTransformer2DModel", "CogView4Transformer2DModel", "GlmImageTransformer2DModel"),
    text="joint, text first",
    video=False,
    sites=sites,
    grids=grids,
    written=written,
    pairs=True,
)
