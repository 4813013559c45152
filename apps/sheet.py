"""Contact sheets: a labelled row of frames for each clip, or labelled pictures in rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MARGIN, LABEL, GAP = 12, 20, 4
INK, PAPER, FAINT = (20, 20, 20), (255, 255, 255), (120, 120, 120)


def excerpt(clip: np.ndarray, columns: int = 9, cell: int = 128) -> tuple[np.ndarray, list[int]]:
    """The frames of a clip that a sheet shows, no larger than it shows them, and their numbers."""
    moments = _moments(len(clip), columns)
    if clip.shape[2] <= cell:
        return clip[moments], moments
    size = _size(clip.shape[1:3], cell)
    return np.stack([np.asarray(_scaled(clip[moment], size)) for moment in moments]), moments


def sheet(
    clips: Mapping[str, np.ndarray],
    title: str = "",
    columns: int = 9,
    cell: int = 128,
    numbers: Sequence[int] | None = None,
) -> Image.Image:
    """Put clips below each other, the same moments in the same columns.

    Args:
        clips: label of each row: uint8 ``[frames, height, width, 3]``, all of one size.
        title: a line above.
        columns: at most this many frames of each, spread evenly, first and last included.
        cell: width of a frame on the sheet, in pixels.
        numbers: of the frames, where they are an ``excerpt``.

    Raises:
        ValueError: no clips, or clips of different sizes.
    """
    shapes = {clip.shape for clip in clips.values()}
    if len(shapes) != 1:
        raise ValueError(f"clips of shapes {sorted(shapes)}: a sheet needs one or more of one size")
    frames, *shape = shapes.pop()[:3]
    moments, size = _moments(frames, columns), _size(shape, cell)
    numbers = numbers or range(frames)
    top = MARGIN + (LABEL if title else 0) + (LABEL if frames > 1 else 0)
    row = LABEL + size[1] + GAP
    across = max(len(moments) * (cell + GAP) - GAP, *(_width(text) for text in (title, *clips)))
    paper = Image.new("RGB", (2 * MARGIN + across, top + row * len(clips) + MARGIN - GAP), PAPER)
    draw = ImageDraw.Draw(paper)
    draw.text((MARGIN, MARGIN - 4), title, INK, font=_font())
    for i, moment in enumerate(moments if frames > 1 else []):
        draw.text(
            (MARGIN + i * (cell + GAP), top - LABEL),
            f"frame {numbers[moment]}",
            FAINT,
            font=_font(),
        )
    for j, (label, clip) in enumerate(clips.items()):
        draw.text((MARGIN, top + j * row), label, INK, font=_font())
        for i, moment in enumerate(moments):
            paper.paste(_scaled(clip[moment], size), (MARGIN + i * (cell + GAP), top + j * row + LABEL))
    return paper


def pictures(rows: Sequence[Mapping[str, np.ndarray]], title: str = "", cell: int = 96) -> Image.Image:
    """Put pictures into rows, each under its label.

    Args:
        rows: label of each picture: uint8 ``[height, width, 3]``, all of one size.
        title: a line above.
        cell: width of a picture on the sheet, in pixels; columns are as wide as the longest label.
    """
    size = _size(next(iter(rows[0].values())).shape[:2], cell)
    step = max(cell, *(_width(label) for row in rows for label in row)) + LABEL
    top, row_height = MARGIN + (LABEL if title else 0), LABEL + size[1] + GAP
    across = max(step * max(map(len, rows)) - LABEL, _width(title))
    paper = Image.new("RGB", (2 * MARGIN + across, top + row_height * len(rows) + MARGIN - GAP), PAPER)
    draw = ImageDraw.Draw(paper)
    draw.text((MARGIN, MARGIN - 4), title, INK, font=_font())
    for j, row in enumerate(rows):
        for i, (label, picture) in enumerate(row.items()):
            place = MARGIN + i * step, top + j * row_height
            draw.text(place, label, INK, font=_font())
            paper.paste(_scaled(picture, size), (place[0], place[1] + LABEL))
    return paper


def _moments(frames: int, columns: int) -> list[int]:
    return np.unique(np.linspace(0, frames - 1, min(columns, frames)).round().astype(int)).tolist()


def _size(shape: Sequence[int], cell: int) -> tuple[int, int]:
    """Width and height of a frame on the sheet, of height and width."""
    return cell, max(1, round(cell * shape[0] / shape[1]))


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=13)


def _width(text: str) -> int:
    return int(_font().getlength(text)) + 1


def _scaled(frame: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Enlarged pixels stay pixels; only shrinking smooths."""
    picture = Image.fromarray(frame)
    enlarging = size[0] >= picture.width
    return picture.resize(size, Image.Resampling.NEAREST if enlarging else Image.Resampling.LANCZOS)
