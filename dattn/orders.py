"""Orders: how a dynamic pattern lays out the visual tokens before it cuts them into blocks, as values.

An order cuts the tokens into *regions*, and these into blocks: a region is one block, or several where it holds more
tokens than a block does. Queries choose block by block, keys are chosen region by region.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.functional import pad

from dattn.block_mask import BlockList, BlockMask, Level, MaskCache
from dattn.grid import Layout, TokenGrid, cut, split, text_blocks, with_text
from dattn.groups import fits, sizes_on
from dattn.on_cpu import argsort
from dattn.patterns.base import PerAxis, as_tuple, check_count, check_per_axis
from dattn.principal import along, leading
from dattn.selection import to_lists, whole_blocks
from dattn.spec import Named
from dattn.sums import in_order

ALWAYS = ("own", "neighbours", "first_frame", "sink")
"""Regions that can be kept whatever the scores say: a block's own, the two next to it along the order, those that hold
tokens of the first frame, and the first one. Text always is."""


@dataclass(frozen=True, eq=False)
class Partition:
    """A grid's visual tokens in an order, or two, cut into regions and these into blocks.

    Attributes:
        grid: whose tokens.
        query, key: int64 [visual], or [batch, heads, visual] where every head has an order of its own; kernel position
            -> position among the visual tokens. They are the same but where an order looks at the tokens.
        lengths: int64 [regions], tokens in each.
        blocks: int64 [visual blocks], tokens in each.
        region: int64 [visual blocks], the region of each.
        block_size: slots in a block.
    """

    grid: TokenGrid
    query: Tensor
    key: Tensor
    lengths: Tensor
    blocks: Tensor
    region: Tensor
    block_size: int

    @classmethod
    def of(cls, grid: TokenGrid, query: Tensor, key: Tensor, lengths: Tensor, block_size: int) -> Partition:
        """Cut regions of such lengths into blocks."""
        return cls(grid, query, key, lengths, *split(lengths, block_size), block_size)

    @cached_property
    def layouts(self) -> tuple[Layout, Layout]:
        """The blocks of queries and of keys, text included."""
        query = with_text(self.grid, self.query, self.blocks, self.block_size)
        return query, query if self.key is self.query else with_text(self.grid, self.key, self.blocks, self.block_size)

    def visual(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """The visual tokens of queries and keys [batch, heads, tokens, …], in raster order."""
        tokens = slice(self.grid.text_before, self.grid.text_before + self.grid.visual)
        return query[:, :, tokens], key[:, :, tokens]

    @cached_property
    def in_place(self) -> bool:
        """Whether the order is the one that tokens are in."""
        return self.key.ndim == 1 and torch.equal(self.key, torch.arange(self.grid.visual, device=self.key.device))

    def put_in_place(self) -> Partition:
        """The same blocks and regions of tokens that lie in order already."""
        order = torch.arange(self.grid.visual, device=self.key.device)
        return replace(self, query=order, key=order)

    def mask(self, kept: Tensor, tail: int = 0, coarse: Mapping[int, Tensor] = MappingProxyType({})) -> BlockMask:
        """The block mask of what every block of queries sees; text rows and columns are kept whole.

        Args:
            kept: bool [batch, heads or 1, blocks, regions].
            tail: 0, or the run length that what is skipped is pooled over.
            coarse: bool like ``kept`` for every run length that regions are seen through means of.
        """
        full = self._lists(kept, text=True)
        levels = tuple(Level(run, self._lists(seen, text=False)) for run, seen in coarse.items())
        return whole_blocks(*self.layouts, full, self.block_size, tail, levels)

    def _lists(self, kept: Tensor, text: bool) -> BlockList:
        """The lists of bool [batch, heads or 1, blocks, regions], with all pairs of text or none."""
        before, after = text_blocks(self.grid, self.block_size)
        if self.key.ndim == 3:  # orders of every head's own, and so lists, though heads may have chosen together
            kept = kept.expand(-1, self.key.shape[1], -1, -1)
        return to_lists(pad(kept.index_select(3, self.region), (before, after, before, after), value=text))

    def always(self, keep: tuple[str, ...]) -> Tensor:
        """bool [blocks, regions]: what is kept whatever the scores say, by the names in ``ALWAYS``."""
        every = torch.zeros(len(self.blocks), len(self.lengths), dtype=torch.bool, device=self.key.device)
        own, regions = self.region[:, None], torch.arange(len(self.lengths), device=self.key.device)
        rules = {
            "own": lambda: regions == own,
            "neighbours": lambda: (regions - own).abs() <= 1,
            "first_frame": self._of_first_frame,
            "sink": lambda: regions == 0,
        }
        for name in keep:
            every |= rules[name]()
        return every

    def _of_first_frame(self) -> Tensor:
        """bool [regions]: which hold a token of the first frame."""
        region = torch.arange(len(self.lengths), device=self.key.device).repeat_interleave(self.lengths)
        return region[self.key < self.grid.height * self.grid.width].bincount(minlength=len(self.lengths)) > 0


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

    @property
    def looks(self) -> bool:
        """Whether it looks at the tokens, so that a block is no place in the grid."""
        return False

    def partition(self, query: Tensor, key: Tensor, grid: TokenGrid, block_size: int, masks: MaskCache) -> Partition:
        """The grid in this order, for queries and keys [batch, heads, tokens, head_dim]; worked out once."""
        device = query.device

        def cut_up() -> Partition:
            order, lengths = (t.to(device) for t in self.regions(grid, block_size))
            return Partition.of(grid, order, order, lengths, block_size)

        return masks.keep((self, grid, block_size, device), cut_up)


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

    @property
    def looks(self) -> bool:
        """Whether one of them does."""
        return any(order.looks for order in self.orders)

    def at(self, layer: int) -> Order:
        """That of the layer."""
        return self.orders[layer % len(self.orders)].at(layer)

    def partition(self, query: Tensor, key: Tensor, grid: TokenGrid, block_size: int, masks: MaskCache) -> Partition:
        """That of the first layer."""
        return self.at(0).partition(query, key, grid, block_size, masks)

    def fit(self, grid: TokenGrid) -> tuple[Order, str | None]:
        """Each clamped to the grid."""
        fitted = [order.fit(grid) for order in self.orders]
        return ByLayer(tuple(order for order, _ in fitted)), next((note for _, note in fitted if note), None)


@dataclass(frozen=True)
class Tree(Order):
    """Tokens that are alike next to each other, queries and keys each for themselves, head by head.

    All tokens of a head are sorted along the direction in which they differ most (the first principal component, by
    power iteration) and cut into ``ways`` equal parts; each of these is sorted along its own direction and cut again,
    down to single blocks. Blocks are full, unlike k-means clusters, and a mean says more of a block's tokens than in
    any order of places, which both scores and tails live on. All of that happens in the few directions in which the
    head's tokens differ most: blocks are as much alike as with all of them, for a third of the time.

    Args:
        ways: parts that every cut makes; more take fewer levels, and are much less exact.
        steps: power iterations for every direction.
        dims: directions of the head that are looked at; its size or more: all of them.

    Raises:
        ValueError: fewer than 2 parts, no iteration, or no direction.
    """

    ways: int = 2
    steps: int = 8
    dims: int = 8

    def __post_init__(self) -> None:
        check_count("ways", self.ways, least=2)
        check_count("steps", self.steps)
        check_count("dims", self.dims)

    @property
    def looks(self) -> bool:
        """True: it is made of the tokens."""
        return True

    def partition(self, query: Tensor, key: Tensor, grid: TokenGrid, block_size: int, masks: MaskCache) -> Partition:
        """The orders of these queries and keys."""
        tokens = slice(grid.text_before, grid.text_before + grid.visual)
        queries, keys = (self.sorted(t[:, :, tokens], block_size) for t in (query, key))
        return Partition.of(grid, queries, keys, cut(grid.visual, block_size).to(query.device), block_size)

    def sorted(self, tokens: Tensor, block_size: int) -> Tensor:
        """int64 [batch, heads, tokens]: the order of float [batch, heads, tokens, head_dim]."""
        count, device = tokens.shape[2], tokens.device
        few, start = leading(tokens.flatten(0, 1), self.dims)
        few, order = few[None], torch.arange(count, device=device).expand(1, len(few), -1)
        bounds = [0, -(-count // block_size)]  # of the parts, in blocks
        while max(b - a for a, b in pairwise(bounds)) > 1:
            ends = (torch.tensor(bounds, device=device) * block_size).clamp_max(count)
            parts, there = runs(few, ends.diff())
            places = argsort(along(parts[0], ends.diff(), start, self.steps).masked_fill(~there, torch.inf))
            places += ends[:-1, None]
            moves = (places.flatten(1) if there.all() else places[:, there])[None]
            few, order = in_order(few, moves), order.gather(2, moves)
            bounds = [0, *(e for a, b in pairwise(bounds) for e in _cuts(a, b, self.ways))]
        return order.view(tokens.shape[:3])


def runs(tensor: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Consecutive runs of tokens side by side.

    Args:
        tensor: [batch, heads, tokens, …].
        lengths: int64 [runs], of ``tokens`` in all.

    Returns:
        [batch, heads, runs, longest, …] with 0 where a run has no more tokens, and bool [runs, longest] where it has.
    """
    index, there = slots_of(lengths)
    if there.all():
        return tensor.unflatten(2, there.shape), there
    spread = tensor.index_select(2, index.flatten()).unflatten(2, index.shape)
    spread[:, :, ~there] = 0
    return spread, there


def slots_of(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """int64 [runs, longest], the number of every token of consecutive runs, and bool like it, whether there is one."""
    slot = torch.arange(int(lengths.max()), device=lengths.device)
    index = (lengths.cumsum(0) - lengths)[:, None] + slot
    return index.clamp_max(int(lengths.sum()) - 1), slot < lengths[:, None]


def _cuts(first: int, last: int, ways: int) -> list[int]:
    """The ends of at most ``ways`` equal parts of first … last."""
    parts = min(ways, last - first)
    return [first + (last - first) * (i + 1) // parts for i in range(parts)]


_ALL: tuple[type[Order], ...] = (Raster, PatchMajor, Curve, Tiled, ByLayer, Tree)
ORDERS: dict[str, type[Order]] = {order.__name__: order for order in _ALL}
