"""Tiny random Kandinsky 5."""

from __future__ import annotations

import torch
from diffusers import Kandinsky5Transformer3DModel
from torch import nn

from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs, random, ready


def model(**changes: object) -> nn.Module:
    """Three layers of 2 heads x 16, and one of text alone."""
    config = dict(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=10,
        in_text_dim2=12,
        time_dim=8,
        model_dim=32,
        ff_dim=48,
        num_text_blocks=1,
        num_visual_blocks=3,
        axes_dims=(4, 6, 6),
    )
    return ready(Kandinsky5Transformer3DModel(**(config | changes)))


def inputs(batch: int = 1, seed: int = 0, latent: tuple[int, int, int] = (5, 6, 10)) -> Inputs:
    frames, height, width = latent
    hidden, text, pooled = random(seed, (batch, *latent, 4), (batch, 7, 10), (batch, 12))
    return {
        "hidden_states": hidden,
        "encoder_hidden_states": text,
        "timestep": torch.full((batch,), 500.0),
        "pooled_projections": pooled,
        "visual_rope_pos": tuple(torch.arange(n) for n in (frames, height // 2, width // 2)),
        "text_rope_pos": torch.arange(7),
        "scale_factor": (1.0, 2.0, 2.0),
    }


CANNOT = {
    "fused": "Diffusers looks for projections by names that its attention does not have",
    "first_block_cache": "its blocks name their tokens in a way that Diffusers' cache does not find",
}
FAMILIES = (Family("kandinsky5", model, inputs, (TokenGrid(5, 3, 5),), (3, 8, 6), cannot=CANNOT),)
