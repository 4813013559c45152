"""Pixels as the latents that a pipeline's model is given."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dattn.adapters import adapter_for
from dattn.pipelines.latents import encoded

from .asking import Manner


def latents_of(pipeline: Any, model: Any, pixels: Tensor, manner: Manner) -> Tensor:
    """Latents of one clip or picture, as the scheduler has them.

    Args:
        pixels: [frames, height, width, 3], in [-1, 1].
        manner: at this size.

    Returns:
        float32 [1, …] of ``manner.shape``.

    Raises:
        ValueError: a pipeline whose latents are of another shape.
    """
    vae = pipeline.vae
    clip = pixels.permute(3, 0, 1, 2)[None]
    latents = encoded(vae, clip if adapter_for(model).video or takes_clips(vae) else clip[:, :, 0])
    if adapter_for(model).frames_first:
        latents = latents.transpose(1, 2)
    if tuple(latents.shape[1:]) != manner.shape and hasattr(pipeline, "_pack_latents"):
        latents = _packed(pipeline, latents)
    if tuple(latents.shape[1:]) != manner.shape:
        raise ValueError(
            f"{type(pipeline).__name__} gives its model latents of {manner.shape}, but its autoencoder makes "
            f"{tuple(latents.shape[1:])} of a clip of {tuple(pixels.shape[:3])}: choose a size that both divide"
        )
    return latents


def takes_clips(vae: Any) -> bool:
    """Whether an autoencoder of pictures takes clips of one frame (Qwen-Image)."""
    return any(type(module).__name__.endswith("CausalConv3d") for module in vae.modules())


def _packed(pipeline: Any, latents: Tensor) -> Tensor:
    """Latents as a sequence of patches, in one of the two ways that pipelines have."""
    patches = [getattr(pipeline, f"transformer_{axis}_patch_size", None) for axis in ("spatial", "temporal")]
    if patches[0] is not None:
        return pipeline._pack_latents(latents, *patches)
    batch, channels, *_, height, width = latents.shape
    return pipeline._pack_latents(latents, batch, channels, height, width)
