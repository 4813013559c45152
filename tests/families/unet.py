"""Tiny random UNets: Stable Diffusion, XL, a ControlNet, an IP-Adapter, AnimateDiff and other videos."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers import (
    ControlNetModel,
    I2VGenXLUNet,
    UNet2DConditionModel,
    UNet3DConditionModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
)
from torch import Tensor, nn

from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs, random, ready

Latent = tuple[int, int]


def model(**changes: object) -> nn.Module:
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
    return ready(UNet2DConditionModel(**(config | changes)))


def xl() -> nn.Module:
    """XL's inpainting: attention at the lower levels alone, more of it the lower; 9 channels, added conditions."""
    return model(
        in_channels=9,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=12 + 6 * 4,
    )


def with_adapter() -> nn.Module:
    """An IP-Adapter is loaded as Diffusers loads one; the processors of cross-attention are then its own."""
    blocks = "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"
    adapted: Any = model(down_block_types=blocks)
    crossing = [name for name in adapted.attn_processors if name.endswith("attn2.processor")]
    widths = [adapted.get_submodule(name.removesuffix(".processor")).inner_dim for name in crossing]
    weights = {
        f"{2 * i + 1}.to_{which}_ip.weight": torch.zeros(width, 10) for i, width in enumerate(widths) for which in "kv"
    }
    project = {"proj.weight": torch.zeros(40, 6), "proj.bias": torch.zeros(40)}
    project |= {"norm.weight": torch.zeros(10), "norm.bias": torch.zeros(10)}
    adapted._load_ip_adapter_weights([{"image_proj": project, "ip_adapter": weights}])
    return ready(adapted)


class LowestControl(ControlNetModel):
    """A ControlNet that hands back one tensor, its last."""

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        return (super().forward(*args, **kwargs)[1],)


class Motion(UNetMotionModel):
    """AnimateDiff, with the text once per frame, as its pipelines pass it."""

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **kwargs: Any) -> Any:
        text = encoder_hidden_states.repeat_interleave(sample.shape[2], 0)
        return super().forward(sample, timestep, text, **kwargs)


def controlnet(**changes: object) -> nn.Module:
    """Two levels and the middle."""
    config = dict(
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=10,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        conditioning_embedding_out_channels=(4, 4),
    )
    return ready(LowestControl(**(config | changes)))


def video(kind: type, suffix: str, **changes: object) -> nn.Module:
    """A UNet of two levels that attends in space and, apart, in time."""
    config = dict(
        block_out_channels=(32, 32),
        layers_per_block=1,
        cross_attention_dim=10,
        down_block_types=(f"CrossAttnDownBlock{suffix}", f"CrossAttnDownBlock{suffix}"),
        up_block_types=(f"CrossAttnUpBlock{suffix}", f"CrossAttnUpBlock{suffix}"),
    )
    return ready(kind(**(config | changes)))


def inputs(batch: int = 1, seed: int = 0, latent: Latent = (13, 10)) -> Inputs:
    sample, text = random(seed, (batch, 4, *latent), (batch, 7, 10))
    return {"sample": sample, "encoder_hidden_states": text, "timestep": torch.full((batch,), 500)}


def xl_inputs(batch: int = 1, seed: int = 0, latent: Latent = (13, 10)) -> Inputs:
    """With mask and masked picture, sizes and pooled text, and the residuals of a ControlNet."""
    first, (second, third) = latent, [tuple(-(-side // 2**level) for side in latent) for level in (1, 2)]
    widths = (8, first), (8, first), (8, second), (8, second), (8, third), (16, third), (16, third)
    sample, pooled, *residuals = random(
        seed + 50, (batch, 9, *latent), (batch, 12), *((batch, width, *size) for width, size in widths)
    )
    times = torch.tensor([[104.0, 80, 0, 0, 104, 80]]).repeat(batch, 1)
    return inputs(batch, seed, latent) | {
        "sample": sample,
        "added_cond_kwargs": {"text_embeds": pooled, "time_ids": times},
        "down_block_additional_residuals": tuple(residuals[:-1]),
        "mid_block_additional_residual": residuals[-1],
    }


def prompted(batch: int = 1, seed: int = 0, latent: Latent = (13, 10)) -> Inputs:
    """With the embedding of a picture prompt."""
    picture = random(seed + 50, (batch, 1, 6))[0]
    return inputs(batch, seed, latent) | {"added_cond_kwargs": {"image_embeds": [picture]}}


def control_inputs(batch: int = 1, seed: int = 0, latent: Latent = (13, 10)) -> Inputs:
    """With the picture that controls."""
    height, width = latent
    picture = random(seed + 50, (batch, 3, 2 * height, 2 * width))[0]
    return inputs(batch, seed, latent) | {"controlnet_cond": picture}


def video_inputs(batch: int = 1, seed: int = 0, latent: Latent = (10, 6), first: int = 4) -> Inputs:
    """Six frames, behind the channels; ``first`` channels."""
    sample = random(seed + 50, (batch, first, 6, *latent))[0]
    return inputs(batch, seed, latent) | {"sample": sample}


def svd_inputs(batch: int = 1, seed: int = 0, latent: Latent = (10, 6)) -> Inputs:
    """Six frames, before the channels; one token of a picture."""
    found = video_inputs(batch, seed, latent, first=8)
    return found | {
        "sample": found["sample"].transpose(1, 2),
        "encoder_hidden_states": found["encoder_hidden_states"][:, :1],
        "added_time_ids": torch.tensor([[7.0, 127, 0.02]]).repeat(batch, 1),
    }


def i2vgen_inputs(batch: int = 1, seed: int = 0, latent: Latent = (10, 6)) -> Inputs:
    """With the first picture, twice."""
    latents, embedding = random(seed + 60, (batch, 4, 6, *latent), (batch, 10))
    added = {"fps": torch.full((batch,), 8), "image_latents": latents, "image_embeddings": embedding}
    return video_inputs(batch, seed, latent) | added


GRIDS = (TokenGrid(1, 13, 10), TokenGrid(1, 7, 5), TokenGrid(1, 4, 3))
VIDEO = (TokenGrid(1, 10, 6), TokenGrid(1, 5, 3))
CANNOT = {
    "first_block_cache": "UNets have no cache in Diffusers",
    "compile_repeated_blocks": "the class names no repeated blocks",
}
NO_PROMPT = {
    "fused": "Diffusers' fused processor takes no picture prompts",
    "float8": "Diffusers' projection of picture prompts casts its input to what its weights are stored in",
}
NO_LORA = {"lora": "the class takes no adapters in Diffusers"}
NEITHER = NO_LORA | {"checkpointing": "the class does not support it"}
OVER_TIME = dict.fromkeys(("motion_modules", "temp", "transformer_in"), "over time alone")

# A stock UNet of odd sizes fails under aot_eager.
Picture = partial(Family, other=(9, 15), cannot=CANNOT, compiler="eager")
Video = partial(Family, grids=VIDEO, other=(9, 7), stock=OVER_TIME, cannot=CANNOT | NO_LORA, compiler="eager")
GROUPS = {"norm_num_groups": 4, "attention_head_dim": 2}
MOTION = {"norm_num_groups": 4, "num_attention_heads": 2, "motion_num_attention_heads": 2}
SVD = {"num_attention_heads": (2, 2), "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 12}

FAMILIES = (
    Picture("unet", model, inputs, GRIDS),
    Picture("unet-xl", xl, xl_inputs, GRIDS[1:]),
    Picture("unet-ip_adapter", with_adapter, prompted, GRIDS, cannot=CANNOT | NO_PROMPT),
    Picture("unet-controlnet", controlnet, control_inputs, GRIDS[:2]),
    Video("unet-motion", partial(video, Motion, "Motion", **MOTION), video_inputs, cannot=CANNOT),
    Video("unet-svd", partial(video, UNetSpatioTemporalConditionModel, "SpatioTemporal", **SVD), svd_inputs),
    Video(
        "unet-3d",
        partial(video, UNet3DConditionModel, "3D", **GROUPS),
        video_inputs,
        cannot=CANNOT | NEITHER,
    ),
    Video(
        "unet-i2vgen",
        partial(video, I2VGenXLUNet, "3D", **GROUPS),
        i2vgen_inputs,
        cannot=CANNOT | NEITHER,
    ),
)
