"""Tiny random Lumina 2."""

from __future__ import annotations

import torch
from diffusers import Lumina2Transformer2DModel
from torch import nn

from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs, random, ready


def model(**changes: object) -> nn.Module:
    """Two layers and one of each refiner; two heads x 16 of queries, one of keys."""
    config = dict(
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 6, 6),
        axes_lens=(64, 32, 32),
        cap_feat_dim=10,
    )
    return ready(Lumina2Transformer2DModel(**(config | changes)))


def inputs(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (7, 9)) -> Inputs:
    """A text of 5 tokens and 3 of padding; of 7 and 1 in all samples but the first."""
    hidden, text = random(seed, (batch, 4, 2 * latent[0], 2 * latent[1]), (batch, 8, 10))
    mask = torch.ones(batch, 8, dtype=torch.bool)
    mask[:1, 5:] = False
    mask[1:, 7:] = False
    return {
        "hidden_states": hidden,
        "timestep": torch.full((batch,), 0.5),
        "encoder_hidden_states": text,
        "encoder_attention_mask": mask,
    }


CANNOT = {
    "fused": "the class has no fused projections",
    "first_block_cache": "the class has no cache",
    "compile": "the model reads the lengths of texts from their mask",
    "compile_repeated_blocks": "the class names no repeated blocks",
}
GRIDS = (TokenGrid(1, 7, 9), TokenGrid(1, 7, 9, 5, text_first=True))
STOCK = {"context_refiner": "text alone"}
FAMILIES = (Family("lumina2", model, inputs, GRIDS, (5, 11), joint=True, stock=STOCK, cannot=CANNOT),)
