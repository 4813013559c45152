"""Tiny random Wan."""

from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel
from torch import nn

from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs, random, ready


def model(**changes: object) -> nn.Module:
    """Three layers of 2 heads x 12."""
    config = dict(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=10,
        freq_dim=8,
        ffn_dim=32,
        num_layers=3,
        rope_max_seq_len=32,
    )
    return ready(WanTransformer3DModel(**(config | changes)))


def inputs(batch: int = 1, seed: int = 0, latent: tuple[int, int, int] = (5, 6, 10)) -> Inputs:
    hidden, text = random(seed, (batch, 4, *latent), (batch, 7, 10))
    return {"hidden_states": hidden, "encoder_hidden_states": text, "timestep": torch.full((batch,), 500)}


FAMILIES = (Family("wan", model, inputs, (TokenGrid(5, 3, 5),), (3, 8, 6)),)
