"""The neighborhood rule on one axis, and which tiles of an axis see each other under it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from dattn.grid import AxisTiles, class_length


@dataclass(frozen=True)
class AxisWindow:
    """Window, stride, dilation and causality on an axis of ``length``; formulas in ``patterns/neighborhood``."""

    length: int
    window: int
    stride: int = 1
    dilation: int = 1
    causal: bool = False

    def interval(self, number: Tensor, length: Tensor | int) -> tuple[Tensor, Tensor]:
        """[start, end) of the window of query ``number`` in a residue class of ``length``; element-wise."""
        length = torch.as_tensor(length)
        group = number // self.stride * self.stride
        if self.causal:
            leader = torch.minimum(group + self.stride - 1, length - 1)
            return (leader - self.window + 1).clamp_min(0), torch.minimum(number + 1, length)
        leader = torch.minimum(group + self.stride // 2, length - 1)
        start = torch.minimum((leader - self.window // 2).clamp_min(0), length - self.window)
        return start, start + self.window

    def allowed(self) -> Tensor:
        """bool [length, length]: who sees whom, from the definition."""
        at = torch.arange(self.length)
        residue, number = at % self.dilation, at // self.dilation
        size = torch.tensor([class_length(self.length, self.dilation, r) for r in residue.tolist()])
        start, end = self.interval(number, size)
        inside = (number >= start[:, None]) & (number < end[:, None])
        return inside & (residue == residue[:, None])


def tile_intervals(axis: AxisWindow, tiles: AxisTiles) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """int64 [tiles] four times: start and end of the window of a tile's first query, and of its last.

    Windows move monotonically and without gaps, so a tile's queries together see from the first one's start to
    the last one's end, and all of them see from the last one's start to the first one's end.
    """
    size = -(-(axis.length - tiles.residue) // axis.dilation)
    return *axis.interval(tiles.first, size), *axis.interval(tiles.last - 1, size)


@dataclass(frozen=True, eq=False)
class AxisVisits:
    """Which key tiles a query tile sees on one axis, and the distinct ways in which it sees them.

    Attributes:
        some, whole: bool [tiles, tiles]: sees part of it, sees all of it.
        part: int64 [tiles, tiles]: where something is seen, which of ``parts`` it looks like.
        parts: distinct bool [query tile, key tile] tiles.
    """

    some: Tensor
    whole: Tensor
    part: Tensor
    parts: list[Tensor]

    @classmethod
    def of(cls, axis: AxisWindow, tiles: AxisTiles) -> AxisVisits:
        """Classify every pair of tiles, exactly, by comparing intervals."""
        start, first_end, last_start, end = (edge[:, None] for edge in tile_intervals(axis, tiles))
        same = tiles.residue[:, None] == tiles.residue
        some = same & (tiles.first < end) & (tiles.last > start)
        whole = same & (tiles.first >= last_start) & (tiles.last <= first_end)
        edges, number = _edges(axis, tiles, some.nonzero()).unique(dim=0, return_inverse=True)
        part = torch.zeros_like(some, dtype=torch.int64).masked_scatter(some, number)
        return cls(some, whole, part, [_part(row) for row in edges])


def _edges(axis: AxisWindow, tiles: AxisTiles, pairs: Tensor) -> Tensor:
    """int64 [pairs, 2 + 2 · longest tile]: both sizes, then the first and last key slot that each row sees."""
    query, key = pairs.unbind(1)
    slot = torch.arange(int(tiles.sizes.max()))
    number = tiles.first[query, None] + slot
    size = -(-(axis.length - tiles.residue[query, None]) // axis.dilation)
    start, end = (
        (edge - tiles.first[key, None]).clamp_min(0).minimum(tiles.sizes[key, None])
        for edge in axis.interval(number, size)
    )
    real = (slot < tiles.sizes[query, None]) & (end > start)
    sizes = torch.stack([tiles.sizes[query], tiles.sizes[key]], -1)
    return torch.cat([sizes, torch.where(real, start, 0), torch.where(real, end, 0)], -1)


def _part(edges: Tensor) -> Tensor:
    """bool [query tile, key tile] from one row of ``_edges``."""
    rows, columns = edges[:2].tolist()
    start, end = edges[2:].view(2, -1)[:, :rows, None]
    slot = torch.arange(columns)
    return (slot >= start) & (slot < end)


@dataclass(frozen=True, eq=False)
class TileVisits:
    """All axes together: a tile pair sees something, or all, iff it does on every axis."""

    axes: Sequence[AxisVisits]

    def rows(self, first: int, last: int) -> tuple[Tensor, Tensor, Tensor]:
        """What query tiles first … last - 1 see: whole and in part, bool [rows, tiles], and the parts' tiles."""
        counts = [a.some.shape[0] for a in self.axes]
        at = torch.unravel_index(torch.arange(first, last), counts)
        some, whole = (
            self._product([getattr(a, kind)[i] for a, i in zip(self.axes, at, strict=True)])
            for kind in ("some", "whole")
        )
        part = some & ~whole
        row, column = part.nonzero().unbind(1)
        keys = torch.unravel_index(column, counts)
        tile = torch.zeros_like(row)
        for axis, query, key in zip(self.axes, at, keys, strict=True):
            tile = tile * len(axis.parts) + axis.part[query[row], key]
        return whole, part, tile

    @staticmethod
    def _product(rows: Sequence[Tensor]) -> Tensor:
        frames, height, width = rows
        return (frames[:, :, None, None] & height[:, None, :, None] & width[:, None, None, :]).flatten(1)

    def table(self, block_size: int) -> Tensor:
        """bool [distinct, block_size, block_size]: every combination of the axes' parts, as ``rows`` numbers them."""
        parts: list[Tensor] = reduce(
            lambda left, axis: [torch.kron(a, b) for a in left for b in axis.parts],
            self.axes,
            [torch.ones(1, 1, dtype=torch.bool)],
        )
        table = torch.zeros(len(parts), block_size, block_size, dtype=torch.bool)
        for tile, part in zip(table, parts, strict=True):
            tile[: part.shape[0], : part.shape[1]] = part
        return table
