"""Tiny random Chroma, with the mask of numbers that its pipeline gives, and with one that hides."""

from __future__ import annotations

import torch
from diffusers import ChromaTransformer2DModel
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
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=16,
        approximator_hidden_dim=32,
        approximator_layers=1,
    )
    return ready(ChromaTransformer2DModel(**(config | changes)))


def inputs(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (7, 9)) -> Inputs:
    """A text of 5 tokens and 2 of padding; of 3 and 4 in all samples but the first."""
    height, width = latent
    hidden, text = random(seed, (batch, height * width, 8), (batch, 7, 10))
    mask = torch.ones(batch, 7 + height * width)
    mask[:1, 5:7] = 0
    mask[1:, 3:7] = 0
    return {
        "hidden_states": hidden,
        "encoder_hidden_states": text,
        "timestep": torch.full((batch,), 0.5),
        "img_ids": torch.tensor([(0.0, y, x) for y in range(height) for x in range(width)]),
        "txt_ids": torch.zeros(7, 3),
        "attention_mask": mask,
    }


def hidden(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (7, 9)) -> Inputs:
    """Nobody sees padding."""
    call = inputs(batch, seed, latent)
    return call | {"attention_mask": call["attention_mask"].bool()}


GRIDS = (TokenGrid(1, 7, 9, 7, text_first=True),)
CANNOT = {
    "checkpointing": "Diffusers then drops the mask of single blocks",
    "first_block_cache": "Diffusers' caches do not know its blocks",
}
FAMILIES = (
    Family("chroma", model, inputs, GRIDS, (5, 11), joint=True, cannot=CANNOT),
    Family("chroma-hidden", model, hidden, GRIDS, (5, 11), joint=True, cannot=CANNOT),
)
