"""Tiny random LTX-2."""

from __future__ import annotations

from functools import partial

import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import nn

from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs, random, ready
from tests.families.ltx import places

Latent = tuple[int, int, int]


def model(**changes: object) -> nn.Module:
    """Two layers of 2 heads x 12 for video and 2 x 8 for sound."""
    config = dict(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        audio_in_channels=5,
        audio_out_channels=5,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=2,
        caption_channels=10,
    )
    return ready(LTX2VideoTransformer3DModel(**(config | changes)))


def inputs(batch: int = 1, seed: int = 0, latent: Latent = (5, 3, 7), given: int = 0, channels: int = 10) -> Inputs:
    """``given`` frames stand behind the video. The first text is padded by 3 of 6 tokens, the second by none."""
    frames, height, width = latent
    shapes = (batch, (frames + given) * height * width, 4), (batch, 11, 5), (batch, 6, channels)
    hidden, sound, text = random(seed, *shapes)
    mask = (torch.arange(6)[None] < torch.tensor([3, 6])[:batch, None]).long()
    return {
        "hidden_states": hidden,
        "audio_hidden_states": sound,
        "encoder_hidden_states": text,
        "audio_encoder_hidden_states": text[..., :16],
        "timestep": torch.full((batch, 1), 500.0),
        "audio_timestep": torch.full((batch, 1), 500.0),
        "sigma": torch.full((batch,), 500.0),
        "encoder_attention_mask": mask,
        "audio_encoder_attention_mask": mask,
        "num_frames": frames,
        "height": height,
        "width": width,
        "fps": 24.0,
        "audio_num_frames": 11,
    }


def conditioned(batch: int = 1, seed: int = 0, latent: Latent = (5, 3, 7)) -> Inputs:
    """LTX-2.5: a given frame behind the video, whose size the table of places alone tells."""
    _, height, width = latent
    start = torch.cat([places(latent), places((1, height, width), 9)], 1)
    coords = torch.stack([start, start + torch.tensor([[8 / 24], [32], [32]])], -1)
    full = inputs(batch, seed, latent, given=1, channels=24)
    return {name: value for name, value in full.items() if name not in ("num_frames", "height", "width")} | {
        "video_coords": coords[None].repeat(batch, 1, 1, 1),
        "use_cross_timestep": True,
    }


LATER = partial(
    model,
    rope_type="split",
    gated_attn=True,
    audio_gated_attn=True,
    cross_attn_mod=True,
    audio_cross_attn_mod=True,
    use_prompt_embeddings=False,
    perturbed_attn=True,
)
CANNOT = {
    "fused": "Diffusers cannot join projections of sound and video of different widths",
    "first_block_cache": "its block is not registered in Diffusers",
}
STOCK = {"audio_attn1": "sound"}
GRIDS = (TokenGrid(5, 3, 7),)
FAMILIES = (
    Family("ltx2", model, inputs, GRIDS, (3, 8, 6), stock=STOCK, cannot=CANNOT),
    Family(
        "ltx2-conditioned",
        LATER,
        conditioned,
        (TokenGrid(5, 3, 7, 21),),
        (6, 4, 5),
        stock=STOCK,
        cannot=CANNOT,
        joint=True,
    ),
)
