"""HunyuanVideo: one joint sequence, video first, then text, whose padding the model masks.

A first frame that is given (``token_replace``) or joined as channels (``latent_concat``) sits on the video's own grid.
"""

from __future__ import annotations

import sys
from typing import Any

from dattn.adapters.base import Adapter, Inputs, sites_in
from dattn.adapters.text import Asked, Written, in_template, untold
from dattn.grid import TokenGrid

sites = sites_in("transformer_blocks.*.attn", "single_transformer_blocks.*.attn")  # the refiner sees text alone


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid]:
    """Latents [batch, channels, frames, height, width], each axis divided by its patch."""
    frames, height, width = inputs.get(0, "hidden_states").shape[2:]
    text = inputs.get(2, "encoder_hidden_states").shape[1]
    patch = model.config.patch_size
    return {"": TokenGrid(frames // model.config.patch_size_t, height // patch, width // patch, text=text)}


def written(pipeline: Any, prompt: str, asked: Asked) -> Written:
    """In a template, of whose beginning the model is not given the tokens."""
    module = sys.modules[type(pipeline).__module__]
    template = asked.get("prompt_template") or module.DEFAULT_PROMPT_TEMPLATE
    if "image_emb_len" in template:
        raise untold(pipeline, "puts a picture between the prompt's tokens")
    if template.get("crop_start") is None:
        raise untold(pipeline, 'has a template without "crop_start"')
    return in_template(template["template"], prompt, template["crop_start"])


ADAPTER = Adapter(
    family="hunyuan_video",
    title="HunyuanVideo",
    models=("HunyuanVideoTransformer3DModel",),
    text="joint, text last, padding masked",
    video=True,
    sites=sites,
    grids=grids,
    written=written,
)
