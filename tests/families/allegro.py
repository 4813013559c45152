"""Tiny random Allegro."""

from __future__ import annotations

import torch
from diffusers import AllegroTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro
from torch import Tensor, nn

from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs, random, ready


def model(**changes: object) -> nn.Module:
    """Three layers of 2 heads x 12."""
    config = dict(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        cross_attention_dim=24,
        sample_height=6,
        sample_width=10,
        sample_frames=5,
        caption_channels=10,
    )
    return ready(AllegroTransformer3DModel(**(config | changes)))


def rotary(frames: int, height: int, width: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Tables of an axis each, and the places of all tokens, as the pipeline makes them."""
    size = height, width
    *tables, t, h, w = get_3d_rotary_pos_embed_allegro(12, ((0, 0), size), size, frames, (2.2, 2.0, 2.0))
    places = torch.cartesian_prod(t.long(), h.long(), w.long()).T[:, None]
    return tuple(tables), tuple(places)


def inputs(batch: int = 1, seed: int = 0, latent: tuple[int, int, int] = (5, 6, 10)) -> Inputs:
    """Text of 7 tokens; the second sample's last three are padding."""
    frames, height, width = latent
    hidden, text = random(seed, (batch, 4, *latent), (batch, 7, 10))
    mask = torch.ones(batch, 7)
    mask[1:, 4:] = 0
    return {
        "hidden_states": hidden,
        "encoder_hidden_states": text,
        "encoder_attention_mask": mask,
        "timestep": torch.full((batch,), 500),
        "image_rotary_emb": rotary(frames, height // 2, width // 2),
    }


CANNOT = {
    "lora": "the class takes no adapters in Diffusers",
    "first_block_cache": "Diffusers' caches do not know its blocks",
    "fused": "the class fuses nothing in Diffusers",
    "compile_repeated_blocks": "the class names no repeated blocks",
}
FAMILIES = (Family("allegro", model, inputs, (TokenGrid(5, 3, 5),), (3, 8, 6), cannot=CANNOT),)
