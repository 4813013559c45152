"""Tiled: box by box."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dattn.grid import TokenGrid
from dattn.groups import fits, sizes_on
from dattn.orders.base import Order
from dattn.patterns.base import PerAxis, as_tuple, check_per_axis


@dataclass(frozen=True)
class Tiled(Order):
    """Boxes of tokens, each a region.

    Args:
        tile: tokens of a box per axis, one number or (frames, height, width); None for the whole axis. The last box of
            an axis is smaller where they do not divide it.

    Raises:
        ValueError: a size below 1; one larger than its axis, when the grid is met.
    """

    tile: PerAxis = (4, 4, 4)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tile", as_tuple(self.tile))
        check_per_axis("tile", self.tile, optional=True)

    def fit(self, grid: TokenGrid) -> tuple[Tiled, str | None]:
        """Boxes no larger than the axes."""
        if fits(self.tile, grid):
            return self, None
        tile = sizes_on("tile", self.tile, grid, clamp=True)
        return replace(self, tile=tile), f"clamped to tile {tile}"

    def regions(self, grid: TokenGrid, block_size: int) -> tuple[Tensor, Tensor]:
        """See ``Order.regions``."""
        sizes = sizes_on("tile", self.tile, grid)
        counts = [math.ceil(n / size) for n, size in zip(grid.shape, sizes, strict=True)]
        frame, row, column = (grid.coordinates() // torch.tensor(sizes)).unbind(1)
        box = (frame * counts[1] + row) * counts[2] + column
        return box.argsort(stable=True), box.bincount(minlength=math.prod(counts))
