"""Tiny random Latte."""

from __future__ import annotations

import torch
from diffusers import LatteTransformer3DModel
from torch import nn

from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs, random, ready


def model(**changes: object) -> nn.Module:
    """Two layers of 2 heads x 8 over space, and two over the time of 6 frames."""
    config = dict(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        attention_bias=True,
        sample_size=16,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        caption_channels=10,
        video_length=6,
    )
    return ready(LatteTransformer3DModel(**(config | changes)))


def inputs(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (15, 18)) -> Inputs:
    hidden, text = random(seed, (batch, 4, 6, *latent), (batch, 5, 10))
    return {"hidden_states": hidden, "encoder_hidden_states": text, "timestep": torch.full((batch,), 500)}


CANNOT = {
    "lora": "the class takes no adapters in Diffusers",
    "first_block_cache": "Diffusers' cache mixes blocks over space with blocks over time, of another shape",
    "fused": "the class fuses nothing in Diffusers",
    "compile_repeated_blocks": "the class names no repeated blocks",
}
STOCK = {"temporal": "over time alone"}
FAMILIES = (Family("latte", model, inputs, (TokenGrid(1, 7, 9),), (10, 22), stock=STOCK, cannot=CANNOT),)
