"""Strided heads: every head group sees its own shard of the key blocks, and together they see all.

S2-Attention (Lin et al., 2024, arXiv 2407.17678): heads differ in which part of the context they hold. With blocks of
consecutive tokens, a stride of s and ``local`` neighbours,

    in head group g of s:    block i sees block j  iff  j mod s = g  or  |i - j| <= local

so each group computes about 1/s of the pairs and the union over the groups is complete.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dattn.block_mask import BlockMask, build
from dattn.grid import BLOCK_SIZES, TokenGrid, raster_layout
from dattn.head_masks import for_head_groups
from dattn.patterns.base import Pattern, check_count, check_tail


@dataclass(frozen=True)
class StridedHeads(Pattern):
    """S2-Attention: a different strided shard of the keys for each of ``stride`` head groups.

    Args:
        stride: head groups, and the distance between the key blocks that one of them sees; 2 or more, and at most the
            number of heads when attention is computed.
        local: neighbouring blocks on either side that everyone sees; 0 is the own block alone.
        block_size: 16, 32, 64 or 128 consecutive tokens.
        tail: pool what is skipped: False, True (one key per block) or a run of 16 … block size tokens.

    Raises:
        ValueError: a field outside these bounds.
    """

    stride: int
    local: int = 1
    block_size: int = 64
    tail: bool | int = False

    def __post_init__(self) -> None:
        check_count("stride", self.stride, least=2)
        check_count("local", self.local, least=0)
        if self.block_size not in BLOCK_SIZES:
            raise ValueError(f"block_size={self.block_size!r}: choose one of {', '.join(map(str, BLOCK_SIZES))}")
        check_tail(self.tail)

    def mask(self, grid: TokenGrid) -> BlockMask:
        """A head group per shard, every block whole or not at all."""
        layout = raster_layout(grid, self.block_size)
        blocks = torch.arange(-(-grid.visual // self.block_size))
        masks = []
        for group in range(self.stride):

            def rows(first: int, last: int, group: int = group) -> tuple[Tensor, None, None]:
                return self._sees(blocks[first:last, None], blocks, group), None, None

            masks.append(build(grid, layout, rows, self.block_size, tail=self.tail))
        return for_head_groups(masks)

    def visual_allowed(self, grid: TokenGrid) -> Tensor:
        """bool [stride, visual, visual], token by token."""
        block = torch.arange(grid.visual) // self.block_size
        return torch.stack([self._sees(block[:, None], block, group) for group in range(self.stride)])

    def _sees(self, query: Tensor, key: Tensor, group: int) -> Tensor:
        return (key % self.stride == group) | ((query - key).abs() <= self.local)
