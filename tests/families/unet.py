"""Tiny random Stable Diffusion UNet."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs, random, ready


def model(**changes: object) -> nn.Module:
    """Three levels, attention at each and in the middle; 2 heads."""
    config = dict(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=10,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    return ready(UNet2DConditionModel(**(config | changes)))


def inputs(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (13, 10)) -> Inputs:
    sample, text = random(seed, (batch, 4, *latent), (batch, 7, 10))
    return {"sample": sample, "encoder_hidden_states": text, "timestep": torch.full((batch,), 500)}


GRIDS = (TokenGrid(1, 13, 10), TokenGrid(1, 7, 5), TokenGrid(1, 4, 3))
CANNOT = {
    "first_block_cache": "UNets have no cache in Diffusers",
    "compile_repeated_blocks": "the class names no repeated blocks",
}
FAMILIES = (
    # A stock UNet of odd sizes fails under aot_eager.
    Family("unet", model, inputs, GRIDS, (9, 15), cannot=CANNOT, compiler="eager"),
)
