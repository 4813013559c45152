"""Tiny random Sana."""

from __future__ import annotations

import torch
from diffusers import SanaTransformer2DModel
from torch import nn

from tests.families.base import Family, Inputs, random, ready


def model(**changes: object) -> nn.Module:
    """Two layers of 2 heads x 16."""
    config = dict(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=10,
        sample_size=16,
    )
    return ready(SanaTransformer2DModel(**(config | changes)))


def inputs(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (7, 9)) -> Inputs:
    hidden, text = random(seed, (batch, 4, *latent), (batch, 6, 10))
    return {"hidden_states": hidden, "encoder_hidden_states": text, "timestep": torch.full((batch,), 500)}


CANNOT = {
    "first_block_cache": "the class has no cache",
    "compile_repeated_blocks": "the class names no repeated blocks",
}
FAMILIES = (Family("sana", model, inputs, (), (5, 11), stock={"attn1": "linear"}, cannot=CANNOT),)
