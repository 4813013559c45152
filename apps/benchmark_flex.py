"""FlexAttention as a competitor of ``dattn bench gpu``: the very same block mask, in blocks as FlexAttention has them.

Its blocks are 128 slots each, without exception: its backward pass takes no smaller ones. So a block of ours that holds
fewer tokens than slots is padded, smaller blocks go several to one of its own, and what is then too much is hidden by
its element rule, which looks up no more than the mask needs: lengths of blocks; our lists where several go to one; the
tile table where some are seen in part. Padding and order are not part of its time.
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
        slots: int64, a multiple of 128: the raster position of every slot, -1 where it is empty.
        blocks: its own block mask.
        call: ``flex_attention``, compiled or not.
    """

    slots: Tensor
    blocks: Any
    call: Any

    @property
    def partial(self) -> float:
        """The share of its visited blocks that it looks through element by element."""
        partial, whole = (int(t.sum()) for t in (self.blocks.kv_num_blocks, self.blocks.full_kv_num_blocks))
        return partial / max(1, partial + whole)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The output, of tensors [batch, heads, slots, head_dim] as ``slots`` has them; empty ones mean nothing."""
        output: Tensor = self.call(query, key, value, block_mask=self.blocks)
        return output


def flex_attention(mask: BlockMask, compiled: bool = True) -> Flex | None:
    """FlexAttention with the same lists; None where keys are pooled, which it has no equal of."""
    import torch
    from torch.nn.attention import flex_attention as flex
    from torch.nn.functional import pad

    if mask.pools:
        return None
    size, more = mask.block_size, -mask.query.blocks % (BLOCK // mask.block_size)
    slots = pad(mask.query.slots(0, 0, size).flatten(), (0, more * size), value=-1)
    kinds, lengths = pad(_kinds(mask), (0, more, 0, more), value=SKIPPED), pad(mask.key.lengths[0, 0], (0, more))
    whole = _merged((kinds == WHOLE) & (lengths == size), size).all(-1)
    blocks = flex.BlockMask.from_kv_blocks(
        *_lists(_merged(kinds != SKIPPED, size).any(-1) & ~whole),
        *_lists(whole),
        BLOCK_SIZE=BLOCK,
        mask_mod=_rule(mask, kinds, lengths),
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


def _merged(pairs: Tensor, size: int) -> Tensor:
    """[rows, columns, pairs of ours]: bool [our rows, our columns] by FlexAttention's blocks."""
    per = BLOCK // size
    return pairs.unflatten(0, (-1, per)).unflatten(2, (-1, per)).transpose(1, 2).flatten(2)


def _rule(mask: BlockMask, kinds: Tensor, lengths: Tensor) -> Any:
    """FlexAttention's element rule: the bits of the pair's tile, where the key's slot holds a token."""
    import torch

    size = mask.block_size

    def within(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key % size < lengths[key // size]

    def listed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return within(batch, head, query, key) & (kinds[query // size, key // size] == WHOLE)

    if not mask.partial.index.shape[-1]:
        return within if size == BLOCK else listed
    none, every = (make(1, size, size, dtype=torch.bool, device=kinds.device) for make in (torch.zeros, torch.ones))
    tiles = torch.cat([mask.unpacked_tiles(), none, every])  # SKIPPED and WHOLE count from the end

    def in_tile(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        bit = tiles[kinds[query // size, key // size], query % size, key % size]
        return within(batch, head, query, key) & bit

    return in_tile


def _lists(visited: Tensor) -> tuple[Tensor, Tensor]:
    """Counts [1, 1, rows] and indices [1, 1, rows, columns] as FlexAttention has them."""
    order = visited.int().argsort(dim=-1, descending=True, stable=True)
    return visited.sum(-1).int()[None, None], order.int()[None, None]
