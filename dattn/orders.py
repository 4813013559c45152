"""Orders: how a dynamic pattern lays out the visual tokens before it cuts them into blocks, as values.

An order cuts the tokens into *regions*, and these into blocks: a region is one block, or several where it holds more
tokens than a block does. Queries choose block by block, keys are chosen region by region.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from dattn.block_mask import BlockMask, MaskCache
from dattn.grid import Layout, TokenGrid, cut, split, text_blocks, with_text
from dattn.groups import fits, sizes_on
from dattn.patterns.base import PerAxis, as_tuple, check_per_axis
from dattn.selection import to_lists, whole_blocks
from dattn.spec import Named

ALWAYS = ("own", "neighbours", "first_frame", "sink")
"""Regions that can be kept whatever the scores say: a block's own, the two next to it along the order, those that hold
tokens of the first frame, and the first one. Text always is."""


@dataclass(frozen=True, eq=False)
class Partition:
    """A grid's visual tokens in an order, cut into regions and these into blocks.

    Attributes:
        grid: whose tokens.
        order: int64 [visual], kernel position -> position among the visual tokens.
        lengths: int64 [regions], tokens in each.
        blocks: int64 [visual blocks], tokens in each.
        region: int64 [visual blocks], the region of each.
        layout: the blocks, text included.
        block_size: slots in a block.
    """

    grid: TokenGrid
    order: Tensor
    lengths: Tensor
    blocks: Tensor
    region: Tensor
    layout: Layout
    block_size: int

    @classmethod
    def of(cls, grid: TokenGrid, order: Tensor, lengths: Tensor, block_size: int) -> Partition:
        """Cut regions of such lengths into blocks."""
        blocks, region = split(lengths, block_size)
        return cls(grid, order, lengths, blocks, region, with_text(grid, order, blocks, block_size), block_size)

    def visual(self, tensor: Tensor) -> Tensor:
        """The visual tokens of [batch, heads, tokens, …], in this order."""
        first = self.grid.text_before
        return tensor[:, :, first : first + self.grid.visual].index_select(2, self.order)

    def mask(self, kept: Tensor, tail: int = 0) -> BlockMask:
        """The block mask of bool [batch, heads or 1, blocks, regions]; text rows and columns are kept whole."""
        before, after = text_blocks(self.grid, self.block_size)
        full = to_lists(pad(kept.index_select(3, self.region), (before, after, before, after), value=True))
        return whole_blocks(self.layout, self.layout, full, self.block_size, tail)

    def always(self, keep: tuple[str, ...]) -> Tensor:
        """bool [blocks, regions]: what is kept whatever the scores say, by the names in ``ALWAYS``."""
        every = torch.zeros(len(self.blocks), len(self.lengths), dtype=torch.bool, device=self.order.device)
        own, regions = self.region[:, None], torch.arange(len(self.lengths), device=self.order.device)
        first = torch.arange(len(self.lengths), device=self.order.device).repeat_interleave(self.lengths)
        first = first[self.order < self.grid.height * self.grid.width].bincount(minlength=len(self.lengths)) > 0
        for name in keep:
            every |= {
                "own": regions == own,
                "neighbours": (regions - own).abs() <= 1,
                "first_frame": first.expand_as(every),
                "sink": (regions == 0).expand_as(every),
            }[name]
        return every

    def to(self, device: torch.device | str) -> Partition:
        """The same partition on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("order", "lengths", "blocks", "region", "layout")}
        return replace(self, **moved)


@dataclass(frozen=True)
class Order(Named):
    """Base of orders."""

    def regions(self, grid: TokenGrid, block_size: int) -> tuple[Tensor, Tensor]:
        """int64 [visual], the visual tokens in this order, and int64 [regions], how many each region holds.

        Raises:
            ValueError: the order does not fit the grid.
        """
        raise NotImplementedError

    def at(self, layer: int) -> Order:
        """The order in one layer."""
        return self

    def fit(self, grid: TokenGrid) -> tuple[Order, str | None]:
        """The same, clamped to a grid that it would be too large for, and a note that says what changed."""
        return self, None

    def partition(self, grid: TokenGrid, block_size: int, masks: MaskCache, device: torch.device) -> Partition:
        """The grid in this order, worked out once."""
        key = (self, grid, block_size, device)
        return masks.keep(key, lambda: Partition.of(grid, *self.regions(grid, block_size), block_size).to(device))


@dataclass(frozen=True)
class Raster(Order):
    """As the model holds the tokens: frame, row, column."""

    def regions(self, grid: TokenGrid, block_size: int) -> tuple[Tensor, Tensor]:
        """See ``Order.regions``."""
        return torch.arange(grid.visual), cut(grid.visual, block_size)


@dataclass(frozen=True)
class PatchMajor(Order):
    """Row, column, frame: the same place over time is contiguous (Sparse VideoGen, arXiv 2502.01776)."""

    def regions(self, grid: TokenGrid, block_size: int) -> tuple[Tensor, Tensor]:
        """See ``Order.regions``."""
        return torch.arange(grid.visual).view(grid.frames, -1).T.flatten(), cut(grid.visual, block_size)


@dataclass(frozen=True)
class Curve(Order):
    """Along a 3-D Hilbert curve, so that a block's tokens are near each other on all axes.

    The curve runs through the smallest cube whose side is a power of two and that holds the grid, and leaves out what
    is not in the grid. Its index is that of Skilling, *Programming the Hilbert curve* (AIP Conf. Proc. 707, 2004).
    """

    def regions(self, grid: TokenGrid, block_size: int) -> tuple[Tensor, Tensor]:
        """See ``Order.regions``."""
        return hilbert_index(grid.coordinates()).argsort(stable=True), cut(grid.visual, block_size)


def hilbert_index(at: Tensor) -> Tensor:
    """int64 [points]: the place along a Hilbert curve of int64 [points, axes], coordinates of 0 or more."""
    bits = max(1, int(at.max()).bit_length())
    axes = list(at.clone().unbind(-1))
    for bit in range(bits - 1, 0, -1):  # undo the turns of every level, from the coarsest on
        below = (1 << bit) - 1
        for i, axis in enumerate(axes):
            here = axis >> bit & 1 == 1
            swap = torch.where(here, 0, (axes[0] ^ axis) & below)
            axes[0] = torch.where(here, axes[0] ^ below, axes[0] ^ swap)
            axes[i] = axes[i] ^ swap if i else axes[0]
    for i in range(1, len(axes)):  # Gray code, over the axes and over the bits
        axes[i] = axes[i] ^ axes[i - 1]
    flip = torch.zeros_like(axes[0])
    for bit in range(bits - 1, 0, -1):
        flip = flip ^ torch.where(axes[-1] >> bit & 1 == 1, (1 << bit) - 1, 0)
    index = torch.zeros_like(flip)
    for bit in range(bits - 1, -1, -1):
        for axis in axes:
            index = index << 1 | (axis ^ flip) >> bit & 1
    return index


@dataclass(frozen=True)
class Tiled(Order):
    """Boxes of tokens, each a region.

    Args:
        tile: tokens of a box per axis, one number or (frames, height, width); None for the whole axis. The last box of
            an axis is smaller where they do not divide it.

    Raises:
        ValueError: a size below 1; one larger than its axis, when the grid is met.
    """

    tile: PerAxis = (4, 4, 4)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tile", as_tuple(self.tile))
        check_per_axis("tile", self.tile, optional=True)

    def fit(self, grid: TokenGrid) -> tuple[Tiled, str | None]:
        """Boxes no larger than the axes."""
        if fits(self.tile, grid):
            return self, None
        tile = sizes_on("tile", self.tile, grid, clamp=True)
        return replace(self, tile=tile), f"clamped to tile {tile}"

    def regions(self, grid: TokenGrid, block_size: int) -> tuple[Tensor, Tensor]:
        """See ``Order.regions``."""
        sizes = sizes_on("tile", self.tile, grid)
        counts = [math.ceil(n / size) for n, size in zip(grid.shape, sizes, strict=True)]
        frame, row, column = (grid.coordinates() // torch.tensor(sizes)).unbind(1)
        box = (frame * counts[1] + row) * counts[2] + column
        return box.argsort(stable=True), box.bincount(minlength=math.prod(counts))


@dataclass(frozen=True)
class ByLayer(Order):
    """One order after the other, layer by layer, and again from the first (VMoBA's 1-D, 2-D, 3-D).

    Raises:
        ValueError: no orders.
    """

    orders: tuple[Order, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "orders", as_tuple(self.orders))
        if not isinstance(self.orders, tuple) or not all(isinstance(order, Order) for order in self.orders):
            raise ValueError(f"orders={self.orders!r}: give a tuple of orders, such as (Raster(), Curve())")
        if not self.orders:
            raise ValueError("orders=(): give one order at least")

    def at(self, layer: int) -> Order:
        """That of the layer."""
        return self.orders[layer % len(self.orders)]

    def fit(self, grid: TokenGrid) -> tuple[Order, str | None]:
        """Each clamped to the grid."""
        fitted = [order.fit(grid) for order in self.orders]
        return ByLayer(tuple(order for order, _ in fitted)), next((note for _, note in fitted if note), None)

    def regions(self, grid: TokenGrid, block_size: int) -> tuple[Tensor, Tensor]:
        """That of the first layer."""
        return self.orders[0].regions(grid, block_size)


ORDERS: dict[str, type[Order]] = {order.__name__: order for order in (Raster, PatchMajor, Curve, Tiled, ByLayer)}
