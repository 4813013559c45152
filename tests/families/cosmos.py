"""Tiny random Cosmos."""

from __future__ import annotations

from functools import partial

import torch
from diffusers import CosmosTransformer3DModel
from torch import nn

from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs, random, ready

Latent = tuple[int, int, int]


def model(**changes: object) -> nn.Module:
    """Three layers of 2 heads x 18, a channel of latents for the condition mask; that of padding needs torchvision."""
    config = dict(
        in_channels=5,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=18,
        num_layers=3,
        mlp_ratio=2,
        text_embed_dim=10,
        adaln_lora_dim=4,
        max_size=(8, 16, 16),
        concat_padding_mask=False,
    )
    return ready(CosmosTransformer3DModel(**(config | changes)))


def inputs(batch: int = 1, seed: int = 0, latent: Latent = (5, 6, 10)) -> Inputs:
    """The first frame is given. The first text is padded by 3 of 7 tokens, the second by none."""
    frames, height, width = latent
    hidden, text = random(seed, (batch, 4, *latent), (batch, 7, 10))
    return {
        "hidden_states": hidden,
        "timestep": torch.full((batch,), 0.5),
        "encoder_hidden_states": text,
        "attention_mask": torch.arange(7)[None] < torch.tensor([4, 7])[:batch, None],
        "fps": 16,
        "condition_mask": (torch.arange(frames) == 0).float().view(1, 1, -1, 1, 1).repeat(batch, 1, 1, height, width),
    }


def timed(batch: int = 1, seed: int = 0, latent: Latent = (5, 6, 10)) -> Inputs:
    """Cosmos 2.5: a timestep for every frame, and tokens of a picture in cross-attention."""
    plain = inputs(batch, seed, latent)
    del plain["attention_mask"]
    (image,) = random(seed + 1, (batch, 8, 14))
    return plain | {
        "timestep": torch.linspace(0, 0.5, latent[0]).view(1, 1, -1, 1, 1).repeat(batch, 1, 1, 1, 1),
        "encoder_hidden_states": (plain["encoder_hidden_states"], image),
    }


CANNOT = {
    "fused": "the class has no fuse_qkv_projections",
    "first_block_cache": "the class has no enable_cache",
    "compile_repeated_blocks": "the class names no repeated blocks",
}
GRIDS = (TokenGrid(5, 3, 5),)
FAMILIES = (
    Family("cosmos", model, inputs, GRIDS, (3, 8, 6), cannot=CANNOT),
    Family(
        "cosmos-timed",
        partial(
            model, img_context_dim_in=14, img_context_num_tokens=8, img_context_dim_out=36, extra_pos_embed_type=None
        ),
        timed,
        GRIDS,
        (3, 8, 6),
        cannot=CANNOT,
    ),
)
