"""Multi-axis attention: boxes of neighbouring tokens, or combs of tokens that are spread over the whole grid.

MaxViT (Tu et al., ECCV 2022, arXiv 2204.01697). With P tokens per axis and L the length of the axis:

    block    q sees k  iff  ⌊q / P⌋ = ⌊k / P⌋ on every axis                  (windows of P)
    grid     q sees k  iff  q mod d = k mod d on every axis, d = ⌈L / P⌉      (combs of at most P teeth, d apart)

"alternate" takes "block" in the layers 0, 2, … and "grid" in the others, so that two layers join everything. Made for
trained backbones: a pretrained model has to be fine-tuned for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dattn.block_mask import BlockMask
from dattn.grid import AxisTiles, TokenGrid
from dattn.groups import Groups, fits, same_group, sizes_on
from dattn.patterns.base import Pattern, PerAxis, as_tuple, check_per_axis, check_tail

KINDS = ("block", "grid", "alternate")


@dataclass(frozen=True)
class MultiAxis(Pattern):
    """MaxViT: windows, combs, or both in turn.

    Args:
        size: tokens of a window, teeth of a comb, per axis: one number for every axis longer than 1, or (frames,
            height, width); None for the whole axis.
        kind: "block", "grid" or "alternate" (by layer; "block" where there are no layers).
        tail: pool what is skipped: False, True (one key per block) or a run of 16 … block size tokens.

    Raises:
        ValueError: a field outside these bounds; a size larger than its axis when the grid is met.
    """

    size: PerAxis
    kind: str = "alternate"
    tail: bool | int = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", as_tuple(self.size))
        check_per_axis("size", self.size, optional=True)
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r}: choose one of {', '.join(KINDS)}")
        check_tail(self.tail)

    @property
    def untuned(self) -> str:
        """It is meant for models that were trained with it."""
        return "made for trained backbones: fine-tune the model for it"

    def at(self, layer: int, layers: int, step: int, steps: int) -> MultiAxis:
        """The kind of this layer."""
        return replace(self, kind=KINDS[layer % 2]) if self.kind == "alternate" else self

    def clamped(self, grid: TokenGrid) -> tuple[MultiAxis, str | None]:
        """A size no larger than the axes."""
        if fits(self.size, grid):
            return self, None
        size = sizes_on("size", self.size, grid, clamp=True)
        return replace(self, size=size), f"clamped to size {size}"

    def mask(self, grid: TokenGrid) -> BlockMask:
        """Every block whole or not at all."""
        size = sizes_on("size", self.size, grid)
        if self.kind != "grid":
            return Groups.boxes(grid, size).mask(same_group, self.tail)
        combs = [AxisTiles.cut(n, n, dilation=-(-n // s)) for n, s in zip(grid.shape, size, strict=True)]
        return Groups(grid, combs).mask(same_group, self.tail)

    def visual_allowed(self, grid: TokenGrid) -> Tensor:
        """bool [visual, visual], axis by axis from the coordinates."""
        out = torch.ones(grid.visual, grid.visual, dtype=torch.bool)
        for at, n, s in zip(grid.coordinates().unbind(1), grid.shape, sizes_on("size", self.size, grid), strict=True):
            member = at % -(-n // s) if self.kind == "grid" else at // s
            out &= member[:, None] == member
        return out
