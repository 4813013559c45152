"""Tiny random Wan Animate."""

from __future__ import annotations

import torch
from diffusers import WanAnimateTransformer3DModel
from torch import nn

from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs, random, ready


def model(**changes: object) -> nn.Module:
    """Four layers of 2 heads x 12, a face in every second one."""
    config = dict(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=12,
        latent_channels=4,
        out_channels=4,
        text_dim=10,
        freq_dim=8,
        ffn_dim=32,
        num_layers=4,
        image_dim=14,
        added_kv_proj_dim=24,
        rope_max_seq_len=32,
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=8,
        face_encoder_hidden_dim=12,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )
    return ready(WanAnimateTransformer3DModel(**(config | changes)))


def inputs(batch: int = 1, seed: int = 0, latent: tuple[int, int, int] = (5, 6, 10)) -> Inputs:
    """A reference frame and ``latent``; four frames of the face for every frame of latents but the first."""
    frames, height, width = latent
    shapes = (batch, 12, 1 + frames, height, width), (batch, 4, *latent), (batch, 3, 4 * frames - 3, 16, 16)
    hidden, pose, face, text, image = random(seed, *shapes, (batch, 7, 10), (batch, 4, 14))
    return {
        "hidden_states": hidden,
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": text,
        "encoder_hidden_states_image": image,
        "pose_hidden_states": pose,
        "face_pixel_values": face,
    }


GRIDS = (TokenGrid(5, 3, 5, 15, text_first=True),)
CANNOT = {"first_block_cache": "its block is not registered in Diffusers"}
FAMILIES = (Family("wan_animate", model, inputs, GRIDS, (3, 8, 6), joint=True, cannot=CANNOT),)
