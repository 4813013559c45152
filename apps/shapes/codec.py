"""Clips to latents and back with the stock ``AutoencoderKLWan``, in two chunks, not one per latent frame.

The stock encoder and decoder are causal and keep a cache of the last frames of every convolution. So the
first frame alone and then all the others at once give the same numbers as the frame-by-frame loop of
``vae.encode`` and ``vae.decode``, several times faster, and without the clamp that kills gradients in training.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKLWan


def to_video(clips: np.ndarray) -> torch.Tensor:
    """uint8 ``[batch, frames, height, width, 3]`` to float32 ``[batch, 3, frames, ...]`` in [-1, 1]."""
    return torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def to_clips(video: torch.Tensor) -> np.ndarray:
    """The inverse of :func:`to_video`, clamped and rounded to uint8."""
    pixels = ((video.float().clamp(-1, 1) + 1) * 127.5).round()
    return pixels.permute(0, 2, 3, 4, 1).to(torch.uint8).cpu().numpy()


def encode(vae: AutoencoderKLWan, video: torch.Tensor) -> torch.Tensor:
    """Moments of the latent distribution, as ``vae.encode`` computes them.

    Args:
        vae: the autoencoder.
        video: ``[batch, 3, frames, height, width]`` in [-1, 1]; 1 + 4n frames.

    Returns:
        ``[batch, 2 * z_dim, latent_frames, height / 8, width / 8]``: mean, then log variance.
    """
    vae.clear_cache()
    parts = []
    for part in (video[:, :, :1], video[:, :, 1:]):
        if part.shape[2]:
            vae._enc_conv_idx = [0]
            parts.append(vae.encoder(part, feat_cache=vae._enc_feat_map, feat_idx=vae._enc_conv_idx))
    vae.clear_cache()
    return vae.quant_conv(torch.cat(parts, 2))


def decode(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Video of latents, as ``vae.decode`` but not clamped to [-1, 1].

    Args:
        vae: the autoencoder.
        latents: ``[batch, z_dim, latent_frames, height, width]``, not normalised.

    Returns:
        ``[batch, 3, frames, 8 * height, 8 * width]``.
    """
    vae.clear_cache()
    parts = []
    hidden = vae.post_quant_conv(latents)
    for part in (hidden[:, :, :1], hidden[:, :, 1:]):
        if part.shape[2]:
            vae._conv_idx = [0]
            parts.append(vae.decoder(part, feat_cache=vae._feat_map, feat_idx=vae._conv_idx))
    vae.clear_cache()
    return torch.cat(parts, 2)


def reconstruct(vae: AutoencoderKLWan, clips: np.ndarray) -> np.ndarray:
    """The round trip of uint8 clips ``[batch, frames, height, width, 3]`` through the mean latents."""
    with torch.no_grad():
        return to_clips(decode(vae, encode(vae, to_video(clips)).chunk(2, dim=1)[0]))


def psnr(clips: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of uint8 clips, one number for each: ``[batch]``."""
    error = ((clips.astype(np.float32) - others.astype(np.float32)) ** 2).mean((1, 2, 3, 4))
    return 10 * np.log10(255**2 / np.maximum(error, 1e-3))
