"""A block mask between some of the tokens and some others, as a process has them that holds only a part."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from dattn.block_mask import BlockList, BlockMask, pack_bits
from dattn.grid import Layout
from dattn.head_masks import for_head_groups, group_of

TILES_AT_ONCE = 1024


def between(mask: BlockMask, queries: Tensor, keys: Tensor, length: int) -> BlockMask | None:
    """What the tokens ``queries`` see of the tokens ``keys``; None if that is nothing.

    Blocks keep their places and shrink to the tokens that are there.

    Args:
        mask: of all tokens, for a batch of 1, without anything seen through means.
        queries, keys: int64 raster positions, which become 0, 1, … in this order.
        length: tokens of either side of the result; those beyond the given ones see nothing and nobody sees them.

    Raises:
        ValueError: a mask with a tail or with levels.
    """
    if mask.pools:
        raise ValueError("a mask with a tail or levels: means over parts of a run are others; leave the tail out")
    parts = [_single(group_of(mask, g), queries, keys, length) for g in range(mask.groups)]
    if not any(len(part.full.index[0, 0]) + len(part.partial.index[0, 0]) for part in parts):
        return None
    return for_head_groups(parts)


def _single(mask: BlockMask, queries: Tensor, keys: Tensor, length: int) -> BlockMask:
    """The same for a mask of one group."""
    (query, q_there), (key, k_there) = (
        _layout(side, tokens, length, mask.block_size) for side, tokens in ((mask.query, queries), (mask.key, keys))
    )
    some = q_there.any(1), k_there.any(1)
    rows = [rows_of(blocks) for blocks in (mask.full, mask.partial)]
    columns = [blocks.index[0, 0].long() for blocks in (mask.full, mask.partial)]
    keep = [some[0][row] & some[1][column] for row, column in zip(rows, columns, strict=True)]
    full = list_of(rows[0][keep[0]], columns[0][keep[0]], query.blocks)
    row, column, tile = (t[keep[1]] for t in (rows[1], columns[1], mask.tile[0, 0].long()))
    tiles, number = _shrunk(mask, tile, (q_there, row), (k_there, column))
    seen = tiles.flatten(1).any(1)[number]
    partial = list_of(row[seen], column[seen], query.blocks)
    number = number[seen].int()[None, None]
    return BlockMask(query, key, full, partial, number, pack_bits(tiles), mask.block_size)


def _layout(side: Layout, tokens: Tensor, length: int, size: int) -> tuple[Layout, Tensor]:
    """One side cut down to some tokens; and bool [blocks, size], which slots of the old blocks they are."""
    place = torch.full((side.order.shape[-1] + 1,), -1, device=side.order.device)
    place[tokens.to(place.device)] = torch.arange(len(tokens), device=place.device)
    slots = place[side.slots(0, 0, size)]  # an empty slot is -1, the last of ``place``
    there, rest = slots >= 0, torch.arange(len(tokens), length, device=place.device)
    lengths, pooled = pad(there.sum(1), (0, len(rest)), value=1), pad(side.pooled, (0, len(rest)))
    order = torch.cat([slots[there], rest])
    return Layout(order[None, None], lengths.int()[None, None], pooled), there


def rows_of(blocks: BlockList) -> Tensor:
    """int64 [entries]: the query block of each entry of a single list."""
    return torch.arange(blocks.offsets.shape[-1] - 1, device=blocks.index.device).repeat_interleave(
        blocks.counts()[0, 0].long()
    )


def list_of(rows: Tensor, columns: Tensor, blocks: int) -> BlockList:
    """Entries in ascending rows as a list of ``blocks`` rows."""
    offsets = pad(rows.bincount(minlength=blocks).cumsum(0), (1, 0)).int()
    return BlockList(offsets[None, None], columns.int()[None, None])


def _shrunk(
    mask: BlockMask, tile: Tensor, query: tuple[Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """bool [distinct, size, size], tiles without the slots that are gone; and the number of each entry's.

    ``query`` and ``key``: which slots of every block are there, and the block of every entry.
    """
    (q_kinds, q_of), (k_kinds, k_of) = (there.unique(dim=0, return_inverse=True) for there, _ in (query, key))
    wanted = torch.stack([tile, q_of[query[1]], k_of[key[1]]], 1)
    distinct, number = wanted.unique(dim=0, return_inverse=True)
    tiles, size = mask.unpacked_tiles(), mask.block_size
    parts = [
        _cut(tiles[t], q_kinds[q], k_kinds[k]) for t, q, k in (part.unbind(1) for part in distinct.split(TILES_AT_ONCE))
    ]
    return torch.cat([tiles.new_zeros(0, size, size), *parts]), number


def _cut(tiles: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """bool [n, size, size] with the slots that are there moved to the front; ``rows``, ``columns``: bool [n, size]."""
    row, column = ((~there).byte().argsort(dim=1, stable=True) for there in (rows, columns))
    moved = tiles.gather(1, row[:, :, None].expand_as(tiles)).gather(2, column[:, None].expand_as(tiles))
    inside = rows.gather(1, row)[:, :, None] & columns.gather(1, column)[:, None]
    return moved & inside
