"""What orders have in common that look at the tokens: like ones next to each other, whatever their places."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dattn.block_mask import MaskCache
from dattn.grid import TokenGrid, cut
from dattn.orders.base import Order, Partition


@dataclass(frozen=True)
class ByContent(Order):
    """Base of these: queries and keys each for themselves, head by head, cut into full blocks."""

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
        raise NotImplementedError
