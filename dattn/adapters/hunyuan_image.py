"""HunyuanImage 2.1 and its refiner: one joint sequence, the picture first, then text, whose padding the model masks.

Text of glyphs, from a second encoder, joins the other; the model sorts padding to the end. Given latents (the refiner)
are joined as channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dattn.adapters.base import Adapter, Inputs, Site, in_patches
from dattn.adapters.text import Asked, Prompt, Prompts, Written, in_template, lengths
from dattn.grid import TokenGrid

TEXT = "it sees text alone"


def sites(model: Any) -> list[Site]:
    """``attn`` of the text refiner, of ``transformer_blocks`` and of ``single_transformer_blocks``."""
    refiner = model.context_embedder.token_refiner.refiner_blocks
    alone = [
        Site(f"context_embedder.token_refiner.refiner_blocks.{i}.attn", block.attn, "text", TEXT)
        for i, block in enumerate(refiner)
    ]
    names = ("transformer_blocks", "single_transformer_blocks")
    joint = [Site(f"{name}.{i}.attn", block.attn) for name in names for i, block in enumerate(getattr(model, name))]
    return alone + joint


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid | str]:
    """Latents [batch, channels, (frames,) height, width], each axis divided by its patch."""
    sizes = inputs.get(0, "hidden_states").shape[2:]
    size = in_patches(sizes, model.config.patch_size)
    glyphs = None if model.context_embedder_2 is None else inputs.get(5, "encoder_hidden_states_2")
    text = inputs.get(2, "encoder_hidden_states").shape[1] + (0 if glyphs is None else glyphs.shape[1])
    frames, height, width = size if len(size) == 3 else (1, *size)
    return {"text": TEXT, "": TokenGrid(frames, height, width, text=text)}


def prompt(model: Any, arguments: Mapping[str, Any]) -> Prompts:
    """Behind as many tokens of glyphs as are no padding."""
    counts, glyphs = lengths(arguments, "encoder_hidden_states"), arguments.get("encoder_attention_mask_2")
    if model.context_embedder_2 is None or glyphs is None:
        return Prompt(counts)
    return tuple(Prompt(counts, skip=count) for count in glyphs.bool().sum(1).tolist())


def written(pipeline: Any, prompt: str, asked: Asked) -> Written:
    """In a template, of whose beginning the model is not given the tokens."""
    return in_template(pipeline.prompt_template_encode, prompt, pipeline.prompt_template_encode_start_idx)


ADAPTER = Adapter(
    family="hunyuan_image",
    title="HunyuanImage 2.1",
    models=("HunyuanImageTransformer2DModel",),
    text="joint, text last, padding masked",
    video=False,
    sites=sites,
    grids=grids,
    prompt=prompt,
    written=written,
)
