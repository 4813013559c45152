"""A grid cut into boxes of tokens (groups), for patterns that say which groups see which."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dattn.block_mask import BlockMask, build
from dattn.grid import AXES, BLOCK_SIZES, AxisTiles, Tiles, TokenGrid, block_size_for, split, tiled_layout
from dattn.patterns.base import PerAxis
from dattn.tiles import BLOCK_EFFICIENCY

# int64 [queries, 1, 3] and [keys, 3], groups per axis (frames, height, width) -> bool [queries, keys]
GroupRule = Callable[[Tensor, Tensor], Tensor]


def sizes_on(name: str, value: PerAxis, grid: TokenGrid, clamp: bool = False) -> tuple[int, int, int]:
    """A per-axis size on a grid: one number means every axis longer than 1, None the whole axis.

    Raises:
        ValueError: a size larger than its axis, unless ``clamp``.
    """
    wanted = _wanted(value, grid)
    for axis, length, size in zip(AXES, grid.shape, wanted, strict=True):
        if size > length and not clamp:
            raise ValueError(
                f"{name} {size} on an axis of {length} ({axis}): a {name} is at most its axis; "
                "use None for the whole axis"
            )
    frames, height, width = map(min, wanted, grid.shape)
    return frames, height, width


def fits(value: PerAxis, grid: TokenGrid) -> bool:
    """Whether a per-axis size is at most the grid's axes."""
    return all(size <= length for size, length in zip(_wanted(value, grid), grid.shape, strict=True))


def _wanted(value: PerAxis, grid: TokenGrid) -> list[int]:
    sizes = value if isinstance(value, tuple) else tuple(1 if n == 1 else value for n in grid.shape)
    return [length if size is None else size for size, length in zip(sizes, grid.shape, strict=True)]


@dataclass(frozen=True, eq=False)
class RolledTiles:
    """One axis as a ring that is cut into tiles of ``size`` from coordinate ``shift`` on; like ``AxisTiles``."""

    length: int
    size: int
    shift: int

    @property
    def tiles(self) -> int:
        """The number of tiles."""
        return -(-self.length // self.size)

    @property
    def sizes(self) -> Tensor:
        """int64 [tiles]: coordinates in each tile."""
        return split(torch.tensor([self.length]), self.size)[0]

    def order(self) -> tuple[Tensor, Tensor]:
        """int64 [length] twice: the coordinates in tile order, and the tile of each."""
        place = torch.arange(self.length)
        return (place + self.shift) % self.length, place // self.size


@dataclass(frozen=True, eq=False)
class Groups:
    """A grid cut into groups of tokens, a product of tiles on every axis.

    A group is one block, or several where it holds more tokens than a block does.
    """

    grid: TokenGrid
    axes: Sequence[Tiles]

    @classmethod
    def boxes(cls, grid: TokenGrid, size: Sequence[int]) -> Groups:
        """Boxes of (frames, height, width) tokens, the last on each axis smaller where they do not divide it."""
        return cls(grid, [AxisTiles.cut(length, s) for length, s in zip(grid.shape, size, strict=True)])

    @property
    def counts(self) -> tuple[int, int, int]:
        """Groups on every axis."""
        frames, height, width = (axis.tiles for axis in self.axes)
        return frames, height, width

    @cached_property
    def block_size(self) -> int:
        """The block that holds a group, or the one that cuts it with the least waste."""
        tokens = math.prod(int(axis.sizes.max()) for axis in self.axes)
        if tokens <= BLOCK_SIZES[-1]:
            return block_size_for(tokens)
        return min((128, 64), key=lambda size: -(-tokens // size) * size / BLOCK_EFFICIENCY[size])

    def mask(self, rule: GroupRule, tail: bool | int = False) -> BlockMask:
        """Block lists: a block is visited whole where ``rule`` lets its group be seen."""
        tokens = torch.ones(1, dtype=torch.int64)
        for axis in self.axes:
            tokens = (tokens[:, None] * axis.sizes).flatten()
        group = split(tokens, self.block_size)[1]
        at = torch.stack(torch.unravel_index(group, self.counts), -1)
        rows = lambda first, last: (rule(at[first:last, None], at), None, None)
        return build(self.grid, tiled_layout(self.grid, self.axes, self.block_size), rows, self.block_size, tail=tail)


def same_group(query: Tensor, key: Tensor) -> Tensor:
    """The rule by which a group sees itself alone."""
    return (query == key).all(-1)
