"""Grouped attention: all tokens of a group see the same groups, those around it or those in line with it.

GRAT (Ren et al., 2025, arXiv 2505.14687) cuts the grid into boxes of tokens, 16 x 16 of an image or 4 x 8 x 8 of a
video. With g(x) the group of token x, per axis:

    block    q sees k  iff  max over axes |g(q) - g(k)| <= reach                            (GRAT-B: reach 1)
    cross    q sees k  iff  g(q) = g(k) on at least one axis that is longer than one token  (GRAT-X)

On an image "cross" is the group's own row and column of groups; on a video the three planes through it. The last
group of an axis is smaller where groups do not divide it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dattn.block_mask import BlockMask
from dattn.grid import TokenGrid
from dattn.groups import Groups, fits, sizes_on
from dattn.patterns.base import Pattern, PerAxis, as_tuple, check_count, check_per_axis, check_tail

SHAPES = ("block", "cross")


@dataclass(frozen=True)
class Grouped(Pattern):
    """GRAT: groups see the groups around them, or those in line with them.

    Args:
        group: tokens of a group per axis: one number for every axis longer than 1, or (frames, height, width), with
            None for the whole axis. Published: 16 for images, (4, 8, 8) for video.
        shape: "block" (around) or "cross" (in line).
        reach: how many groups away "block" sees on every axis; "cross" has none.
        tail: pool what is skipped: False, True (one key per block) or a run of 16 … block size tokens.

    Raises:
        ValueError: a field outside these bounds; a group larger than an axis when the grid is met.
    """

    group: PerAxis
    shape: str = "block"
    reach: int = 1
    tail: bool | int = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "group", as_tuple(self.group))
        check_per_axis("group", self.group, optional=True)
        if self.shape not in SHAPES:
            raise ValueError(f"shape={self.shape!r}: choose one of {', '.join(SHAPES)}")
        check_count("reach", self.reach, least=0)
        if self.shape == "cross" and self.reach != 1:
            raise ValueError(f"reach={self.reach} with shape='cross': only shape='block' has a reach; leave it out")
        check_tail(self.tail)

    def clamped(self, grid: TokenGrid) -> tuple[Grouped, str | None]:
        """Groups no larger than the axes."""
        if fits(self.group, grid):
            return self, None
        size = sizes_on("group", self.group, grid, clamp=True)
        return replace(self, group=size), f"clamped to group {size}"

    def mask(self, grid: TokenGrid) -> BlockMask:
        """Every block whole or not at all."""
        axes = [dim for dim, length in enumerate(grid.shape) if length > 1] or [0]

        def rule(query: Tensor, key: Tensor) -> Tensor:
            distance = (query - key).abs()
            return (distance[..., axes] == 0).any(-1) if self.shape == "cross" else (distance <= self.reach).all(-1)

        return Groups.boxes(grid, sizes_on("group", self.group, grid)).mask(rule, self.tail)

    def visual_allowed(self, grid: TokenGrid) -> Tensor:
        """bool [visual, visual], axis by axis from the tokens' coordinates."""
        size = sizes_on("group", self.group, grid)
        near = torch.ones(grid.visual, grid.visual, dtype=torch.bool)
        same = torch.full_like(near, max(grid.shape) == 1)
        for length, step, at in zip(grid.shape, size, grid.coordinates().unbind(1), strict=True):
            group = at // step
            near &= (group[:, None] - group).abs() <= self.reach
            if length > 1:
                same |= group[:, None] == group
        return same if self.shape == "cross" else near
