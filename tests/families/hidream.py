"""Tiny random HiDream: pictures that are square, and others, which it pads."""

from __future__ import annotations

import torch
from diffusers import HiDreamImageTransformer2DModel
from torch import nn

from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs, random, ready


def model(**changes: object) -> nn.Module:
    """Two joint layers and a single one of 2 heads x 16, at most 90 tokens of a picture."""
    config = dict(
        patch_size=2,
        in_channels=4,
        num_layers=2,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=[10, 12],
        text_emb_dim=8,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 6, 6),
        max_resolution=(18, 20),
        llama_layers=[0, 1, 2],
    )
    return ready(HiDreamImageTransformer2DModel(**(config | changes)))


def inputs(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (7, 9)) -> Inputs:
    """A text of 4 tokens, and one of 5 in three layers."""
    size = (batch, 4, 2 * latent[0], 2 * latent[1])
    hidden, text, pooled, *llama = random(seed, size, (batch, 4, 10), (batch, 8), *[(batch, 5, 12)] * 3)
    return {
        "hidden_states": hidden,
        "timesteps": torch.full((batch,), 500),
        "encoder_hidden_states_t5": text,
        "encoder_hidden_states_llama3": tuple(llama),
        "pooled_embeds": pooled,
    }


def without_experts(**changes: object) -> nn.Module:
    return model(num_routed_experts=0, **changes)


def square(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (7, 7)) -> Inputs:
    return inputs(batch, seed, latent)


CANNOT = {
    "fused": "the class has no fused projections",
    "first_block_cache": "the class has no cache",
    "compile_repeated_blocks": "the class names no repeated blocks",
}
NO_GRAPH = CANNOT | {"compile": "the model counts the tokens of every expert"}
FAMILIES = (
    Family("hidream", model, inputs, (TokenGrid(1, 7, 9, 27 + 14),), (5, 11), joint=True, cannot=NO_GRAPH),
    Family("hidream-square", without_experts, square, (TokenGrid(1, 7, 7, 14),), (9, 9), joint=True, cannot=CANNOT),
)
