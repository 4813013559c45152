"""A block mask in which tokens of some kinds do not see those of others: what a rule on tokens leaves of its lists.

Where blocks hold tokens of several kinds there are two ways. Blocks stay, and tiles say who sees whom in them; or what
those blocks have of each kind is put together into new blocks, and pairs of these stay or go. Each way has its masks:
boxes of tokens seldom have several kinds, rows of a picture often do. The cheaper one is
taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dattn.block_mask import BlockList, BlockMask
from dattn.head_masks import for_head_groups, group_of
from dattn.pieces import TILED, WHOLE, Side, Terms, shared, written
from dattn.tiles import PART_COST
from dattn.token_parts import list_of, rows_of


def listed(mask: BlockMask) -> bool:
    """Whether block lists are all that a mask is, the same for every sample: what ``apart`` works on."""
    return not mask.pools and not mask.repeats and len(mask.full.offsets) == 1


def apart(mask: BlockMask, kind: Tensor, sees: Tensor) -> BlockMask:
    """The mask without the pairs of tokens whose kinds do not see each other.

    Args:
        mask: one that is ``listed``.
        kind: int64 [tokens], in raster order; text is of one kind.
        sees: bool [kinds, kinds], whether queries of a kind see keys of another.

    Raises:
        ValueError: a mask that is not ``listed``.
    """
    if not listed(mask):
        raise ValueError(
            "a mask with a tail, with levels or for single samples: without some keys its means and choices would be "
            "others; hide the keys with key_mask="
        )
    return for_head_groups([_single(group_of(mask, g), kind, sees) for g in range(mask.groups)])


def _single(mask: BlockMask, kind: Tensor, sees: Tensor) -> BlockMask:
    """The same for a mask of one group."""
    ways = [_Pairs.of(mask, kind, sees, packed) for packed in (False, True)]
    return min(ways, key=lambda way: way.cost).mask(mask)


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Pairs of blocks in which some token may see another.

    Attributes:
        query, key: the two sides.
        rows, columns: int64 [pairs], the blocks, row by row.
        whole: bool [pairs], whether all tokens see all.
        terms: what is said of the others.
    """

    query: Side
    key: Side
    rows: Tensor
    columns: Tensor
    whole: Tensor
    terms: Terms

    @classmethod
    def of(cls, mask: BlockMask, kind: Tensor, sees: Tensor, packed: bool) -> _Pairs:
        """Those of a mask of one group, in blocks as they were or ``packed``."""
        query, key = (Side.of(side, kind, packed, mask.block_size) for side in (mask.query, mask.key))
        lists = _entries(mask.full), _entries(mask.partial, mask.tile)
        row, column, state = (torch.cat(both) for both in zip(*lists, strict=True))
        entry, q, k = shared(query, row, key, column)
        seen = sees[query.kind[q], key.kind[k]]
        state, q, k = state[entry[seen]], q[seen], k[seen]
        numbers, pair = (query.new[q] * key.layout.blocks + key.new[k]).unique(return_inverse=True)
        rows, columns = numbers // key.layout.blocks, numbers % key.layout.blocks
        every = query.layout.lengths[0, 0, rows].long() * key.layout.lengths[0, 0, columns]
        area = query.count[q] * key.count[k] * (state == WHOLE)
        whole = torch.zeros_like(every).index_add_(0, pair, area) == every
        order = pair.argsort(stable=True)
        order = order[~whole[pair[order]]]
        terms = Terms(((~whole).cumsum(0) - 1)[pair[order]], q[order], k[order], state[order])
        return cls(query, key, rows, columns, whole, terms)

    @property
    def cost(self) -> float:
        """What they cost to visit, in whole pairs."""
        return len(self.rows) + PART_COST * int((~self.whole).sum())

    def mask(self, old: BlockMask) -> BlockMask:
        """Them as lists, with the tiles made from those of the old mask."""
        part, blocks = ~self.whole, self.query.layout.blocks
        at = self.rows[part], self.columns[part]
        found, tiles = written(self.query, self.key, *at, self.terms, old.unpacked_tiles())
        state = torch.full_like(self.rows, WHOLE).masked_scatter_(part, found)
        full, partial = (list_of(self.rows[n], self.columns[n], blocks) for n in (state == WHOLE, state >= TILED))
        tile = (state[state >= TILED] - TILED).int()[None, None]
        return BlockMask(self.query.layout, self.key.layout, full, partial, tile, tiles, old.block_size)


def _entries(blocks: BlockList, tile: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """int64 [entries]: the query block, the key block and the state of every entry of a single list."""
    index = blocks.index[0, 0].long()
    return rows_of(blocks), index, torch.full_like(index, WHOLE) if tile is None else TILED + tile[0, 0].long()
