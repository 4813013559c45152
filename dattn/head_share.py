"""A pattern for some of a layer's heads, where the others are computed elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dattn.block_mask import BlockMask
from dattn.grid import TokenGrid
from dattn.patterns.base import Pattern


@dataclass(frozen=True)
class HeadShare(Pattern):
    """What a static pattern is for the heads ``heads`` of ``of``, which then are all that there are.

    Args:
        pattern: the static pattern.
        heads: their numbers.
        of: how many heads the layer has.
    """

    pattern: Any
    heads: tuple[int, ...]
    of: int

    @property
    def tail(self) -> bool | int:
        """That of the pattern."""
        return getattr(self.pattern, "tail", False)

    def mask(self, grid: TokenGrid) -> BlockMask:
        """The lists of those heads' groups."""
        mask: BlockMask = self.pattern.mask(grid)
        return mask if mask.groups == 1 else mask.of_groups([h * mask.groups // self.of for h in self.heads])

    def visual_allowed(self, grid: TokenGrid) -> Tensor:
        """bool [visual, visual], or [heads, visual, visual]: see ``Pattern.visual_allowed``."""
        allowed: Tensor = self.pattern.visual_allowed(grid)
        return allowed if allowed.ndim == 2 else allowed[[h * len(allowed) // self.of for h in self.heads]]
