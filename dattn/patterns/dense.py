"""Dense: every token sees every token, the baseline that every pattern is measured against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dattn.block_mask import BlockMask, build
from dattn.grid import TokenGrid, raster_layout
from dattn.patterns.base import Pattern

BLOCK_SIZE = 128


@dataclass(frozen=True)
class Dense(Pattern):
    """Full attention."""

    def mask(self, grid: TokenGrid) -> BlockMask:
        """Every block pair, visited whole."""
        visual = -(-grid.visual // BLOCK_SIZE)
        rule = lambda first, last: (torch.ones(last - first, visual, dtype=torch.bool), None, None)
        return build(grid, raster_layout(grid, BLOCK_SIZE), rule, BLOCK_SIZE)

    def visual_allowed(self, grid: TokenGrid) -> Tensor:
        """bool [visual, visual], all true."""
        return torch.ones(grid.visual, grid.visual, dtype=torch.bool)
