"""Parts of a picture as visitors give them, painted or as boxes, and drawn around in what came of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw, ImageFilter, ImageOps
from torch import Tensor

from dattn.control.region import check_box

COLORS = {"orange": "#e69f00", "blue": "#56b4e9", "green": "#009e73", "pink": "#cc79a7"}
"""One for each region; people who see few colours tell them apart (Okabe and Ito, 2008)."""
SHOWN = 256
"""Pixels that the larger side of a small picture is enlarged to, at most; so no shape makes the result large."""
MOST_LAYERS = 8
"""Of a canvas."""
OPAQUE = 128
Size = tuple[int, int]
"""Width and height."""


def zoom(height: int, width: int) -> int:
    """How much larger than it is a picture is shown."""
    return max(1, SHOWN // max(height, width))


def painted(canvas: Any, size: Size) -> list[Image.Image | None]:
    """What is painted in each of the colours, as masks of a size; None where nothing is.

    Args:
        canvas: the value of an ``ImageEditor`` of PIL pictures; None is an empty one.

    Raises:
        ValueError: more layers than ``MOST_LAYERS``.
    """
    layers = (canvas or {}).get("layers") or []
    if len(layers) > MOST_LAYERS:
        raise ValueError(f"Canvas: {len(layers)} layers; {MOST_LAYERS} are the most, paint all on one")
    colors = np.array([ImageColor.getrgb(color) for color in COLORS.values()])
    nearest = np.full(size[::-1], -1)
    for layer in layers:
        pixels = np.asarray(layer.convert("RGBA").resize(size, Image.Resampling.NEAREST)).astype(int)
        found = ((pixels[..., None, :3] - colors) ** 2).sum(-1).argmin(-1)
        nearest = np.where(pixels[..., 3] >= OPAQUE, found, nearest)
    masks = [nearest == number for number in range(len(colors))]
    return [Image.fromarray(mask.astype(np.uint8) * 255) if mask.any() else None for mask in masks]


def around(mask: Image.Image) -> Image.Image:
    """The smallest box that holds all of a mask, filled."""
    box = Image.new("L", mask.size)
    box.paste(255, mask.getbbox())
    return box


def boxed(text: str, size: Size) -> Image.Image:
    """A box as a mask.

    Args:
        text: left, top, right and bottom as fractions of the picture.

    Raises:
        ValueError: something else.
    """
    try:
        numbers = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise ValueError(f"Box {text[:40]!r}: write left, top, right, bottom, such as 0, 0, 0.5, 1") from None
    left, top, right, bottom = check_box(numbers)
    mask, (width, height) = Image.new("L", size), size
    corners = [round(left * width), round(top * height), round(right * width) - 1, round(bottom * height) - 1]
    if corners[2] < corners[0] or corners[3] < corners[1]:
        raise ValueError(f"Box {text[:40]!r}: it is thinner than a pixel; make it larger")
    ImageDraw.Draw(mask).rectangle(corners, fill=255)
    return mask


def softened(mask: Image.Image, pixels: float) -> Tensor:
    """A mask as shares in [0, 1], its edge spread over so many pixels: float32 [height, width]."""
    soft = mask.filter(ImageFilter.GaussianBlur(pixels)) if pixels else mask
    return torch.from_numpy(np.array(soft)).float() / 255


def outlined(clip: np.ndarray, masks: Mapping[str, Image.Image], scale: int) -> np.ndarray:
    """A clip, enlarged, with lines around parts of it.

    Args:
        clip: uint8 [frames, height, width, 3].
        masks: by colour, at the enlarged size.
    """
    large = clip.repeat(scale, 1).repeat(scale, 2)
    thickness = 2 * max(1, scale // 2) + 1
    for color, mask in masks.items():
        framed = ImageOps.expand(mask, thickness)  # a part that ends with the picture has a line there too
        inner = ImageOps.crop(framed.filter(ImageFilter.MinFilter(thickness)), thickness)
        edge = (np.asarray(mask) >= OPAQUE) & (np.asarray(inner) < OPAQUE)
        large[:, edge] = ImageColor.getrgb(color)
    return large
