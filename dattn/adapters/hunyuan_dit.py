"""Hunyuan-DiT: picture tokens only in self-attention (``attn1``), both texts in cross-attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dattn.adapters.base import Adapter, Inputs, in_patches, sites_in
from dattn.adapters.text import Prompt, lengths
from dattn.grid import TokenGrid

sites = sites_in("blocks.*.attn1")
text_sites = sites_in("blocks.*.attn2")


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid]:
    """Latents [batch, channels, height, width] divided by the patch."""
    size = in_patches(inputs.get(0, "hidden_states").shape[2:], model.config.patch_size)
    return {"": TokenGrid(1, *size)}


def prompt(model: Any, arguments: Mapping[str, Any]) -> Prompt:
    """CLIP's tokens, then T5's."""
    return Prompt(lengths(arguments, "encoder_hidden_states", "encoder_hidden_states_t5"))


ADAPTER = Adapter(
    family="hunyuan_dit",
    title="Hunyuan-DiT",
    models=("HunyuanDiT2DModel",),
    text="separate cross-attention",
    video=False,
    sites=sites,
    grids=grids,
    text_sites=text_sites,
    tokenizers=("tokenizer", "tokenizer_2"),
    prompt=prompt,
)
