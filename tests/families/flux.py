"""Tiny random Flux.1."""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs, random, ready


def model(**changes: object) -> nn.Module:
    """Two joint layers and a single one of 2 heads x 16."""
    config = dict(
        in_channels=8,
        num_layers=2,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=10,
        pooled_projection_dim=12,
        axes_dims_rope=(4, 6, 6),
    )
    return ready(FluxTransformer2DModel(**(config | changes)))


def inputs(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (7, 9), reference: int = 0) -> Inputs:
    """``reference`` rows of a second picture follow the first, as in Kontext."""
    height, width = latent
    hidden, text, pooled = random(seed, (batch, (height + reference) * width, 8), (batch, 6, 10), (batch, 12))
    places = [(0, y, x) for y in range(height) for x in range(width)]
    places += [(1, y, x) for y in range(reference) for x in range(width)]
    return {
        "hidden_states": hidden,
        "encoder_hidden_states": text,
        "pooled_projections": pooled,
        "timestep": torch.full((batch,), 0.5),
        "img_ids": torch.tensor(places, dtype=torch.float32),
        "txt_ids": torch.zeros(6, 3),
    }


FAMILIES = (Family("flux", model, inputs, (TokenGrid(1, 7, 9, 6, text_first=True),), (5, 11), joint=True),)
