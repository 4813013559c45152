"""Tiny random HunyuanVideo 1.5."""

from __future__ import annotations

import torch
from diffusers import HunyuanVideo15Transformer3DModel
from torch import nn

from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs, random, ready

Latent = tuple[int, int, int]


def model(**changes: object) -> nn.Module:
    """Three layers of 2 heads x 16, and a refiner of text."""
    config = dict(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=3,
        num_refiner_layers=1,
        text_embed_dim=10,
        text_embed_2_dim=12,
        image_embed_dim=14,
        rope_axes_dim=(4, 6, 6),
    )
    return ready(HunyuanVideo15Transformer3DModel(**(config | changes)))


def inputs(batch: int = 1, seed: int = 0, latent: Latent = (5, 3, 5), picture: float = 0.0) -> Inputs:
    """Texts of 7 and 6 tokens, padded differently in a batch, and 3 tokens of a picture, which are 0 without one."""
    hidden, text, text_2, image = random(seed, (batch, 4, *latent), (batch, 7, 10), (batch, 6, 12), (batch, 3, 14))
    return {
        "hidden_states": hidden,
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": text,
        "encoder_attention_mask": torch.arange(7)[None] < torch.tensor([4, 7])[:batch, None],
        "encoder_hidden_states_2": text_2,
        "encoder_attention_mask_2": torch.arange(6)[None] < torch.tensor([2, 0])[:batch, None],
        "image_embeds": image * picture,
    }


def image_to_video(batch: int = 1, seed: int = 0, latent: Latent = (5, 3, 5)) -> Inputs:
    return inputs(batch, seed, latent, picture=1.0)


CANNOT = {
    "compile": "its forward asks whether the picture's tokens are all 0",
    "first_block_cache": "its block is not registered in Diffusers",
}
GRIDS = (TokenGrid(5, 3, 5, 16),)
FAMILIES = (
    Family("hunyuan_video15", model, inputs, GRIDS, (3, 4, 6), joint=True, cannot=CANNOT),
    Family("hunyuan_video15-image", model, image_to_video, GRIDS, (3, 4, 6), joint=True, cannot=CANNOT),
)
