"""Textures that the world has no words for: a colour in upright or lying stripes, drawn and read from pixels.

Stripes are 4 pixels of 64 wide with gaps of 2, one of them through the centre. The autoencoder of the image models,
which has seen the world's colours alone, shows them; other colours it turns into its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .captions import COLORS, SHAPES
from .judge import PRESENT_AREA, color_cover, track
from .world import BACKGROUND, NATIVE_SIZE, PALETTE, coverage

DIRECTIONS = ("upright", "lying")
PERIOD, WIDTH = 6 / NATIVE_SIZE, 4 / NATIVE_SIZE
CONTRAST = 0.12
"""Least deviation of the mean colour across the stripes, in the middle of an object; that of plain ones is 0.05."""
TIMES = 2.0
"""It is at least so many times that along the stripes."""
OVERLAP = 0.7
"""Least intersection over union with the best shape, once gaps are filled."""


@dataclass(frozen=True)
class Striped:
    """An object with stripes.

    Attributes:
        color, shape: words of the world.
        direction: one of DIRECTIONS.
    """

    color: str
    shape: str
    direction: str


class Seen(NamedTuple):
    """What a picture shows in one colour.

    Attributes:
        shape: the most like it, None for none.
        direction: of its stripes, None for none.
        center: (x, y) as fractions of the picture.
    """

    shape: str | None
    direction: str | None
    center: tuple[float, float]


def draw(objects: dict[tuple[float, float], Striped], radius: float, size: int = NATIVE_SIZE) -> np.ndarray:
    """A picture of striped objects.

    Args:
        objects: by the place of their centre, (x, y) as fractions of the picture.
        radius: of all, as a fraction of the picture.
        size: of the picture, in pixels.

    Returns:
        uint8 ``[size, size, 3]``.
    """
    picture = np.broadcast_to(np.array(BACKGROUND, np.float32), (size, size, 3))
    for (x, y), one in objects.items():
        cover = coverage(one.shape, np.array([[x * size, y * size]]), radius * size, size, size)[0]
        at = (np.arange(size) + 0.5) / size - (x if one.direction == "upright" else y)
        bars = ((at + WIDTH / 2) % PERIOD < WIDTH).astype(np.float32)
        cover = cover * (bars if one.direction == "upright" else bars[:, None])
        picture = picture + cover[..., None] * (np.array(PALETTE[one.color], np.float32) - picture)
    return np.rint(picture).astype(np.uint8)


def read(picture: np.ndarray, color: str) -> Seen | None:
    """What has a colour; None where nothing as large as an object has it.

    Args:
        picture: ``[height, width, 3]``, uint8 or float in [0, 1].
        color: a word of the world.
    """
    pixels = np.asarray(picture, np.float32) * (1 if np.asarray(picture).dtype == np.uint8 else 255)
    cover = color_cover(pixels[None])[0, ..., COLORS.index(color)]
    x, y = track(cover[None]).center[0]
    height, width = cover.shape
    cover = np.roll(cover, (height // 2 - int(y * height), width // 2 - int(x * width)), (0, 1))  # to the middle
    filled = np.maximum(cover, _filled(cover > 0.3))
    if filled.mean() < PRESENT_AREA:
        return None
    overlap = track(filled[None]).overlap[0]
    shape = SHAPES[int(overlap.argmax())] if overlap.max() >= OVERLAP else None
    return Seen(shape, _direction(cover, filled), (float(x), float(y)))


def _filled(there: np.ndarray) -> np.ndarray:
    """With what lies between in a row or in a column, as in a shape without hollows."""
    between = [
        np.maximum.accumulate(there, axis) & np.flip(np.maximum.accumulate(np.flip(there, axis), axis), axis)
        for axis in (0, 1)
    ]
    return between[0] | between[1]


def _direction(cover: np.ndarray, filled: np.ndarray) -> str | None:
    height, width = cover.shape
    reach = round(0.6 * np.sqrt(filled.sum() / np.pi))
    middle = cover[height // 2 - reach : height // 2 + reach, width // 2 - reach : width // 2 + reach]
    across, down = middle.mean(0).std(), middle.mean(1).std()
    for name, one, other in (("upright", across, down), ("lying", down, across)):
        if one >= CONTRAST and one >= TIMES * other:
            return name
    return None
