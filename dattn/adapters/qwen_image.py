"""Qwen-Image: one joint sequence, text first, then the picture; pictures to edit come last and are kept.

``img_shapes`` lists, for every sample alike, (frames, height, width) of the pictures. A layered model makes all of them
but the last, which it is given: its layers are frames.
"""

from __future__ import annotations

from math import prod
from typing import Any

from dattn.adapters.base import Adapter, Inputs, sites_in
from dattn.adapters.text import Asked, Written, in_template, untold
from dattn.grid import TokenGrid

sites = sites_in("transformer_blocks.*.attn")


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid | str]:
    """From ``img_shapes``; where a sample has one picture, its size may come without a list around it."""
    text = inputs.get(1, "encoder_hidden_states").shape[1]
    shapes = inputs.get(4, "img_shapes")[0]
    shapes = shapes if isinstance(shapes, list) else [shapes]
    made = shapes[: max(len(shapes) - 1, 1)] if model.config.use_layer3d_rope else shapes[:1]
    if any(shape[1:] != made[0][1:] for shape in made):
        return {"": "its layers are of different sizes"}
    kept = sum(prod(shape) for shape in shapes[len(made) :])
    frames, (height, width) = sum(shape[0] for shape in made), made[0][1:]
    return {"": TokenGrid(frames, height, width, text=(text, kept))}


def written(pipeline: Any, prompt: str, asked: Asked) -> Written:
    """In a template, of whose beginning the model is not given the tokens; pictures to edit are before the prompt."""
    pictures = asked.get("image") is not None
    if pictures and isinstance(asked.get("prompt"), list) and len(asked["prompt"]) > 1:
        raise untold(pipeline, "puts pictures before each of several prompts")
    dropped = pipeline.prompt_template_encode_start_idx
    return in_template(pipeline.prompt_template_encode, prompt, dropped, last=pictures)


ADAPTER = Adapter(
    family="qwen_image",
    title="Qwen-Image, Qwen-Image-Edit, Qwen-Image-Layered",
    models=("QwenImageTransformer2DModel",),
    text="joint, text first",
    video=False,
    sites=sites,
    grids=grids,
    written=written,
)
