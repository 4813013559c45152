"""Tiny random Mochi."""

from __future__ import annotations

import torch
from diffusers import MochiTransformer3DModel
from torch import nn

from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs, random, ready


def model(**changes: object) -> nn.Module:
    """Three layers of 2 heads x 8."""
    config = dict(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=3,
        pooled_projection_dim=12,
        in_channels=4,
        text_embed_dim=16,
        time_embed_dim=8,
        max_sequence_length=6,
    )
    return ready(MochiTransformer3DModel(**(config | changes)))


def inputs(batch: int = 1, seed: int = 0, latent: tuple[int, int, int] = (5, 6, 10)) -> Inputs:
    """Text of 6 tokens; the second sample's last two are padding."""
    hidden, text = random(seed, (batch, 4, *latent), (batch, 6, 16))
    mask = torch.ones(batch, 6, dtype=torch.bool)
    mask[1:, 4:] = False
    return {
        "hidden_states": hidden,
        "encoder_hidden_states": text,
        "timestep": torch.full((batch,), 500),
        "encoder_attention_mask": mask,
    }


CANNOT = {
    "fused": "the class fuses nothing in Diffusers",
    "compile_repeated_blocks": "the class names no repeated blocks",
}
FAMILIES = (Family("mochi", model, inputs, (TokenGrid(5, 3, 5, 6),), (3, 8, 6), joint=True, cannot=CANNOT),)
