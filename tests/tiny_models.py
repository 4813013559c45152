"""Tiny random models of every supported family, with sizes that divide nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from diffusers import CogVideoXTransformer3DModel, UNet2DConditionModel, WanTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch import Tensor, nn

from dattn.grid import TokenGrid

Inputs = dict[str, object]


def _inputs(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def _ready(model: nn.Module) -> nn.Module:
    """Random weights large enough that attention matters, the same on every call."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
    return model.eval()


def wan(**changes: object) -> nn.Module:
    """Three layers of 2 heads x 12."""
    config = dict(  # noqa: C408
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
    config = dict(  # noqa: C408
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
    config = dict(  # noqa: C408
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


FAMILIES = {
    family.name: family
    for family in (
        Family("wan", wan, wan_inputs, (TokenGrid(5, 3, 5),), (3, 8, 6)),
        Family("cogvideox", cogvideox, cogvideox_inputs, (TokenGrid(5, 3, 5, 6, text_first=True),), (3, 8, 6)),
        Family("unet", unet, unet_inputs, (TokenGrid(1, 13, 10), TokenGrid(1, 7, 5), TokenGrid(1, 4, 3)), (9, 15)),
    )
}


class Pipeline:
    """The part of a pipeline that the plugin sees: components by name, a scheduler, a denoising loop."""

    def __init__(self, scheduler: object, family: Family, **models: nn.Module) -> None:
        self.scheduler = scheduler
        self.family = family
        vars(self).update(models)
        self.seen: list[SimpleNamespace] = []

    def __call__(self, model: nn.Module, steps: int = 4, seed: int = 0, batch: int = 1) -> Tensor:
        """Denoise with classifier-free guidance, one branch after the other where the model names them."""
        inputs = self.family.inputs(batch, seed)
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
