"""Tiny random LTX-Video."""

from __future__ import annotations

import torch
from diffusers import LTXVideoTransformer3DModel
from torch import Tensor, nn

from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs, random, ready


def model(**changes: object) -> nn.Module:
    """Three layers of 2 heads x 12."""
    config = dict(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        num_layers=3,
        caption_channels=10,
    )
    return ready(LTXVideoTransformer3DModel(**(config | changes)))


def inputs(batch: int = 1, seed: int = 0, latent: tuple[int, int, int] = (5, 3, 7)) -> Inputs:
    """The first text is padded by 3 of 6 tokens, the second by none."""
    frames, height, width = latent
    hidden, text = random(seed, (batch, frames * height * width, 4), (batch, 6, 10))
    return {
        "hidden_states": hidden,
        "encoder_hidden_states": text,
        "timestep": torch.full((batch,), 500),
        "encoder_attention_mask": (torch.arange(6)[None] < torch.tensor([3, 6])[:batch, None]).long(),
        "num_frames": frames,
        "height": height,
        "width": width,
        "rope_interpolation_scale": (8 / 25, 32, 32),
    }


def places(latent: tuple[int, int, int], start: int = 0) -> Tensor:
    """Second, row and column of every token of a clip that begins at frame ``start``, [3, tokens]."""
    coords = torch.cartesian_prod(*(torch.arange(n) for n in latent)).T * torch.tensor([[8], [32], [32]])
    coords[0] = (coords[0] - 7).clamp(min=0) + start
    return coords / torch.tensor([[24.0], [1.0], [1.0]])


def conditioned(batch: int = 1, seed: int = 0, latent: tuple[int, int, int] = (5, 3, 7)) -> Inputs:
    """A clip of two given frames and a later one stand before the video; every token has a time of its own."""
    frames, height, width = latent
    given = 3 * height * width
    (hidden,) = random(seed, (batch, given + frames * height * width, 4))
    clips = [places((2, height, width), 9), places((1, height, width), 17), places(latent)]
    plain = inputs(batch, seed, latent)
    return {name: plain[name] for name in ("encoder_hidden_states", "encoder_attention_mask")} | {
        "hidden_states": hidden,
        "timestep": torch.full(hidden.shape[:2], 500).index_fill(1, torch.arange(given), 0),
        "video_coords": torch.cat(clips, 1)[None].repeat(batch, 1, 1),
    }


FAMILIES = (
    Family("ltx", model, inputs, (TokenGrid(5, 3, 7),), (3, 8, 6)),
    Family("ltx-conditioned", model, conditioned, (TokenGrid(5, 3, 7, 63, text_first=True),), (6, 4, 5), joint=True),
)
