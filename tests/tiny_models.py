"""Tiny random models of every supported family, with sizes that divide nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from diffusers import (
    CogVideoXTransformer3DModel,
    FluxTransformer2DModel,
    UNet2DConditionModel,
    WanTransformer3DModel,
)
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch import Tensor, nn

from dattn.attention import attention
from dattn.grid import TokenGrid

Inputs = dict[str, object]


def _inputs(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def _ready(model: nn.Module) -> nn.Module:
    """Random weights large enough that attention matters, the same on every call."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(0.1 * noise + (0 if name.endswith("bias") else 1))
    return model.eval()


def wan(**changes: object) -> nn.Module:
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
    return _ready(WanTransformer3DModel(**(config | changes)))


def wan_inputs(batch: int = 1, seed: int = 0, latent: tuple[int, int, int] = (5, 6, 10)) -> Inputs:
    hidden, text = _inputs(seed, (batch, 4, *latent), (batch, 7, 10))
    return {"hidden_states": hidden, "encoder_hidden_states": text, "timestep": torch.full((batch,), 500)}


def cogvideox(**changes: object) -> nn.Module:
    """Three layers of 2 heads x 16, rotary embedding, text of 6 tokens."""
    config = dict(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=10,
        num_layers=3,
        sample_width=10,
        sample_height=6,
        sample_frames=17,
        max_text_seq_length=6,
        use_rotary_positional_embeddings=True,
    )
    return _ready(CogVideoXTransformer3DModel(**(config | changes)))


def cogvideox_inputs(batch: int = 1, seed: int = 0, latent: tuple[int, int, int] = (5, 6, 10)) -> Inputs:
    frames, height, width = latent
    hidden, text = _inputs(seed, (batch, frames, 4, height, width), (batch, 6, 10))
    size = (height // 2, width // 2)
    rotary = get_3d_rotary_pos_embed(16, ((0, 0), size), size, frames)
    return {
        "hidden_states": hidden,
        "encoder_hidden_states": text,
        "timestep": torch.full((batch,), 500),
        "image_rotary_emb": rotary,
    }


def unet(**changes: object) -> nn.Module:
    """Three levels, attention at each and in the middle; 2 heads."""
    config = dict(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=10,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    return _ready(UNet2DConditionModel(**(config | changes)))


def unet_inputs(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (13, 10)) -> Inputs:
    sample, text = _inputs(seed, (batch, 4, *latent), (batch, 7, 10))
    return {"sample": sample, "encoder_hidden_states": text, "timestep": torch.full((batch,), 500)}


def flux(**changes: object) -> nn.Module:
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
    return _ready(FluxTransformer2DModel(**(config | changes)))


def flux_inputs(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (7, 9), reference: int = 0) -> Inputs:
    """``reference`` rows of a second picture follow the first, as in Kontext."""
    height, width = latent
    hidden, text, pooled = _inputs(seed, (batch, (height + reference) * width, 8), (batch, 6, 10), (batch, 12))
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


@dataclass(frozen=True)
class Family:
    """How a test builds, calls and checks one family; ``grids`` are those of its self-attention layers."""

    name: str
    model: Callable[..., nn.Module]
    inputs: Callable[..., Inputs]
    grids: tuple[TokenGrid, ...]
    other: tuple[int, ...]

    def run(self, model: nn.Module, batch: int = 1, seed: int = 0, **shape: object) -> Tensor:
        """The model's output without gradients."""
        with torch.no_grad():
            return model(**self.inputs(batch, seed, **shape), return_dict=False)[0]

    def run_in(self, model: nn.Module, dtype: torch.dtype) -> Tensor:
        """Like ``run``, with inputs of another precision; tables of positions stay as they are."""
        inputs = {
            name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
            for name, value in self.inputs().items()
        }
        with torch.no_grad():
            return model(**inputs, return_dict=False)[0]


FAMILIES = {
    family.name: family
    for family in (
        Family("wan", wan, wan_inputs, (TokenGrid(5, 3, 5),), (3, 8, 6)),
        Family("cogvideox", cogvideox, cogvideox_inputs, (TokenGrid(5, 3, 5, 6, text_first=True),), (3, 8, 6)),
        Family("flux", flux, flux_inputs, (TokenGrid(1, 7, 9, 6, text_first=True),), (5, 11)),
        Family("unet", unet, unet_inputs, (TokenGrid(1, 13, 10), TokenGrid(1, 7, 5), TokenGrid(1, 4, 3)), (9, 15)),
    )
}


def sample(inputs: Inputs, row: int) -> Inputs:
    """One sample of a batch; tables of positions have no batch."""
    batched = lambda name, value: isinstance(value, Tensor) and not name.endswith("_ids")
    return {name: value[row : row + 1] if batched(name, value) else value for name, value in inputs.items()}


@contextmanager
def masked_sdpa(pattern: Any, grids: tuple[TokenGrid, ...]) -> Iterator[None]:
    """Stock models whose SDPA calls get the pattern's own element-wise mask wherever the length is a grid's.

    An operator takes the place of the call.
    """
    plain = F.scaled_dot_product_attention
    by_length = {grid.tokens: grid for grid in grids}
    fitted = {grid.tokens: pattern.fit(grid)[0] for grid in grids}
    masks = {grid.tokens: fitted[grid.tokens].allowed(grid) for grid in grids if pattern.static}
    met = set()

    def sdpa(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **rest: object) -> Tensor:
        if key.shape[2] == query.shape[2]:
            met.add(query.shape[2])
            if not pattern.static:
                return attention(query, key, value, fitted[query.shape[2]], by_length[query.shape[2]])
            attn_mask = masks[query.shape[2]]
            if attn_mask.ndim == 3:
                attn_mask = attn_mask[torch.arange(query.shape[1]) * len(attn_mask) // query.shape[1]]
        return plain(query, key, value, attn_mask=attn_mask, **rest)

    with mock.patch.object(F, "scaled_dot_product_attention", sdpa):
        yield
    assert met == set(by_length)


class Pipeline:
    """The part of a pipeline that the plugin sees: components by name, a scheduler, a denoising loop."""

    def __init__(self, scheduler: object, family: Family, **models: nn.Module) -> None:
        self.scheduler = scheduler
        self.family = family
        vars(self).update(models)

    def __call__(
        self, model: nn.Module, steps: int = 4, seed: int = 0, batch: int = 1, only: int | None = None
    ) -> Tensor:
        """Denoise with classifier-free guidance, one branch after the other where the model names them.

        ``only`` denoises that sample of the batch alone.
        """
        inputs = self.family.inputs(batch, seed)
        if only is not None:
            inputs, batch = sample(inputs, only), 1
        name = "sample" if "sample" in inputs else "hidden_states"
        self.scheduler.set_timesteps(steps)
        for time in self.scheduler.timesteps:
            call = inputs | {"timestep": time.expand(batch)}
            with torch.no_grad():
                guess = self._guided(model, call)
            inputs[name] = self.scheduler.step(guess, time, inputs[name], return_dict=False)[0]
        return inputs[name]

    def _guided(self, model: nn.Module, call: Inputs) -> Tensor:
        if not hasattr(model, "cache_context"):
            return model(**call, return_dict=False)[0]
        with model.cache_context("cond"):
            cond = model(**call, return_dict=False)[0]
        with model.cache_context("uncond"):
            blank = call | {"encoder_hidden_states": torch.zeros_like(call["encoder_hidden_states"])}
            uncond = model(**blank, return_dict=False)[0]
        return uncond + 3 * (cond - uncond)
