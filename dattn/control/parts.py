"""A part of the picture without a prompt of its own."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dattn.control.region import Boxes, Region

Where = Tensor | Boxes
"""A mask, [height, width] or [frames, height, width]; or a box, or a track of boxes."""


def part(name: str, where: Any) -> Region:
    """A part of the picture by mask or boxes, under a name for messages.

    Raises:
        ValueError: neither.
    """
    return Region(name, mask=where) if isinstance(where, Tensor) else Region(name, box=where)
