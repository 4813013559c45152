"""Stable Diffusion 3 and 3.5: one joint sequence, the picture first, then text.

Some layers of 3.5 medium attend twice; ``attn2`` sees the picture alone, which is a level of its own. Tokens of an
IP-Adapter are looked at in a call apart, which stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dattn.adapters.base import Adapter, Inputs, Site, in_patches
from dattn.adapters.text import Prompt, lengths
from dattn.grid import TokenGrid


def sites(model: Any) -> list[Site]:
    """``transformer_blocks.<i>.attn``, and behind it ``attn2`` where there is one."""
    found = []
    for i, block in enumerate(model.transformer_blocks):
        found.append(Site(f"transformer_blocks.{i}.attn", block.attn, "joint"))
        if block.attn2 is not None:
            found.append(Site(f"transformer_blocks.{i}.attn2", block.attn2, "picture"))
    return found


def grids(model: Any, inputs: Inputs) -> dict[str, TokenGrid]:
    """Latents [batch, channels, height, width] divided by the patch."""
    size = in_patches(inputs.get(0, "hidden_states").shape[2:], model.config.patch_size)
    picture = TokenGrid(1, *size)
    text = inputs.get(1, "encoder_hidden_states").shape[1]
    return {"joint": TokenGrid(*picture.shape, text=text), "picture": picture}


def prompt(model: Any, arguments: Mapping[str, Any]) -> Prompt:
    """In the joint layers: CLIP's tokens, then T5's. Skip-layer guidance is a pass of its own."""
    weaker = arguments.get("skip_layers") is not None
    return Prompt(lengths(arguments, "encoder_hidden_states"), level="joint", weaker=weaker)


ADAPTER = Adapter(
    family="sd3",
    title="Stable Diffusion 3, 3.5",
    models=("SD3Transformer2DModel",),
    text="joint, text last",
    video=False,
    sites=sites,
    grids=grids,
    tokenizers=("tokenizer", "tokenizer_3"),
    prompt=prompt,
)
