"""How alike two clips are: PSNR and SSIM, on arrays ``[frames, height, width, channels]`` in [0, 1]."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2


def unit(clip: np.ndarray) -> np.ndarray:
    """A clip of uint8, or of floats in [0, 1], as float64 in [0, 1]."""
    return clip / 255.0 if clip.dtype == np.uint8 else clip.astype(np.float64)


def psnr(clip: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB over all frames; infinite for equal clips.

    Raises:
        ValueError: different shapes.
    """
    _check(clip, reference)
    error = float(np.mean((unit(clip) - unit(reference)) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(clip: np.ndarray, reference: np.ndarray) -> float:
    """Structural similarity (Wang et al., 2004), mean over places, channels and frames.

    ::

        SSIM = (2 μx μy + c1)(2 σxy + c2) / ((μx² + μy² + c1)(σx² + σy² + c2))

    with means, variances and covariance weighted by a Gaussian of 11 × 11 pixels and σ = 1.5, at the places
    where it fits into the picture, c1 = 0.01², c2 = 0.03².

    Raises:
        ValueError: different shapes, or pictures smaller than the window.
    """
    _check(clip, reference)
    if min(clip.shape[1:3]) < WINDOW:
        raise ValueError(f"pictures of {clip.shape[1]} x {clip.shape[2]}: SSIM needs {WINDOW} x {WINDOW} or more")
    pairs = zip(unit(clip), unit(reference), strict=True)
    return float(np.mean([_ssim_of_frame(_planes(a), _planes(b)) for a, b in pairs]))


def _check(clip: np.ndarray, reference: np.ndarray) -> None:
    if clip.shape != reference.shape or clip.ndim != 4:
        shapes = f"{clip.shape} and {reference.shape}"
        raise ValueError(f"clips of shapes {shapes}: both must be [frames, height, width, channels]")


def _planes(frame: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1)))[:, None]  # [channels, 1, height, width]


def _gaussian() -> torch.Tensor:
    offset = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weight = torch.exp(-(offset**2) / (2 * SIGMA**2))
    return weight / weight.sum()


def _blur(planes: torch.Tensor) -> torch.Tensor:
    line = _gaussian()
    return F.conv2d(F.conv2d(planes, line.view(1, 1, 1, -1)), line.view(1, 1, -1, 1))


def _ssim_of_frame(x: torch.Tensor, y: torch.Tensor) -> float:
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + C1) * (2 * covariance + C2)
    return float((likeness / ((mean_x**2 + mean_y**2 + C1) * (var_x + var_y + C2))).mean())
