"""The tile chooser: the box of tokens that makes a neighborhood window visit the fewest key slots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dattn.axis_window import AxisWindow, tile_intervals
from dattn.grid import BLOCK_SIZES, AxisTiles, block_size_for, class_length

# Rough costs, to compare tiles with each other: small blocks use a GPU's matrix units badly, blocks seen in part
# pay for their mask, and a tile that divides no axis evenly must be a quarter cheaper to be worth its ragged edge.
BLOCK_EFFICIENCY = {16: 0.3, 32: 0.5, 64: 0.85, 128: 1.0}
PART_COST = 0.3
RAGGED_COST = 1.25


@dataclass(frozen=True)
class AxisCost:
    """Tile pairs on one axis under tiles of one length: those that see something, that see all, that are equal."""

    some: int
    whole: int
    same: int
    divides: bool


def choose_tile(axes: Sequence[AxisWindow], planes: bool = False) -> tuple[int, int, int]:
    """The cheapest tile (frames, height, width) of at most 128 tokens for these windows; divides the grid if it can.

    With ``planes`` only the planes of the windows that go through the query are seen.
    """
    costs = [_axis_costs(axis) for axis in axes]
    limit = BLOCK_SIZES[-1]
    tiles = [(t, h, w) for t in costs[0] for h in costs[1] if t * h <= limit for w in costs[2] if t * h * w <= limit]
    return min(tiles, key=lambda tile: (_cost(tile, costs, planes), -tile[2], -tile[1]))


def _axis_costs(axis: AxisWindow) -> dict[int, AxisCost]:
    longest = class_length(axis.length, axis.dilation, 0)
    return {tile: _axis_cost(axis, tile) for tile in range(1, min(longest, BLOCK_SIZES[-1]) + 1)}


def _axis_cost(axis: AxisWindow, tile: int) -> AxisCost:
    tiles = AxisTiles.cut(axis.length, tile, axis.dilation)
    start, first_end, last_start, end = tile_intervals(axis, tiles)
    some = (end - 1) // tile - start // tile + 1
    size = -(-(axis.length - tiles.residue) // axis.dilation)
    last_whole = (first_end // tile).where(first_end < size, -(-size // tile))
    whole = (last_whole + -last_start // tile).clamp_min(0)
    same = tiles.tiles if axis.length > 1 else 0
    return AxisCost(int(some.sum()), int(whole.sum()), same, bool((tiles.sizes == tile).all()))


def _cost(tile: tuple[int, int, int], costs: Sequence[dict[int, AxisCost]], planes: bool) -> float:
    on_axis = [cost[length] for cost, length in zip(costs, tile, strict=True)]
    some, whole = (math.prod(getattr(c, kind) for c in on_axis) for kind in ("some", "whole"))
    if planes:
        some, whole = some - math.prod(c.some - c.same for c in on_axis), 0
    size = block_size_for(math.prod(tile))
    ragged = 1.0 if all(c.divides for c in on_axis) else RAGGED_COST
    return (some + PART_COST * (some - whole)) * size**2 / BLOCK_EFFICIENCY[size] * ragged
