"""Tiny random Hunyuan-DiT."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import HunyuanDiT2DModel
from diffusers.models.embeddings import get_2d_rotary_pos_embed
from torch import Tensor, nn

from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs, random, ready


class Controlled(HunyuanDiT2DModel):
    """Hunyuan-DiT, which empties the list of residuals that it gets, on a list of its own."""

    def forward(self, *args: Any, controlnet_block_samples: tuple[Tensor, ...], **kwargs: Any) -> Any:
        return super().forward(*args, controlnet_block_samples=[*controlnet_block_samples], **kwargs)


def model(**changes: object) -> nn.Module:
    """Four layers of 2 heads x 8, the last of which is handed what the first gave."""
    config = dict(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        patch_size=2,
        sample_size=16,
        hidden_size=16,
        num_layers=4,
        cross_attention_dim=10,
        cross_attention_dim_t5=16,
        pooled_projection_dim=6,
        text_len=5,
        text_len_t5=8,
    )
    return ready(Controlled(**(config | changes)))


def inputs(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (15, 18)) -> Inputs:
    """Texts of 5 and 8 tokens, less in the second sample; a residual of a ControlNet."""
    size = latent[0] // 2, latent[1] // 2
    shapes = (batch, 4, *latent), (batch, 5, 10), (batch, 8, 16), (batch, size[0] * size[1], 16)
    hidden, text, text_t5, residual = random(seed, *shapes)
    mask, mask_t5 = (torch.ones(batch, length, dtype=torch.long) for length in (5, 8))
    mask[1:, 3:] = mask_t5[1:, 4:] = 0
    return {
        "hidden_states": hidden,
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": text,
        "text_embedding_mask": mask,
        "encoder_hidden_states_t5": text_t5,
        "text_embedding_mask_t5": mask_t5,
        "image_meta_size": torch.tensor([[120.0, 144, 120, 144, 0, 0]]).repeat(batch, 1),
        "style": torch.zeros(batch, dtype=torch.long),
        "image_rotary_emb": get_2d_rotary_pos_embed(8, ((0, 0), size), size),
        "controlnet_block_samples": (residual,),
    }


CANNOT = {
    "lora": "the class takes no adapters in Diffusers",
    "offload": "what pools the text reads weights past their modules, which then are away",
    "group_offload": "the class does not support it",
    "checkpointing": "the class does not support it",
    "first_block_cache": "the class has no caches in Diffusers",
    "compile_repeated_blocks": "the class names no repeated blocks",
}
FAMILIES = (Family("hunyuan_dit", model, inputs, (TokenGrid(1, 7, 9),), (10, 22), cannot=CANNOT),)
