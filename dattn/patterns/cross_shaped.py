"""Cross-shaped windows: half of the heads see stripes of rows, the other half stripes of columns.

CSWin (Dong et al., CVPR 2022, arXiv 2107.00652). With stripes of s tokens:

    heads of the first half    q sees k  iff  ⌊row(q) / s⌋ = ⌊row(k) / s⌋
    heads of the second half   q sees k  iff  ⌊column(q) / s⌋ = ⌊column(k) / s⌋

On a video a stripe goes through all frames. The last stripe of an axis is narrower where s does not divide it. Made
for trained backbones: a pretrained model has to be fine-tuned for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dattn.block_mask import BlockMask
from dattn.grid import TokenGrid
from dattn.groups import Groups, same_group
from dattn.head_masks import for_head_groups
from dattn.patterns.base import Pattern, check_count, check_tail


@dataclass(frozen=True)
class CrossShaped(Pattern):
    """CSWin: horizontal stripes for one half of the heads, vertical ones for the other.

    Args:
        stripe: rows, or columns, of a stripe; 1 or more.
        tail: pool what is skipped: False, True (one key per block) or a run of 16 … block size tokens.

    Raises:
        ValueError: a field outside these bounds; a stripe wider than height or width when the grid is met.
    """

    stripe: int
    tail: bool | int = False

    def __post_init__(self) -> None:
        check_count("stripe", self.stripe)
        check_tail(self.tail)

    @property
    def untuned(self) -> str:
        """It is meant for models that were trained with it."""
        return "made for trained backbones: fine-tune the model for it"

    def clamped(self, grid: TokenGrid) -> tuple[CrossShaped, str | None]:
        """A stripe no wider than height and width."""
        widest = min(grid.height, grid.width)
        if self.stripe <= widest:
            return self, None
        return replace(self, stripe=widest), f"clamped to stripe {widest}"

    def mask(self, grid: TokenGrid) -> BlockMask:
        """Two head groups, every block whole or not at all."""
        self._check(grid)
        sizes = (grid.frames, self.stripe, grid.width), (grid.frames, grid.height, self.stripe)
        return for_head_groups([Groups.boxes(grid, size).mask(same_group, self.tail) for size in sizes])

    def visual_allowed(self, grid: TokenGrid) -> Tensor:
        """bool [2, visual, visual], from the coordinates."""
        self._check(grid)
        stripe = grid.coordinates()[:, 1:].T // self.stripe
        return torch.eq(stripe[:, :, None], stripe[:, None])

    def _check(self, grid: TokenGrid) -> None:
        if self.stripe > min(grid.height, grid.width):
            raise ValueError(
                f"stripe {self.stripe} on a grid of {grid.height} x {grid.width}: a stripe is at most as wide as the "
                "shorter of height and width"
            )
