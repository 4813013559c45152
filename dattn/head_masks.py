"""The masks of several head groups as one mask: one block size, equally many blocks, one table of tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from dattn.block_mask import BlockList, BlockMask, pack_bits
from dattn.grid import Layout


def for_head_groups(masks: Sequence[BlockMask]) -> BlockMask:
    """One mask whose head group g is the g-th mask; masks that have groups themselves share theirs out evenly.

    Where the masks' block sizes differ, blocks are split; those with tails of one key per block cannot be and lie in
    larger blocks instead, with empty slots. A side with fewer blocks gets empty ones, which nobody visits, after its
    visual blocks.

    Args:
        masks: of one grid and of a batch of 1.

    Raises:
        ValueError: tails that differ in their run, or masks with levels or with keys listed several times.
    """
    if any(mask.levels or mask.repeats for mask in masks):
        raise ValueError("masks of single calls: they have lists for every head; compute them alone")
    runs = {mask.tail for mask in masks}
    by_block = all(mask.tail == mask.block_size for mask in masks)
    if len(runs) > 1 and not by_block:
        raise ValueError(f"tails over runs of {sorted(runs)} tokens: the heads of one launch pool alike; give one run")
    size = (max if by_block else min)(mask.block_size for mask in masks)
    share = math.lcm(*(mask.groups for mask in masks))
    singles = [group_of(mask, i * mask.groups // share) for mask in masks for i in range(share)]
    singles = [_widened(mask, size) if by_block else _split(mask, mask.block_size // size) for mask in singles]
    blocks = [max(_visual(mask, side) for mask in singles) for side in ("query", "key")]
    singles = [_padded(mask, *blocks) for mask in singles]
    starts = torch.tensor([0, *(len(mask.tiles) for mask in singles[:-1])]).cumsum(0).tolist()
    tile = [mask.tile + start for mask, start in zip(singles, starts, strict=True)]
    return replace(
        singles[0],
        query=_together([mask.query for mask in singles]),
        key=_together([mask.key for mask in singles]),
        full=_side_by_side([mask.full for mask in singles]),
        partial=_side_by_side([mask.partial for mask in singles]),
        tile=_stack(tile),
        tiles=torch.cat([mask.tiles for mask in singles]),
    )


def _visual(mask: BlockMask, side: str) -> int:
    return int(getattr(mask, side).pooled.sum())


def _stack(rows: Sequence[Tensor]) -> Tensor:
    """[1, groups, entries] of rows [1, 1, entries], the short ones filled up with 0."""
    longest = max(row.shape[-1] for row in rows)
    return torch.cat([pad(row, (0, longest - row.shape[-1])) for row in rows], 1)


def _side_by_side(lists: Sequence[BlockList]) -> BlockList:
    return BlockList(_stack([blocks.offsets for blocks in lists]), _stack([blocks.index for blocks in lists]))


def _together(layouts: Sequence[Layout]) -> Layout:
    """Layouts of equally many blocks, one per group; a single one where all are the same."""
    first = layouts[0]
    same = (torch.equal(a.order, first.order) and torch.equal(a.lengths, first.lengths) for a in layouts)
    if all(same):
        return first
    return Layout(torch.cat([a.order for a in layouts], 1), torch.cat([a.lengths for a in layouts], 1), first.pooled)


def group_of(mask: BlockMask, group: int) -> BlockMask:
    """The mask of one head group alone."""
    at = lambda t: t[:, min(group, t.shape[1] - 1)][:, None]
    side = lambda layout: Layout(at(layout.order), at(layout.lengths), layout.pooled)
    used = lambda blocks, t: at(t)[..., : int(at(blocks.offsets)[..., -1])]
    full, partial = (BlockList(at(b.offsets), used(b, b.index)) for b in (mask.full, mask.partial))
    tile = used(mask.partial, mask.tile)
    return replace(mask, query=side(mask.query), key=side(mask.key), full=full, partial=partial, tile=tile)


def _padded(mask: BlockMask, queries: int, keys: int) -> BlockMask:
    """The same mask with so many visual blocks on its sides, the new ones empty."""
    more = queries - _visual(mask, "query"), keys - _visual(mask, "key")
    end = int(mask.query.pooled.nonzero().max()) + 1, int(mask.key.pooled.nonzero().max()) + 1

    def lists(blocks: BlockList) -> BlockList:
        new = blocks.offsets[..., end[0], None].expand(-1, -1, more[0])
        offsets = torch.cat([blocks.offsets[..., : end[0]], new, blocks.offsets[..., end[0] :]], -1)
        return BlockList(offsets, torch.where(blocks.index >= end[1], blocks.index + more[1], blocks.index))

    query, key = (_with_empty(side, n, at) for side, n, at in zip((mask.query, mask.key), more, end, strict=True))
    return replace(mask, query=query, key=key, full=lists(mask.full), partial=lists(mask.partial))


def _with_empty(layout: Layout, count: int, at: int) -> Layout:
    """A layout with ``count`` empty visual blocks inserted before block ``at``."""
    lengths = torch.cat([pad(layout.lengths[..., :at], (0, count)), layout.lengths[..., at:]], -1)
    pooled = torch.cat([pad(layout.pooled[:at], (0, count), value=True), layout.pooled[at:]])
    return Layout(layout.order, lengths, pooled)


def _widened(mask: BlockMask, size: int) -> BlockMask:
    """The same mask with more slots in its blocks, which stay empty; its tail of one key per block as well."""
    more = size - mask.block_size
    tiles = pack_bits(pad(mask.unpacked_tiles(), (0, more, 0, more)))
    return replace(mask, tiles=tiles, block_size=size, tail=size)


def _split(mask: BlockMask, parts: int) -> BlockMask:
    """The same mask, of one group, with every block cut into ``parts`` smaller ones."""
    if parts == 1:
        return mask
    size = mask.block_size // parts
    cut = mask.unpacked_tiles().unflatten(2, (parts, size)).unflatten(1, (parts, size)).transpose(2, 3)
    query, query_number = _split_layout(mask.query, parts, size)
    key, key_number = _split_layout(mask.key, parts, size)
    full, _ = _split_lists(mask.full, torch.zeros_like(mask.full.index), query_number, key_number)
    partial, tile = _split_lists(mask.partial, mask.tile, query_number, key_number)
    if not mask.tail:  # a block that is seen in no part counts as skipped for a tail alone
        partial, tile = _without_empty(partial, tile, cut.flatten(0, 2).flatten(1).any(1))
    tiles = pack_bits(cut.flatten(0, 2))
    return BlockMask(query, key, full, partial, tile, tiles, size, mask.tail)


def _split_layout(layout: Layout, parts: int, size: int) -> tuple[Layout, Tensor]:
    """The layout in smaller blocks, and the new number of every part of every block, -1 for an empty one."""
    lengths = (layout.lengths[0, 0, :, None] - size * torch.arange(parts)).clamp(0, size)
    there = lengths > 0
    number = torch.where(there, there.flatten().cumsum(0).view(there.shape) - 1, -1)
    pooled = layout.pooled.repeat_interleave(there.sum(1))
    return Layout(layout.order, lengths[there].int()[None, None], pooled), number


def _split_lists(blocks: BlockList, tile: Tensor, query: Tensor, key: Tensor) -> tuple[BlockList, Tensor]:
    """Lists in smaller blocks, given the new numbers of both sides; and the tiles of their entries."""
    parts = query.shape[1]
    row = torch.arange(len(query)).repeat_interleave(blocks.counts()[0, 0].long())
    shape = len(row), parts, parts
    rows = query[row][:, :, None].expand(shape)
    columns = key[blocks.index[0, 0].long()][:, None].expand(shape)
    tiles = tile[0, 0, :, None, None] * parts**2 + torch.arange(parts**2).view(parts, parts)
    there = (rows >= 0) & (columns >= 0)
    rows, columns, tiles = rows[there], columns[there], tiles[there]
    order = (rows * (int(key.max()) + 1) + columns).argsort()
    offsets = pad(rows.bincount(minlength=int(query.max()) + 1).cumsum(0), (1, 0))
    together = BlockList(offsets.int()[None, None], columns[order].int()[None, None])
    return together, tiles[order].int()[None, None]


def _without_empty(blocks: BlockList, tile: Tensor, some: Tensor) -> tuple[BlockList, Tensor]:
    """Lists without the entries whose tile is all 0; ``some`` is bool [tiles]."""
    keep = some[tile[0, 0].long()]
    row = torch.arange(blocks.offsets.shape[-1] - 1).repeat_interleave(blocks.counts()[0, 0].long())[keep]
    offsets = pad(row.bincount(minlength=blocks.offsets.shape[-1] - 1).cumsum(0), (1, 0)).int()
    return BlockList(offsets[None, None], blocks.index[..., keep]), tile[..., keep]
