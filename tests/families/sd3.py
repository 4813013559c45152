"""Tiny random Stable Diffusion 3, 3.5 with control residuals, and 3 with an IP-Adapter."""

from __future__ import annotations

from functools import partial

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from torch import nn

from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs, random, ready


def model(**changes: object) -> nn.Module:
    """Three layers of 2 heads x 8."""
    config = dict(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=10,
        caption_projection_dim=16,
        pooled_projection_dim=12,
        out_channels=4,
        pos_embed_max_size=12,
    )
    return ready(SD3Transformer2DModel(**(config | changes)))


def with_adapter(**changes: object) -> nn.Module:
    """Every processor is the IP-Adapter's, as loading one leaves it."""
    adapted = model(**changes)
    processors = {name: SD3IPAdapterJointAttnProcessor2_0(16, 16, 8, 9) for name in adapted.attn_processors}
    adapted.set_attn_processor(processors)
    return ready(adapted)


def inputs(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (15, 18)) -> Inputs:
    """Text of 6 tokens."""
    hidden, text, pooled = random(seed, (batch, 4, *latent), (batch, 6, 10), (batch, 12))
    return {
        "hidden_states": hidden,
        "encoder_hidden_states": text,
        "pooled_projections": pooled,
        "timestep": torch.full((batch,), 500),
    }


def controlled(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (15, 18)) -> Inputs:
    """With the residuals of a ControlNet of two layers."""
    shape = (batch, (latent[0] // 2) * (latent[1] // 2), 16)
    return inputs(batch, seed, latent) | {"block_controlnet_hidden_states": tuple(random(seed + 50, shape, shape))}


def prompted(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (15, 18)) -> Inputs:
    """With 5 tokens of a picture prompt, and their embedded time."""
    tokens, time = random(seed + 50, (batch, 5, 16), (batch, 9))
    return inputs(batch, seed, latent) | {"joint_attention_kwargs": {"ip_hidden_states": tokens, "temb": time}}


JOINT, PICTURE = TokenGrid(1, 7, 9, 6), TokenGrid(1, 7, 9)
CANNOT = {
    "first_block_cache": "the class has no caches in Diffusers",
    "compile_repeated_blocks": "the class names no repeated blocks",
}
FUSED_2 = {"fused": "Diffusers' fused processor asks for text, which attn2 has none of"}
FUSED_IP = {"fused": "Diffusers' fused processor takes the IP-Adapter's place"}
FAMILIES = (
    Family("sd3", model, inputs, (JOINT,), (10, 22), joint=True, cannot=CANNOT),
    Family(
        "sd3-3.5",
        partial(model, dual_attention_layers=(0, 1), qk_norm="rms_norm"),
        controlled,
        (JOINT, PICTURE),
        (10, 22),
        joint=True,
        cannot=CANNOT | FUSED_2,
    ),
    Family("sd3-ip_adapter", with_adapter, prompted, (JOINT,), (10, 22), joint=True, cannot=CANNOT | FUSED_IP),
)
