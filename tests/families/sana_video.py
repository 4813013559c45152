"""Tiny random Sana-Video."""

from __future__ import annotations

import torch
from diffusers import SanaVideoTransformer3DModel
from torch import nn

from tests.families.base import Family, Inputs, random, ready


def model(**changes: object) -> nn.Module:
    """Two layers of 2 heads x 12."""
    config = dict(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=10,
        rope_max_seq_len=32,
    )
    return ready(SanaVideoTransformer3DModel(**(config | changes)))


def inputs(batch: int = 1, seed: int = 0, latent: tuple[int, int, int] = (5, 6, 10)) -> Inputs:
    """The first text is padded by 3 of 7 tokens, the second by none."""
    hidden, text = random(seed, (batch, 4, *latent), (batch, 7, 10))
    return {
        "hidden_states": hidden,
        "encoder_hidden_states": text,
        "encoder_attention_mask": (torch.arange(7)[None] < torch.tensor([4, 7])[:batch, None]).long(),
        "timestep": torch.full((batch,), 500),
    }


CANNOT = {
    "first_block_cache": "the class has no enable_cache",
    "compile_repeated_blocks": "the class names no repeated blocks",
}
FAMILIES = (Family("sana_video", model, inputs, (), (3, 8, 6), stock={"attn1": "linear"}, cannot=CANNOT),)
