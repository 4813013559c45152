"""AuraFlow: one joint sequence, registers and text first, then the picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dattn.adapters.base import Adapter, Inputs, in_patches, sites_in
from dattn.adapters.text import Prompt, lengths
from dattn.grid import TokenGrid

sites = sites_in("joint_transformer_blocks.*.attn", "single_transformer_blocks.*.attn")


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid]:
    """Latents [batch, channels, height, width]."""
    patch = model.config.patch_size
    height, width = in_patches(inputs.get(0, "hidden_states").shape[2:], patch)
    text = model.register_tokens.shape[1] + inputs.get(1, "encoder_hidden_states").shape[1]
    return {"": TokenGrid(1, height, width, text=text, text_first=True)}


def prompt(model: Any, arguments: Mapping[str, Any]) -> Prompt:
    """Behind the registers."""
    return Prompt(lengths(arguments, "encoder_hidden_states"), skip=model.register_tokens.shape[1])


ADAPTER = Adapter(
    family="aura_flow",
    title="AuraFlow",
    models=("AuraFlowTransformer2DModel",),
    text="joint, text first",
    video=False,
    sites=sites,
    grids=grids,
    prompt=prompt,
)
