"""Tiny random FramePack."""

from __future__ import annotations

import torch
from diffusers import HunyuanVideoFramepackTransformer3DModel
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
        text_embed_dim=10,
        pooled_projection_dim=12,
        rope_axes_dim=(4, 6, 6),
        has_image_proj=True,
        image_proj_dim=14,
        has_clean_x_embedder=True,
    )
    return ready(HunyuanVideoFramepackTransformer3DModel(**(config | changes)))


def inputs(batch: int = 1, seed: int = 0, latent: tuple[int, int, int] = (5, 6, 10)) -> Inputs:
    """History of 1 + 3, 4 and 16 frames. The first text fills its 7 tokens, the second has 4."""
    frames, height, width = latent
    shapes = [(batch, 4, count, height, width) for count in (frames, 4, 4, 16)]
    hidden, clean, older, oldest = random(seed, *shapes)
    text, pooled, image = random(seed + 1, (batch, 7, 10), (batch, 12), (batch, 3, 14))
    return {
        "hidden_states": hidden,
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": text,
        "encoder_attention_mask": (torch.arange(7)[None] < torch.tensor([7, 4])[:batch, None]).long(),
        "pooled_projections": pooled,
        "image_embeds": image,
        "indices_latents": torch.arange(24, 24 + frames),
        "guidance": torch.full((batch,), 6000.0),
        "latents_clean": clean,
        "indices_latents_clean": torch.tensor([0, 21, 22, 23]),
        "latents_history_2x": older,
        "indices_latents_history_2x": torch.arange(17, 21),
        "latents_history_4x": oldest,
        "indices_latents_history_4x": torch.arange(1, 17),
    }


CANNOT = {
    "fused": "the class has no fuse_qkv_projections",
    "compile_repeated_blocks": "the class names no repeated blocks",
}
GRIDS = (TokenGrid(5, 3, 5, (60 + 12 + 8, 10)),)
FAMILIES = (Family("framepack", model, inputs, GRIDS, (3, 8, 6), joint=True, cannot=CANNOT),)
