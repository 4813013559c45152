"""Tiny random Flux.1 (plain, Kontext with a ControlNet and embedded guidance, with an IP-Adapter) and its kin."""

from __future__ import annotations

import torch
from diffusers import (
    BriaFiboTransformer2DModel,
    BriaTransformer2DModel,
    FluxTransformer2DModel,
    LongCatImageTransformer2DModel,
    OvisImageTransformer2DModel,
)
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from torch import nn

from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs, random, ready

COMMON = dict(
    in_channels=8,
    num_layers=2,
    num_single_layers=1,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=10,
    axes_dims_rope=(4, 6, 6),
)


def model(**changes: object) -> nn.Module:
    """Two joint layers and a single one of 2 heads x 16."""
    return ready(FluxTransformer2DModel(**(COMMON | {"pooled_projection_dim": 12} | changes)))


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


def bria(**changes: object) -> nn.Module:
    return ready(BriaTransformer2DModel(**(COMMON | changes)))


def ovis(**changes: object) -> nn.Module:
    return ready(OvisImageTransformer2DModel(**(COMMON | {"out_channels": 8} | changes)))


def longcat(**changes: object) -> nn.Module:
    return ready(LongCatImageTransformer2DModel(**(COMMON | changes)))


def fibo(**changes: object) -> nn.Module:
    return ready(BriaFiboTransformer2DModel(**(COMMON | {"text_encoder_dim": 14} | changes)))


def unpooled(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (7, 9), reference: int = 0) -> Inputs:
    """Without the embedding of a text as a whole."""
    call = inputs(batch, seed, latent, reference)
    del call["pooled_projections"]
    return call


def referred(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (7, 9)) -> Inputs:
    return unpooled(batch, seed, latent, reference=4)


def padded(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (7, 9)) -> Inputs:
    """Three layers of a text encoder, and a mask over 2 tokens of padding; over 3 in all samples but the first."""
    mask = torch.ones(batch, 1, 1, 6 + latent[0] * latent[1], dtype=torch.bool)
    mask[:1, ..., 4:6] = False
    mask[1:, ..., 3:6] = False
    layers = tuple(random(seed + 1, *[(batch, 6, 14)] * 3))
    return unpooled(batch, seed, latent) | {
        "text_encoder_layers": layers,
        "joint_attention_kwargs": {"attention_mask": mask},
    }


SIZE, GRIDS, REFERRED = (5, 11), (TokenGrid(1, 7, 9, 6, text_first=True),), (TokenGrid(1, 7, 9, (6, 36)),)
NO_FLOAT8 = {"float8": "Diffusers casts a picture prompt to the type in which its projection is stored"}
NO_CACHE = {"first_block_cache": "Diffusers' caches do not know its blocks"}
NOT_FUSED = {"fused": "the class has no fused projections"}
BRIA = NO_CACHE | NOT_FUSED | {"compile_repeated_blocks": "the class names no repeated blocks"}
FIBO = NOT_FUSED | {"first_block_cache": "the class has no cache"}
FAMILIES = (
    Family("flux", model, inputs, GRIDS, SIZE, joint=True),
    Family("flux-kontext", guided, kontext, REFERRED, SIZE, joint=True),
    Family("flux-ip-adapter", with_picture_prompt, picture_prompt, GRIDS, SIZE, joint=True, cannot=NO_FLOAT8),
    Family("flux-bria", bria, unpooled, GRIDS, SIZE, joint=True, cannot=BRIA),
    Family("flux-fibo", fibo, padded, GRIDS, SIZE, joint=True, cannot=FIBO),
    Family("flux-longcat", longcat, referred, REFERRED, SIZE, joint=True, cannot=NO_CACHE),
    Family("flux-ovis", ovis, unpooled, GRIDS, SIZE, joint=True, cannot=NO_CACHE | NOT_FUSED),
)
