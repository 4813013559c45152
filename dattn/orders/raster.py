"""Raster and PatchMajor: along the axes of the grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dattn.grid import TokenGrid, cut
from dattn.orders.base import Order


@dataclass(frozen=True)
class Raster(Order):
    """As the model holds the tokens: frame, row, column."""

    def regions(self, grid: TokenGrid, block_size: int) -> tuple[Tensor, Tensor]:
        """See ``Order.regions``."""
        return torch.arange(grid.visual), cut(grid.visual, block_size)


@dataclass(frozen=True)
class PatchMajor(Order):
    """Row, column, frame: the same place over time is contiguous (Sparse VideoGen, arXiv 2502.01776)."""

    def regions(self, grid: TokenGrid, block_size: int) -> tuple[Tensor, Tensor]:
        """See ``Order.regions``."""
        return torch.arange(grid.visual).view(grid.frames, -1).T.flatten(), cut(grid.visual, block_size)
