"""Sliding tile attention: windows counted in tiles, so that every block is seen whole or not at all.

STA (Zhang et al., ICML 2025, arXiv 2502.04507) cuts the grid into tiles. On an axis of n tiles, with a window of k
tiles (odd, or the whole axis), the tile i of the query is pushed inwards to

    centre = clamp(i, ⌊k / 2⌋, n - 1 - ⌊k / 2⌋)          and sees tile j  iff  |centre - j| <= ⌊k / 2⌋

so every tile sees exactly k of them. Axes combine by conjunction. Heads may have windows of their own, as the
published settings do: (3, 3, 3), (5, 3, 3), (1, 6, 10), … of 5 x 6 x 10 tiles. The last tile of an axis is smaller
where tiles do not divide it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dattn.block_mask import BlockMask
from dattn.grid import AXES, TokenGrid
from dattn.groups import Groups, fits, sizes_on
from dattn.head_masks import for_head_groups
from dattn.patterns.base import Pattern, PerAxis, as_tuple, check_per_axis, check_tail


@dataclass(frozen=True)
class SlidingTile(Pattern):
    """STA: every tile sees a box of tiles around it.

    Args:
        tile: tokens of a tile per axis, one number or (frames, height, width); None for the whole axis.
        window: tiles seen per axis, odd or all of them, (frames, height, width); None for the whole axis. Several
            windows are shared out evenly among the heads, in their order.
        tail: pool what is skipped: False, True (one key per block) or a run of 16 … block size tokens.

    Raises:
        ValueError: a field outside these bounds; a tile larger than its axis, or a window that is neither odd nor the
            whole axis, when the grid is met.
    """

    tile: PerAxis = (6, 8, 8)
    window: Any = (3, 3, 3)
    tail: bool | int = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "tile", as_tuple(self.tile))
        window = as_tuple(self.window)
        window = tuple(map(as_tuple, window)) if isinstance(window, tuple) else window
        object.__setattr__(self, "window", window)
        check_per_axis("tile", self.tile, optional=True)
        if window == ():
            raise ValueError("window=(): give one window (frames, height, width), or one for every group of heads")
        for one in self._windows():
            check_per_axis("window", one, optional=True)
        check_tail(self.tail)

    def _windows(self) -> tuple[PerAxis, ...]:
        several = isinstance(self.window, tuple) and all(isinstance(w, tuple) for w in self.window)
        return self.window if several else (self.window,)

    def clamped(self, grid: TokenGrid) -> tuple[SlidingTile, str | None]:
        """Tiles no larger than the axes, windows no wider than their tiles."""
        tile = sizes_on("tile", self.tile, grid, clamp=True)
        counts = Groups.boxes(grid, tile).counts
        wanted = [[_on(w, dim, n) for dim, n in enumerate(counts)] for w in self._windows()]
        windows = tuple(tuple(min(k, n) for k, n in zip(w, counts, strict=True)) for w in wanted)
        if fits(self.tile, grid) and [list(w) for w in windows] == wanted:
            return self, None
        clamped: Any = windows if len(windows) > 1 else windows[0]
        return replace(self, tile=tile, window=clamped), f"clamped to tile {tile}, window {clamped}"

    def centres(self, window: PerAxis, counts: tuple[int, int, int]) -> list[tuple[Tensor, int]]:
        """On every axis, the centre that each tile looks from, int64 [tiles], and how far it looks.

        Raises:
            ValueError: a window that is neither odd nor the whole axis.
        """
        axes = []
        for dim, (axis, count) in enumerate(zip(AXES, counts, strict=True)):
            width = _on(window, dim, count)
            if width != count and (width > count or width % 2 == 0):
                raise ValueError(
                    f"window {width} on an axis of {count} tiles ({axis}): it is odd and at most {count}, or all of "
                    "them; use None for the whole axis"
                )
            half = count if width == count else width // 2
            here = torch.arange(count)
            axes.append((here if width == count else here.clamp(half, count - 1 - half), half))
        return axes

    def mask(self, grid: TokenGrid) -> BlockMask:
        """Every block whole or not at all; head groups where there are several windows."""
        groups = Groups.boxes(grid, sizes_on("tile", self.tile, grid))
        masks = []
        for window in self._windows():
            axes = self.centres(window, groups.counts)

            def rule(query: Tensor, key: Tensor, axes: list[tuple[Tensor, int]] = axes) -> Tensor:
                seen = [(c[query[..., d]] - key[..., d]).abs() <= half for d, (c, half) in enumerate(axes)]
                return seen[0] & seen[1] & seen[2]

            masks.append(groups.mask(rule, self.tail))
        return masks[0] if len(masks) == 1 else for_head_groups(masks)

    def visual_allowed(self, grid: TokenGrid) -> Tensor:
        """bool [visual, visual], or [windows, visual, visual], token by token from the coordinates."""
        tile = sizes_on("tile", self.tile, grid)
        counts = Groups.boxes(grid, tile).counts
        out = torch.ones(len(self._windows()), grid.visual, grid.visual, dtype=torch.bool)
        for allowed, window in zip(out, self._windows(), strict=True):
            for dim, (centre, half) in enumerate(self.centres(window, counts)):
                at = grid.coordinates()[:, dim] // tile[dim]
                allowed &= (centre[at][:, None] - at).abs() <= half
        return out[0] if len(out) == 1 else out


def _on(window: PerAxis, dim: int, count: int) -> int:
    """A window on one axis of ``count`` tiles."""
    one = window[dim] if isinstance(window, tuple) else (1 if count == 1 else window)
    return count if one is None else one
