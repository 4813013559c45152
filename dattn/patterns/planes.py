"""Planes: of the window around it, a token sees the three planes that go through itself.

ConDaFormer (Duan et al., NeurIPS 2023, arXiv 2312.11112) takes a window apart into three orthogonal planes. With the
window of ``Neighborhood`` (pushed inwards at the borders, so that it never shrinks):

    q sees k  iff  k is in the window of q  and  q and k agree on at least one axis that is longer than one token

With window None the planes go through the whole grid: the token's own frame, its row and its column over all frames.
On an image the planes are lines, the row and the column of the token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import product

import torch
from torch import Tensor

from dattn.axis_window import AxisVisits, AxisWindow
from dattn.block_mask import BlockMask, build
from dattn.grid import AxisTiles, TokenGrid, block_size_for, tiled_layout
from dattn.groups import fits, sizes_on
from dattn.patterns.base import Pattern, PerAxis, as_tuple, check_per_axis, check_tail
from dattn.tiles import choose_tile


@dataclass(frozen=True)
class Planes(Pattern):
    """ConDaFormer: the three orthogonal planes of a window.

    Args:
        window: tokens of the window per axis, one number for every axis longer than 1, or (frames, height, width);
            None for the whole axis.
        tail: pool what is skipped: False, True (one key per block) or a run of 16 … block size tokens.

    Raises:
        ValueError: a field outside these bounds; a window larger than its axis when the grid is met.
    """

    window: PerAxis = None
    tail: bool | int = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", as_tuple(self.window))
        check_per_axis("window", self.window, optional=True)
        check_tail(self.tail)

    def clamped(self, grid: TokenGrid) -> tuple[Planes, str | None]:
        """A window no larger than the axes."""
        if fits(self.window, grid):
            return self, None
        window = sizes_on("window", self.window, grid, clamp=True)
        return replace(self, window=window), f"clamped to window {window}"

    def _axes(self, grid: TokenGrid) -> list[AxisWindow]:
        return [AxisWindow(n, w) for n, w in zip(grid.shape, sizes_on("window", self.window, grid), strict=True)]

    def mask(self, grid: TokenGrid) -> BlockMask:
        """Every tile pair visited whole, in part or not at all, exactly."""
        axes = self._axes(grid)
        tile = choose_tile(axes, planes=True)
        tiles = [AxisTiles.cut(a.length, t) for a, t in zip(axes, tile, strict=True)]
        size = block_size_for(math.prod(tile))
        visits = PlaneVisits([AxisPlanes.of(a, t) for a, t in zip(axes, tiles, strict=True)])
        return build(grid, tiled_layout(grid, tiles, size), visits.rows, size, visits.table(size), self.tail)

    def visual_allowed(self, grid: TokenGrid) -> Tensor:
        """bool [visual, visual], from the coordinates."""
        inside = torch.ones(grid.visual, grid.visual, dtype=torch.bool)
        shared = torch.full_like(inside, grid.visual == 1)
        for axis, at in zip(self._axes(grid), grid.coordinates().unbind(1), strict=True):
            inside &= axis.allowed()[at[:, None], at]
            shared |= (at[:, None] == at) & (axis.length > 1)
        return inside & shared


@dataclass(frozen=True, eq=False)
class AxisPlanes:
    """Pairs of tiles on one axis, classified: who is in the window, and who shares coordinates.

    Attributes:
        some, whole: bool [tiles, tiles]: the window covers the key tile in part, or whole.
        same: bool [tiles, tiles]: the pair shares coordinates.
        all_same: bool [tiles, tiles]: all its coordinates, that is the one it has.
        kind: int64 [tiles, tiles]: where something is seen, which of ``kinds`` the pair looks like.
        kinds: distinct pairs of bool [query tile, key tile]: in the window, and equal.
    """

    some: Tensor
    whole: Tensor
    same: Tensor
    all_same: Tensor
    kind: Tensor
    kinds: list[tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, axis: AxisWindow, tiles: AxisTiles) -> AxisPlanes:
        """Classify every pair of tiles; an axis of one token has no plane of its own."""
        visits = AxisVisits.of(axis, tiles)
        same = torch.eye(tiles.tiles, dtype=torch.bool) & (axis.length > 1)
        numbers, kind = (visits.part * 2 + same)[visits.some].unique(return_inverse=True)
        kinds = []
        for number in numbers.tolist():
            part = visits.parts[number // 2]
            kinds.append((part, torch.eye(*part.shape, dtype=torch.bool) & bool(number % 2)))
        where = torch.zeros_like(visits.part).masked_scatter(visits.some, kind)
        return cls(visits.some, visits.whole, same, same & (tiles.sizes == 1), where, kinds)


@dataclass(frozen=True, eq=False)
class PlaneVisits:
    """All axes together: in the window on every axis, equal on at least one."""

    axes: Sequence[AxisPlanes]

    def rows(self, first: int, last: int) -> tuple[Tensor, Tensor, Tensor]:
        """What query tiles first … last - 1 see: whole and in part, bool [rows, tiles], and the parts' tiles."""
        counts = [axis.some.shape[0] for axis in self.axes]
        at = torch.unravel_index(torch.arange(first, last), counts)
        on = lambda name: [getattr(axis, name)[i] for axis, i in zip(self.axes, at, strict=True)]
        alone = torch.full((last - first, math.prod(counts)), self._one_token)
        some = _join(on("some"), torch.logical_and) & (_join(on("same"), torch.logical_or) | alone)
        whole = _join(on("whole"), torch.logical_and) & (_join(on("all_same"), torch.logical_or) | alone)
        part = some & ~whole
        row, column = part.nonzero().unbind(1)
        tile = torch.zeros_like(row)
        for axis, query, key in zip(self.axes, at, torch.unravel_index(column, counts), strict=True):
            tile = tile * len(axis.kinds) + axis.kind[query[row], key]
        return whole, part, tile

    @property
    def _one_token(self) -> bool:
        """Whether the grid is a single token, which sees itself."""
        return all(axis.same.shape == (1, 1) and not axis.same.any() for axis in self.axes)

    def table(self, block_size: int) -> Tensor:
        """bool [combinations, block_size, block_size]: every combination of the axes' kinds, as ``rows`` has them."""
        combinations = list(product(*(axis.kinds for axis in self.axes)))
        table = torch.zeros(len(combinations), block_size, block_size, dtype=torch.bool)
        for tile, combination in zip(table, combinations, strict=True):
            parts, equal = zip(*combination, strict=True)
            inside = reduce(torch.kron, parts)
            shared = torch.zeros_like(inside)
            for dim, own in enumerate(equal):
                others = [own if d == dim else torch.ones_like(part) for d, part in enumerate(parts)]
                shared |= reduce(torch.kron, others)
            tile[: inside.shape[0], : inside.shape[1]] = inside & shared
        return table


def _join(axes: Sequence[Tensor], both: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """[rows, tiles] of the three axes' [rows, axis tiles]."""
    frames, height, width = axes
    return both(both(frames[:, :, None, None], height[:, None, :, None]), width[:, None, None, :]).flatten(1)
