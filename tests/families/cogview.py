"""Tiny random CogView 4, with a mask over text of either kind and without; CogView 3-Plus; GLM-Image."""

from __future__ import annotations

import torch
from diffusers import CogView3PlusTransformer2DModel, CogView4Transformer2DModel, GlmImageTransformer2DModel
from diffusers.models.transformers.transformer_cogview4 import CogView4TrainingAttnProcessor
from torch import Tensor, nn

from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs, random, ready

COMMON = dict(
    in_channels=4,
    out_channels=4,
    num_layers=3,
    attention_head_dim=16,
    num_attention_heads=2,
    text_embed_dim=10,
    time_embed_dim=8,
    condition_dim=4,
)


def model(**changes: object) -> nn.Module:
    """Three layers of 2 heads x 16."""
    return ready(CogView4Transformer2DModel(**(COMMON | changes)))


def inputs(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (7, 9)) -> Inputs:
    hidden, text = random(seed, (batch, 4, 2 * latent[0], 2 * latent[1]), (batch, 7, 10))
    size = torch.tensor([[32.0, 48.0]]).repeat(batch, 1)
    return {
        "hidden_states": hidden,
        "encoder_hidden_states": text,
        "timestep": torch.full((batch,), 500),
        "original_size": size,
        "target_size": size,
        "crop_coords": torch.zeros(batch, 2),
    }


def padding(batch: int) -> Tensor:
    """A text of 5 tokens and 2 of padding before them; of 3 and 4 in all samples but the first."""
    mask = torch.ones(batch, 7, dtype=torch.int32)
    mask[:1, :2] = 0
    mask[1:, :4] = 0
    return mask


def masked(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (7, 9)) -> Inputs:
    """With numbers that are added."""
    return inputs(batch, seed, latent) | {"attention_mask": padding(batch)}


def training(**changes: object) -> nn.Module:
    """With the processor for training."""
    tiny = model(**changes)
    for block in tiny.transformer_blocks:
        block.attn1.set_processor(CogView4TrainingAttnProcessor())
    return tiny


def hidden(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (7, 9)) -> Inputs:
    """Nobody sees padding."""
    return inputs(batch, seed, latent) | {"attention_kwargs": {"text_attn_mask": padding(batch)}}


def plus(**changes: object) -> nn.Module:
    """CogView 3-Plus."""
    return ready(CogView3PlusTransformer2DModel(**(COMMON | {"pos_embed_max_size": 24, "sample_size": 24} | changes)))


def glm(**changes: object) -> nn.Module:
    """GLM-Image."""
    return ready(GlmImageTransformer2DModel(**(COMMON | {"prior_vq_quantizer_codebook_size": 12} | changes)))


def drawn(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (7, 9)) -> Inputs:
    """A draft of the picture, of a token each."""
    call = inputs(batch, seed, latent)
    del call["original_size"]
    tokens = torch.arange(latent[0] * latent[1]).repeat(batch, 1)
    return call | {"prior_token_id": tokens % 12, "prior_token_drop": tokens % 5 == 0}


CANNOT = {
    "fused": "the class has no fused projections",
    "compile_repeated_blocks": "the class names no repeated blocks",
}
PLUS_CANNOT = {
    "lora": "the class takes no adapters",
    "first_block_cache": "the class has no cache",
    "compile_repeated_blocks": "the class names no repeated blocks",
}
GLM_CANNOT = {
    "fused": "the class has no fused projections",
    "first_block_cache": "Diffusers' caches do not know its blocks",
}
SIZE, GRIDS = (5, 11), (TokenGrid(1, 7, 9, 7, text_first=True),)
FAMILIES = (
    Family("cogview", model, inputs, GRIDS, SIZE, joint=True, cannot=CANNOT),
    Family("cogview-masked", model, masked, GRIDS, SIZE, joint=True, cannot=CANNOT),
    Family("cogview-training", training, hidden, GRIDS, SIZE, joint=True, cannot=CANNOT),
    Family("cogview-plus", plus, inputs, GRIDS, SIZE, joint=True, cannot=PLUS_CANNOT),
    Family("cogview-glm", glm, drawn, GRIDS, SIZE, joint=True, cannot=GLM_CANNOT),
)
