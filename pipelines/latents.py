"""Pixels as latents in the scale that models know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def encoded(vae: Any, pixels: Tensor) -> Tensor:
    """Latents [batch, …] of pictures [batch, 3, height, width] or clips [batch, 3, frames, height, width] in [-1, 1].

    They are float32 and made in it: some autoencoders overflow in half precision.

    Raises:
        ValueError: an autoencoder whose latents are not finite.
    """
    before = vae.dtype
    try:
        made = vae.to(torch.float32).encode(pixels.to(vae.device, torch.float32))
    finally:
        vae.to(before)
    latents = _normal(vae, made.latent_dist.mode() if hasattr(made, "latent_dist") else made.latent)
    if not latents.isfinite().all():
        raise ValueError(f"{type(vae).__name__} gives latents that are not finite: its weights are damaged")
    return latents


def _normal(vae: Any, latents: Tensor) -> Tensor:
    """Latents as the model knows them, by mean and deviation of each channel or by one factor."""
    known = {**vae.config, **dict(vae.named_buffers())}
    mean, deviation = known.get("latents_mean"), known.get("latents_std")
    factor = vae.config.get("scaling_factor") or 1.0
    if mean is None or deviation is None:
        return (latents - (vae.config.get("shift_factor") or 0.0)) * factor
    shape = (1, -1, *[1] * (latents.ndim - 2))
    mean, deviation = (torch.as_tensor(x).view(shape).to(latents) for x in (mean, deviation))
    return (latents - mean) / deviation * factor
