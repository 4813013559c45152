"""Tiny random PixArt."""

from __future__ import annotations

import torch
from diffusers import PixArtTransformer2DModel
from torch import nn

from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs, random, ready


def model(**changes: object) -> nn.Module:
    """Three layers of 2 heads x 12, with α's conditions on size."""
    config = dict(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        cross_attention_dim=24,
        sample_size=16,
        patch_size=2,
        caption_channels=10,
        use_additional_conditions=True,
    )
    return ready(PixArtTransformer2DModel(**(config | changes)))


def inputs(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (15, 18)) -> Inputs:
    """Text of 7 tokens; the second sample's last three are padding."""
    hidden, text = random(seed, (batch, 4, *latent), (batch, 7, 10))
    mask = torch.ones(batch, 7, dtype=torch.long)
    mask[1:, 4:] = 0
    sizes = {"resolution": torch.tensor([[120.0, 144]]), "aspect_ratio": torch.tensor([[0.83]])}
    return {
        "hidden_states": hidden,
        "encoder_hidden_states": text,
        "encoder_attention_mask": mask,
        "timestep": torch.full((batch,), 500),
        "added_cond_kwargs": {name: size.repeat(batch, 1) for name, size in sizes.items()},
    }


CANNOT = {
    "lora": "the class takes no adapters in Diffusers",
    "first_block_cache": "the class has no caches in Diffusers",
    "compile_repeated_blocks": "the class names no repeated blocks",
}
FAMILIES = (Family("pixart", model, inputs, (TokenGrid(1, 7, 9),), (10, 22), cannot=CANNOT),)
