"""Tiny random HunyuanImage: with text of glyphs, without, and the refiner."""

from __future__ import annotations

import torch
from diffusers import HunyuanImageTransformer2DModel
from torch import Tensor, nn

from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs, random, ready


def model(**changes: object) -> nn.Module:
    """Two joint layers, a single one and one for text, 2 heads x 16; guidance and a second time are embedded."""
    config = dict(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=1,
        num_refiner_layers=1,
        guidance_embeds=True,
        text_embed_dim=10,
        rope_axes_dim=(8, 8),
        use_meanflow=True,
    )
    return ready(HunyuanImageTransformer2DModel(**(config | changes)))


def padding(batch: int, tokens: int, *lengths: int) -> Tensor:
    """The lengths of the first sample and of the others."""
    mask = torch.ones(batch, tokens, dtype=torch.int64)
    mask[:1, lengths[0] :] = 0
    mask[1:, lengths[1] :] = 0
    return mask


def inputs(batch: int = 1, seed: int = 0, latent: tuple[int, ...] = (7, 9)) -> Inputs:
    hidden, text = random(seed, (batch, 4, *latent), (batch, 8, 10))
    return {
        "hidden_states": hidden,
        "timestep": torch.full((batch,), 500.0),
        "timestep_r": torch.full((batch,), 400.0),
        "guidance": torch.full((batch,), 3500.0),
        "encoder_hidden_states": text,
        "encoder_attention_mask": padding(batch, 8, 6, 3),
    }


def with_glyphs(**changes: object) -> nn.Module:
    return model(text_embed_2_dim=6, **changes)


def glyphs(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (7, 9)) -> Inputs:
    """Five more tokens of text."""
    (text,) = random(seed + 1, (batch, 5, 6))
    more = {"encoder_hidden_states_2": text, "encoder_attention_mask_2": padding(batch, 5, 2, 4)}
    return inputs(batch, seed, latent) | more


def refiner(**changes: object) -> nn.Module:
    return model(patch_size=(1, 2, 2), rope_axes_dim=(4, 6, 6), **changes)


def refined(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (7, 9)) -> Inputs:
    """One frame."""
    return inputs(batch, seed, (1, 2 * latent[0], 2 * latent[1]))


ALONE = {"token_refiner": "text alone"}
CANNOT = {"checkpointing": "Diffusers passes names that its own checkpointing does not take"}
NO_GRAPH = CANNOT | {"compile": "the model sorts padding by what masks say"}
SIZE, GRIDS = (5, 11), (TokenGrid(1, 7, 9, 8),)
MORE = (TokenGrid(1, 7, 9, 13),)
FAMILIES = (
    Family("hunyuan_image", model, inputs, GRIDS, SIZE, joint=True, stock=ALONE, cannot=CANNOT),
    Family("hunyuan_image-glyphs", with_glyphs, glyphs, MORE, SIZE, joint=True, stock=ALONE, cannot=NO_GRAPH),
    Family("hunyuan_image-refiner", refiner, refined, GRIDS, SIZE, joint=True, stock=ALONE, cannot=CANNOT),
)
