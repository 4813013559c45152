"""Tiny random AuraFlow."""

from __future__ import annotations

import torch
from diffusers import AuraFlowTransformer2DModel
from torch import nn

from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs, random, ready


def model(**changes: object) -> nn.Module:
    """Two joint layers and a single one of 2 heads x 16, 8 registers."""
    config = dict(
        num_mmdit_layers=2,
        num_single_dit_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=10,
        caption_projection_dim=32,
        pos_embed_max_size=20 * 20,
    )
    return ready(AuraFlowTransformer2DModel(**(config | changes)))


def inputs(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (7, 9)) -> Inputs:
    hidden, text = random(seed, (batch, 4, 2 * latent[0], 2 * latent[1]), (batch, 6, 10))
    return {"hidden_states": hidden, "encoder_hidden_states": text, "timestep": torch.full((batch,), 0.5)}


CANNOT = {
    "first_block_cache": "the class has no cache",
    "compile_repeated_blocks": "the class names no repeated blocks",
}
GRIDS = (TokenGrid(1, 7, 9, 14, text_first=True),)
FAMILIES = (Family("aura_flow", model, inputs, GRIDS, (5, 11), joint=True, cannot=CANNOT),)
