"""Kandinsky 5: visual tokens only in self-attention, text in cross-attention and in blocks of its own.

A model with attention of its own choosing (NABLA) also puts its tokens in another order; it is left alone.
"""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, in_patches, sites_in
from dattn.adapters.text import Asked, Written, cleaned, in_template
from dattn.grid import TokenGrid

sites = sites_in("visual_transformer_blocks.*.self_attention")  # the text blocks see text alone
text_sites = sites_in("visual_transformer_blocks.*.cross_attention")


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid | str]:
    """Latents [batch, frames, height, width, channels], each axis divided by its patch."""
    if inputs.get(7, "sparse_params") is not None:
        return {"": "the model's own sparse attention is on, and with it another order of tokens"}
    sizes = inputs.get(0, "hidden_states").shape[1:4]
    return {"": TokenGrid(*in_patches(sizes, model.config.patch_size))}


def written(pipeline: Any, prompt: str, asked: Asked) -> Written:
    """In a template, of whose beginning the model is not given the tokens."""
    own = cleaned(pipeline, prompt, asked)
    return in_template(pipeline.prompt_template, own, pipeline.prompt_template_encode_start_idx)


ADAPTER = Adapter(
    family="kandinsky5",
    title="Kandinsky 5",
    models=("Kandinsky5Transformer3DModel",),
    text="separate cross-attention",
    video=True,
    sites=sites,
    grids=grids,
    text_sites=text_sites,
    written=written,
)
