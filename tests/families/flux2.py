"""Tiny random Flux.2: plain, with reference pictures, and Klein KV."""

from __future__ import annotations

import torch
from diffusers import Flux2Transformer2DModel
from diffusers.models.transformers.transformer_flux2 import Flux2KVAttnProcessor, Flux2KVParallelSelfAttnProcessor
from torch import nn

from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs, random, ready


def model(**changes: object) -> nn.Module:
    """Two joint layers and a parallel one of 2 heads x 16."""
    config = dict(
        in_channels=8,
        num_layers=2,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=10,
        timestep_guidance_channels=8,
        axes_dims_rope=(4, 4, 4, 4),
    )
    return ready(Flux2Transformer2DModel(**(config | changes)))


def inputs(
    batch: int = 1, seed: int = 0, latent: tuple[int, int] = (7, 9), others: tuple[tuple[int, int], ...] = ()
) -> Inputs:
    """``others`` are the sizes of reference pictures, which stand ten apart."""
    places = [(10 * i, y, x, 0) for i, (h, w) in enumerate((latent, *others)) for y in range(h) for x in range(w)]
    hidden, text = random(seed, (batch, len(places), 8), (batch, 6, 10))
    return {
        "hidden_states": hidden,
        "encoder_hidden_states": text,
        "timestep": torch.full((batch,), 0.5),
        "guidance": torch.full((batch,), 3.5),
        "img_ids": torch.tensor(places).expand(batch, -1, -1),
        "txt_ids": torch.tensor([(0, 0, 0, i) for i in range(6)]).expand(batch, -1, -1),
    }


def edited(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (7, 9)) -> Inputs:
    """Two reference pictures."""
    return inputs(batch, seed, latent, ((5, 3), (3, 4)))


def keeping(**changes: object) -> nn.Module:
    """Klein KV, without embedded guidance."""
    tiny = model(guidance_embeds=False, **changes)
    for block in tiny.transformer_blocks:
        block.attn.set_processor(Flux2KVAttnProcessor())
    for block in tiny.single_transformer_blocks:
        block.attn.set_processor(Flux2KVParallelSelfAttnProcessor())
    return tiny


def kept(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (7, 9)) -> Inputs:
    """The first step, where a reference picture of 15 tokens comes first and its keys are kept."""
    call = inputs(batch, seed, latent, ((5, 3),))
    call["img_ids"] = call["img_ids"].roll(15, 1)
    return call | {"kv_cache_mode": "extract", "num_ref_tokens": 15}


GRIDS = (TokenGrid(1, 7, 9, 6, text_first=True),)
ALONE = {"": "keys of reference pictures are kept"}
CANNOT = {"first_block_cache": "Diffusers takes the last block to return text as the first one does"}
FAMILIES = (
    Family("flux2", model, inputs, GRIDS, (5, 11), joint=True, cannot=CANNOT),
    Family("flux2-edit", model, edited, (TokenGrid(1, 7, 9, (6, 27)),), (5, 11), joint=True, cannot=CANNOT),
    Family("flux2-kv", keeping, inputs, GRIDS, (5, 11), joint=True, cannot=CANNOT),
    Family("flux2-kv-edit", keeping, kept, (), (5, 11), joint=True, stock=ALONE, cannot=CANNOT),
)
