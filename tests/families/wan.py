"""Tiny random Wan and its relatives."""

from __future__ import annotations

from functools import partial

import torch
from diffusers import (
    ChronoEditTransformer3DModel,
    SkyReelsV2Transformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from torch import nn

from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs, random, ready

Latent = tuple[int, int, int]


def model(kind: type[nn.Module] = WanTransformer3DModel, **changes: object) -> nn.Module:
    """Three layers of 2 heads x 12."""
    config = dict(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=10,
        freq_dim=8,
        ffn_dim=32,
        num_layers=3,
        rope_max_seq_len=32,
    )
    return ready(kind(**(config | changes)))


def inputs(batch: int = 1, seed: int = 0, latent: Latent = (5, 6, 10)) -> Inputs:
    hidden, text = random(seed, (batch, 4, *latent), (batch, 7, 10))
    return {"hidden_states": hidden, "encoder_hidden_states": text, "timestep": torch.full((batch,), 500)}


def image_to_video(batch: int = 1, seed: int = 0, latent: Latent = (5, 6, 10)) -> Inputs:
    """Tokens of the first frame from an image encoder."""
    (image,) = random(seed + 1, (batch, 4, 14))
    return inputs(batch, seed, latent) | {"encoder_hidden_states_image": image}


def timed(batch: int = 1, seed: int = 0, latent: Latent = (5, 6, 10)) -> Inputs:
    """Wan 2.2 5B: a timestep for every token, 0 in the given first frame."""
    frames, height, width = latent[0], latent[1] // 2, latent[2] // 2
    given = torch.arange(frames * height * width) < height * width
    return inputs(batch, seed, latent) | {"timestep": torch.where(given, 0, 500).repeat(batch, 1)}


def controlled(batch: int = 1, seed: int = 0, latent: Latent = (5, 6, 10)) -> Inputs:
    """VACE: control latents of their own."""
    (control,) = random(seed + 1, (batch, 6, *latent))
    return inputs(batch, seed, latent) | {"control_hidden_states": control}


def forced(batch: int = 1, seed: int = 0, latent: Latent = (5, 6, 10)) -> Inputs:
    """SkyReels-V2's diffusion forcing: a timestep for every frame. A frame rate too takes a batch of one."""
    times = torch.arange(100, 100 + 50 * latent[0], 50).repeat(batch, 1)
    return inputs(batch, seed, latent) | {"timestep": times, "enable_diffusion_forcing": True}


GRIDS = (TokenGrid(5, 3, 5),)
OTHER = (3, 8, 6)
UNCACHED = {"first_block_cache": "its block is not registered in Diffusers"}
SKYREELS = partial(model, SkyReelsV2Transformer3DModel)
FAMILIES = (
    Family("wan", model, inputs, GRIDS, OTHER),
    Family("wan-image", partial(model, image_dim=14, added_kv_proj_dim=24), image_to_video, GRIDS, OTHER),
    Family("wan-timed", model, timed, GRIDS, OTHER),
    Family(
        "wan-vace",
        partial(model, WanVACETransformer3DModel, vace_layers=[0, 2], vace_in_channels=6),
        controlled,
        GRIDS,
        OTHER,
    ),
    Family("wan-skyreels", SKYREELS, forced, GRIDS, OTHER, cannot=UNCACHED),
    Family(
        "wan-skyreels_causal",
        partial(SKYREELS, num_frame_per_block=2),
        partial(forced, latent=(4, 6, 10)),
        (),
        (6, 8, 6),
        stock={"attn1": "masks the frames to come"},
        cannot=UNCACHED,
    ),
    Family("wan-chronoedit", partial(model, ChronoEditTransformer3DModel), inputs, GRIDS, OTHER, cannot=UNCACHED),
)
