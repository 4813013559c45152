"""What an order is, and the partition of a grid that it makes.

An order cuts the tokens into *regions*, and these into blocks: a region is one block, or several where it holds more
tokens than a block does. Queries choose block by block, keys are chosen region by region.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.functional import pad

from dattn.block_mask import BlockList, BlockMask, Level, MaskCache
from dattn.grid import Layout, TokenGrid, split, text_blocks, with_text
from dattn.selection import to_lists, whole_blocks
from dattn.spec import Named

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
