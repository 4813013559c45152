"""Tiny random CogVideoX, 1.5 from a picture, and ConsisID."""

from __future__ import annotations

from functools import partial

import torch
from diffusers import CogVideoXTransformer3DModel, ConsisIDTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch import nn

from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs, random, ready

Latent = tuple[int, int, int]


def model(kind: type = CogVideoXTransformer3DModel, **changes: object) -> nn.Module:
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
    return ready(kind(**(config | changes)))


def inputs(batch: int = 1, seed: int = 0, latent: Latent = (5, 6, 10), joined: int = 1) -> Inputs:
    """``joined`` frames are one of tokens."""
    frames, height, width = latent
    hidden, text = random(seed, (batch, frames, 4, height, width), (batch, 6, 10))
    size = (height // 2, width // 2)
    rotary = get_3d_rotary_pos_embed(16, ((0, 0), size), size, frames // joined)
    return {
        "hidden_states": hidden,
        "encoder_hidden_states": text,
        "timestep": torch.full((batch,), 500),
        "image_rotary_emb": rotary,
    }


def pictured(batch: int = 1, seed: int = 0, latent: Latent = (10, 6, 10)) -> Inputs:
    """The channels of a picture, and 1.5's strength of motion."""
    plain, picture = inputs(batch, seed, latent, 2), random(seed + 50, (batch, latent[0], 4, *latent[1:]))[0]
    return plain | {"hidden_states": torch.cat([plain["hidden_states"], picture], 2), "ofs": torch.full((1,), 2.0)}


def faced(batch: int = 1, seed: int = 0, latent: Latent = (5, 6, 10)) -> Inputs:
    """What ConsisID knows of a face."""
    face, *views = random(seed + 50, (batch, 14), *[(batch, 7, 12)] * 5)
    return inputs(batch, seed, latent) | {"id_cond": face, "id_vit_hidden": views}


FACE = dict(
    is_train_face=True,
    cross_attn_interval=1,
    cross_attn_dim_head=8,
    cross_attn_num_heads=2,
    LFE_id_dim=14,
    LFE_vit_dim=12,
    LFE_depth=5,
    LFE_dim_head=8,
    LFE_num_heads=2,
    LFE_num_id_token=3,
    LFE_num_querie=4,
    LFE_output_dim=21,
    LFE_ff_mult=2,
)
GRIDS = (TokenGrid(5, 3, 5, 6, text_first=True),)
CANNOT = {"compile_repeated_blocks": "the class names no repeated blocks"}
FAMILIES = (
    Family("cogvideox", model, inputs, GRIDS, (3, 8, 6), joint=True, cannot=CANNOT),
    Family(
        "cogvideox-1.5",
        partial(model, in_channels=8, patch_size_t=2, patch_bias=False, ofs_embed_dim=8),
        pictured,
        GRIDS,
        (4, 8, 6),
        joint=True,
        cannot=CANNOT,
    ),
    Family(
        "cogvideox-consisid",
        partial(model, ConsisIDTransformer3DModel, **FACE),
        faced,
        GRIDS,
        (3, 8, 6),
        joint=True,
        cannot=CANNOT | {"first_block_cache": "the class has no caches in Diffusers"},
    ),
)
