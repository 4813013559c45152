"""Tiny random Qwen-Image: plain, to edit pictures, and in layers."""

from __future__ import annotations

from math import prod

import torch
from diffusers import QwenImageTransformer2DModel
from torch import nn

from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs, random, ready

Shapes = list[tuple[int, int, int]]


def model(**changes: object) -> nn.Module:
    """Three layers of 2 heads x 16."""
    config = dict(
        in_channels=8,
        out_channels=2,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=10,
        axes_dims_rope=(4, 6, 6),
    )
    return ready(QwenImageTransformer2DModel(**(config | changes)))


def call(batch: int, seed: int, shapes: Shapes) -> Inputs:
    """Pictures of these sizes; a text of 7 tokens, of 5 in all samples but the first."""
    hidden, text = random(seed, (batch, sum(map(prod, shapes)), 8), (batch, 7, 10))
    mask = torch.ones(batch, 7, dtype=torch.bool)
    mask[1:, 5:] = False
    return {
        "hidden_states": hidden,
        "encoder_hidden_states": text,
        "encoder_hidden_states_mask": mask,
        "timestep": torch.full((batch,), 0.5),
        "img_shapes": [shapes] * batch,
    }


def inputs(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (7, 9)) -> Inputs:
    return call(batch, seed, [(1, *latent)])


def edited(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (7, 9)) -> Inputs:
    """Two more pictures of other sizes, a ControlNet's residuals."""
    residuals = tuple(random(seed + 1, *[(batch, prod(latent) + 27, 32)] * 3))
    return call(batch, seed, [(1, *latent), (1, 3, 5), (1, 4, 3)]) | {"controlnet_block_samples": residuals}


def editor(**changes: object) -> nn.Module:
    """Given pictures are told that they are not noise."""
    return model(zero_cond_t=True, **changes)


def layered(**changes: object) -> nn.Module:
    return model(use_layer3d_rope=True, use_additional_t_cond=True, **changes)


def layers(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (7, 5)) -> Inputs:
    """Four layers and the picture that they are of."""
    shapes = [(1, *latent)] * 5
    return call(batch, seed, shapes) | {"additional_t_cond": torch.zeros(batch, dtype=torch.int64)}


FAMILIES = (
    Family("qwen_image", model, inputs, (TokenGrid(1, 7, 9, 7, text_first=True),), (5, 11), joint=True),
    Family("qwen_image-edit", editor, edited, (TokenGrid(1, 7, 9, (7, 27)),), (5, 11), joint=True),
    Family("qwen_image-layered", layered, layers, (TokenGrid(4, 7, 5, (7, 35)),), (3, 4), joint=True),
)
