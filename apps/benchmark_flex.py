"""FlexAttention as a competitor of ``dattn bench gpu``: the very same block mask, in blocks as FlexAttention has them.

Its blocks are 128 slots each, without exception. A block of ours that holds fewer tokens is padded to that, and its
empty slots are hidden by the element rule, which reads our tile table. Padding and order are not part of its time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from dattn.block_mask import BlockMask

BLOCK = 128
WHOLE, SKIPPED = -1, -2


@dataclass(frozen=True)
class Flex:
    """FlexAttention under one mask.

    Attributes:
        slots: int64 [blocks · 128], the raster position of every slot, -1 where it is empty.
        blocks: its own block mask.
        call: ``flex_attention``, compiled or not.
    """

    slots: Tensor
    blocks: Any
    call: Any

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The output, of tensors [batch, heads, slots, head_dim] as ``slots`` has them; empty ones mean nothing."""
        output: Tensor = self.call(query, key, value, block_mask=self.blocks)
        return output


def flex_attention(mask: BlockMask, compiled: bool = True) -> Flex | None:
    """FlexAttention with the same lists; None where it has no equal: blocks of another size, pooled keys."""
    import torch
    from torch.nn.attention import flex_attention as flex

    if mask.pools or mask.block_size != BLOCK:
        return None
    slots = mask.query.slots(0, 0, BLOCK).flatten()
    kinds = _kinds(mask)
    whole = (kinds == WHOLE) & (mask.key.lengths[0, 0] == BLOCK)
    partial = (kinds != SKIPPED) & ~whole
    blocks = flex.BlockMask.from_kv_blocks(
        *_lists(partial),
        *_lists(whole),
        BLOCK_SIZE=BLOCK,
        mask_mod=_rule(mask, kinds),
        seq_lengths=(len(slots), len(slots)),
    )
    call: Any = flex.flex_attention
    if compiled:
        torch._dynamo.reset()  # a mask is a program of its own, and only eight are kept
        call = torch.compile(flex.flex_attention, dynamic=False)
    return Flex(slots, blocks, call)


def _kinds(mask: BlockMask) -> Tensor:
    """int32 [rows, columns]: the tile number of every pair of blocks, or WHOLE, or SKIPPED."""
    import torch

    rows, columns = mask.num_blocks
    kinds = torch.full((rows, columns), SKIPPED, dtype=torch.int32, device=mask.tile.device)
    kinds[mask.full.rows(0, 0, 0, rows, columns)] = WHOLE
    kinds[mask.partial.rows(0, 0, 0, rows, columns)] = mask.tile[0, 0]
    return kinds


def _rule(mask: BlockMask, kinds: Tensor) -> Any:
    """FlexAttention's element rule: the bits of the pair's tile, where the key's slot holds a token."""
    import torch

    size = 1, BLOCK, BLOCK
    none, every = (make(size, dtype=torch.bool, device=kinds.device) for make in (torch.zeros, torch.ones))
    tiles = torch.cat([mask.unpacked_tiles(), none, every])  # SKIPPED and WHOLE count from the end
    lengths = mask.key.lengths[0, 0]

    def rule(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        there = key % BLOCK < lengths[key // BLOCK]
        return there & tiles[kinds[query // BLOCK, key // BLOCK], query % BLOCK, key % BLOCK]

    return rule


def _lists(visited: Tensor) -> tuple[Tensor, Tensor]:
    """Counts [1, 1, rows] and indices [1, 1, rows, columns] as FlexAttention has them."""
    order = visited.int().argsort(dim=-1, descending=True, stable=True)
    return visited.sum(-1).int()[None, None], order.int()[None, None]
