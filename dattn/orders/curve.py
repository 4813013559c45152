"""Curve: along a 3-D Hilbert curve."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dattn.grid import TokenGrid, cut
from dattn.orders.base import Order


@dataclass(frozen=True)
class Curve(Order):
    """Along a 3-D Hilbert curve, so that a block's tokens are near each other on all axes.

    The curve runs through the smallest cube whose side is a power of two and that holds the grid, and leaves out what
    is not in the grid. Its index is that of Skilling, *Programming the Hilbert curve* (AIP Conf. Proc. 707, 2004).
    """

    def regions(self, grid: TokenGrid, block_size: int) -> tuple[Tensor, Tensor]:
        """See ``Order.regions``."""
        return hilbert_index(grid.coordinates()).argsort(stable=True), cut(grid.visual, block_size)


def hilbert_index(at: Tensor) -> Tensor:
    """int64 [points]: the place along a Hilbert curve of int64 [points, axes], coordinates of 0 or more."""
    bits = max(1, int(at.max()).bit_length())
    axes = list(at.clone().unbind(-1))
    for bit in range(bits - 1, 0, -1):  # undo the turns of every level, from the coarsest on
        below = (1 << bit) - 1
        for i, axis in enumerate(axes):
            here = axis >> bit & 1 == 1
            swap = torch.where(here, 0, (axes[0] ^ axis) & below)
            axes[0] = torch.where(here, axes[0] ^ below, axes[0] ^ swap)
            axes[i] = axes[i] ^ swap if i else axes[0]
    for i in range(1, len(axes)):  # Gray code, over the axes and over the bits
        axes[i] = axes[i] ^ axes[i - 1]
    flip = torch.zeros_like(axes[0])
    for bit in range(bits - 1, 0, -1):
        flip = flip ^ torch.where(axes[-1] >> bit & 1 == 1, (1 << bit) - 1, 0)
    index = torch.zeros_like(flip)
    for bit in range(bits - 1, -1, -1):
        for axis in axes:
            index = index << 1 | (axis ^ flip) >> bit & 1
    return index
