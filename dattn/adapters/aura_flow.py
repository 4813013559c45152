"""AuraFlow: one joint sequence, registers and text first, then the picture."""

from __future__ import annotations

from typing import Any

from dattn.adapters.base import Adapter, Inputs, Site
from dattn.grid import TokenGrid


def sites(model: Any) -> list[Site]:
    """``joint_transformer_blocks.<i>.attn``, then ``single_transformer_blocks.<i>.attn``."""
    names = ("joint_transformer_blocks", "single_transformer_blocks")
    return [Site(f"{name}.{i}.attn", block.attn) for name in names for i, block in enumerate(getattr(model, name))]


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid]:
    """Latents [batch, channels, height, width]."""
    patch = model.config.patch_size
    height, width = (size // patch for size in inputs.get(0, "hidden_states").shape[2:])
    text = model.register_tokens.shape[1] + inputs.get(1, "encoder_hidden_states").shape[1]
    return {"": TokenGrid(1, height, width, text=text, text_first=True)}


ADAPTER = Adapter(
    family="aura_flow",
    title="AuraFlow",
    models=("AuraFlowTransformer2DModel",),
    text="joint, text first",
    video=False,
    sites=sites,
    grids=grids,
)
