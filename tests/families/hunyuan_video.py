"""Tiny random HunyuanVideo."""

from __future__ import annotations

from functools import partial

import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import nn

from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs, random, ready


def model(**changes: object) -> nn.Module:
    """Two joint layers and a single one of 2 heads x 16, and a refiner of text."""
    config = dict(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        text_embed_dim=10,
        pooled_projection_dim=12,
        rope_axes_dim=(4, 6, 6),
    )
    return ready(HunyuanVideoTransformer3DModel(**(config | changes)))


def inputs(batch: int = 1, seed: int = 0, latent: tuple[int, int, int] = (5, 6, 10)) -> Inputs:
    """The first text is padded by 3 of 7 tokens, the second by none."""
    hidden, text, pooled = random(seed, (batch, 4, *latent), (batch, 7, 10), (batch, 12))
    lengths = torch.tensor([4, 7])[:batch, None]
    return {
        "hidden_states": hidden,
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": text,
        "encoder_attention_mask": torch.arange(7)[None] < lengths,
        "pooled_projections": pooled,
        "guidance": torch.full((batch,), 6000.0),
    }


GRIDS = (TokenGrid(5, 3, 5, 7),)
FAMILIES = (
    Family("hunyuan_video", model, inputs, GRIDS, (3, 8, 6), joint=True),
    Family(
        "hunyuan_video-first_frame",
        partial(model, image_condition_type="token_replace"),
        inputs,
        GRIDS,
        (3, 8, 6),
        joint=True,
    ),
)
