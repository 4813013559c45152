"""Tiny random CogVideoX."""

from __future__ import annotations

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch import nn

from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs, random, ready


def model(**changes: object) -> nn.Module:
    """Three layers of 2 heads x 16, rotary embedding, text of 6 tokens."""
    config = dict(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=10,
        num_layers=3,
        sample_width=10,
        sample_height=6,
        sample_frames=17,
        max_text_seq_length=6,
        use_rotary_positional_embeddings=True,
    )
    return ready(CogVideoXTransformer3DModel(**(config | changes)))


def inputs(batch: int = 1, seed: int = 0, latent: tuple[int, int, int] = (5, 6, 10)) -> Inputs:
    frames, height, width = latent
    hidden, text = random(seed, (batch, frames, 4, height, width), (batch, 6, 10))
    size = (height // 2, width // 2)
    rotary = get_3d_rotary_pos_embed(16, ((0, 0), size), size, frames)
    return {
        "hidden_states": hidden,
        "encoder_hidden_states": text,
        "timestep": torch.full((batch,), 500),
        "image_rotary_emb": rotary,
    }


CANNOT = {"compile_repeated_blocks": "the class names no repeated blocks"}
GRIDS = (TokenGrid(5, 3, 5, 6, text_first=True),)
FAMILIES = (Family("cogvideox", model, inputs, GRIDS, (3, 8, 6), joint=True, cannot=CANNOT),)
