"""Tiny random Flux.1: plain, Kontext with a ControlNet and embedded guidance, and with an IP-Adapter."""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from torch import nn

from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs, random, ready


def model(**changes: object) -> nn.Module:
    """Two joint layers and a single one of 2 heads x 16."""
    config = dict(
        in_channels=8,
        num_layers=2,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=10,
        pooled_projection_dim=12,
        axes_dims_rope=(4, 6, 6),
    )
    return ready(FluxTransformer2DModel(**(config | changes)))


def inputs(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (7, 9), reference: int = 0) -> Inputs:
    """``reference`` rows of a second picture follow the first, as in Kontext."""
    height, width = latent
    hidden, text, pooled = random(seed, (batch, (height + reference) * width, 8), (batch, 6, 10), (batch, 12))
    places = [(0, y, x) for y in range(height) for x in range(width)]
    places += [(1, y, x) for y in range(reference) for x in range(width)]
    return {
        "hidden_states": hidden,
        "encoder_hidden_states": text,
        "pooled_projections": pooled,
        "timestep": torch.full((batch,), 0.5),
        "img_ids": torch.tensor(places, dtype=torch.float32),
        "txt_ids": torch.zeros(6, 3),
    }


def guided(**changes: object) -> nn.Module:
    """Distilled: the strength of guidance is an input."""
    return model(guidance_embeds=True, **changes)


def kontext(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (7, 9)) -> Inputs:
    """A reference picture of four rows, a ControlNet's residuals for both kinds of blocks."""
    call = inputs(batch, seed, latent, reference=4)
    residuals = random(seed + 1, *[(batch, call["hidden_states"].shape[1], 32)] * 3)
    return call | {
        "guidance": torch.full((batch,), 3.5),
        "controlnet_block_samples": tuple(residuals[:2]),
        "controlnet_single_block_samples": tuple(residuals[2:]),
    }


def with_picture_prompt(**changes: object) -> nn.Module:
    """An IP-Adapter of 4 tokens in the joint layers, as ``load_ip_adapter`` leaves it."""
    tiny = model(**changes)
    for block in tiny.transformer_blocks:
        block.attn.set_processor(FluxIPAdapterAttnProcessor(32, 10))
    tiny.encoder_hid_proj = MultiIPAdapterImageProjection([ImageProjection(7, 10, 4)])
    return ready(tiny)


def picture_prompt(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (7, 9)) -> Inputs:
    """One picture's embedding for the one adapter."""
    embeds = random(seed + 1, (batch, 1, 7))
    return inputs(batch, seed, latent) | {"joint_attention_kwargs": {"ip_adapter_image_embeds": embeds}}


GRIDS = (TokenGrid(1, 7, 9, 6, text_first=True),)
CANNOT = {"float8": "Diffusers casts a picture prompt to the type in which its projection is stored"}
FAMILIES = (
    Family("flux", model, inputs, GRIDS, (5, 11), joint=True),
    Family("flux-kontext", guided, kontext, (TokenGrid(1, 7, 9, (6, 36)),), (5, 11), joint=True),
    Family("flux-ip-adapter", with_picture_prompt, picture_prompt, GRIDS, (5, 11), joint=True, cannot=CANNOT),
)
