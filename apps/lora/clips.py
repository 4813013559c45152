"""Files as clips of the sizes that are trained: buckets of frames, height and width."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from math import log
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .asking import Size
from .items import PICTURES


def bucket(text: str) -> Size:
    """An option type: ``FRAMESxHEIGHTxWIDTH`` or ``HEIGHTxWIDTH`` in pixels.

    Raises:
        argparse.ArgumentTypeError: something else.
    """
    parts = text.split("x")
    if len(parts) not in (2, 3) or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: write FRAMESxHEIGHTxWIDTH such as 49x480x832, or HEIGHTxWIDTH")
    frames, height, width = ([1] * (3 - len(parts))) + [int(part) for part in parts]
    return frames, height, width


def read(path: Path, fps: float | None = None, most: int | None = None) -> np.ndarray:
    """A picture or the frames of a clip, see ``read_video``: uint8 [frames, height, width, 3].

    Raises:
        ValueError: a file that is neither, or cannot be read.
    """
    from PIL import Image, ImageOps

    from ..media import read_video

    try:
        if path.suffix.lower() in PICTURES:
            with Image.open(path) as picture:
                return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))[None]
        return read_video(path, fps, most)[..., :3]
    except Exception as error:  # whatever broken or hostile files make their readers raise
        raise ValueError(f"{path}: cannot be read ({error or type(error).__name__})") from None


def fitting(shape: Sequence[int], buckets: Sequence[Size]) -> Size | None:
    """The bucket for a clip [frames, height, width]: as many frames as it has enough of, then the nearest shape."""
    short = [one for one in buckets if one[0] <= shape[0]]
    if not short:
        return None
    frames = max(one[0] for one in short)
    return min((one for one in short if one[0] == frames), key=lambda one: _apart(shape, one))


def _apart(shape: Sequence[int], size: Size) -> tuple[float, float]:
    """How far a clip's proportions are from a size's, then how far their areas are."""
    (_, height, width), (_, tall, wide) = shape, size
    return round(abs(log(tall * width / wide / height)), 6), abs(log(tall * wide / height / width))


def cut(clip: np.ndarray, size: Size) -> Tensor:
    """The first frames of a clip, scaled to cover a size and cut at its middle.

    Args:
        clip: uint8 [frames, height, width, 3].

    Returns:
        float32 [frames, height, width, 3] in [-1, 1].
    """
    frames, height, width = size
    pixels = torch.from_numpy(np.array(clip[:frames])).permute(0, 3, 1, 2).float() / 127.5 - 1
    scale = max(height / pixels.shape[2], width / pixels.shape[3])
    scaled = [max(wanted, round(side * scale)) for wanted, side in zip((height, width), pixels.shape[2:], strict=True)]
    if scaled != list(pixels.shape[2:]):
        pixels = F.interpolate(pixels, size=scaled, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
    top, left = ((have - wanted) // 2 for have, wanted in zip(scaled, (height, width), strict=True))
    return pixels[:, :, top : top + height, left : left + width].permute(0, 2, 3, 1).contiguous()
