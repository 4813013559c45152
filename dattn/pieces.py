"""New blocks made of pieces of old ones, and the tiles of pairs of them.

A piece is what a new block has of an old block of one kind of tokens: between two pieces a mask of the old blocks says
one thing, which is that all see all, that none sees any, or a part of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from dattn.block_mask import pack_bits
from dattn.grid import Layout, split

PAIRS_AT_ONCE = 256
SKIPPED, WHOLE, TILED = 0, 1, 2
"""What a pair of blocks is; from ``TILED`` on it has a tile, ``TILED`` the first of a table."""


@dataclass(frozen=True, eq=False)
class Side:
    """One side of a mask in new blocks.

    Attributes:
        layout: the new blocks.
        slot: int64 [blocks, block_size], where in its old block a token was; -1 in an empty slot.
        place: int64 [blocks, block_size], the number of a token's piece in its block; -1 in an empty slot.
        new, old, kind: int64 [pieces], a piece's blocks and its kind.
        count: int64 [pieces], its tokens.
        number: int64 [pieces], which of its new block's pieces it is.
    """

    layout: Layout
    slot: Tensor
    place: Tensor
    new: Tensor
    old: Tensor
    kind: Tensor
    count: Tensor
    number: Tensor

    @classmethod
    def of(cls, side: Layout, kind: Tensor, packed: bool, size: int) -> Side:
        """A side of a single list whose tokens have kinds, int64 [tokens] in raster order.

        Tokens of a kind stand together in each block; or, where ``packed``, those of blocks with several kinds lie in
        new blocks behind the picture's others, each of one kind.
        """
        lengths = side.lengths[0, 0].long()
        block, starts = _numbers(lengths), lengths.cumsum(0) - lengths
        own, kinds = kind[side.order[0, 0]], int(kind.max()) + 1
        mixed = block[own != own[starts[block]]].bincount(minlength=len(lengths)) > 0
        end = int(side.pooled.nonzero().max()) + 1
        run = (block + kinds * (block >= end)).where(~(mixed[block] & packed), end + own)
        order = (run * kinds + own).argsort(stable=True)
        slot = torch.arange(len(block), device=block.device) - starts[block]
        block, own, slot = (t[order] for t in (block, own, slot))
        lengths = split(run[order].unique_consecutive(return_counts=True)[1], size)[0]
        new = _numbers(lengths)
        pieces, piece, count = torch.stack([new, block, own], 1).unique_consecutive(
            dim=0, return_inverse=True, return_counts=True
        )
        new, old, kind = pieces.unbind(1)
        of_blocks = new.bincount()
        number = torch.arange(len(new), device=new.device) - (of_blocks.cumsum(0) - of_blocks)[new]
        pooled = side.pooled[block[lengths.cumsum(0) - lengths]]
        layout = Layout(side.order[..., order], lengths.int()[None, None], pooled)
        in_slots = lambda t: replace(layout, order=t[None, None]).slots(0, 0, size)
        return cls(layout, in_slots(slot), in_slots(number[piece]), new, old, kind, count, number)

    def forms(self) -> tuple[Tensor, Tensor]:
        """How blocks are filled, slots and places: int64 [forms, 2, block_size], and the form of each block."""
        return torch.stack([self.slot, self.place], 1).unique(dim=0, return_inverse=True)


class Terms(NamedTuple):
    """What pairs of pieces say of pairs of new blocks; int64 [pairs of pieces] each.

    Attributes:
        pair: of new blocks, by number, ascending.
        query, key: the pieces.
        state: of the pair of old blocks.
    """

    pair: Tensor
    query: Tensor
    key: Tensor
    state: Tensor

    def of(self, first: int, last: int) -> Terms:
        """What is said of the pairs of new blocks first … last - 1."""
        ends = torch.tensor([first, last], device=self.pair.device)
        part = slice(*torch.searchsorted(self.pair, ends).tolist())
        return Terms(*(t[part] for t in self))


def shared(query: Side, row: Tensor, key: Side, column: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every entry of a list, from old block ``row`` to ``column``, with every piece of both: int64 [pairs] each."""
    (q_order, q_first, q_count), (k_order, k_first, k_count) = _by_block(query, row), _by_block(key, column)
    entry = _numbers(q_count * k_count)
    within = torch.arange(len(entry), device=entry.device) - torch.searchsorted(entry, entry)
    q, k = within // k_count[entry], within % k_count[entry]
    return entry, q_order[q_first[entry] + q], k_order[k_first[entry] + k]


def _by_block(side: Side, blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pieces in the order of their old blocks; where those of some blocks begin, and how many they are."""
    count = side.old.bincount(minlength=int(blocks.max()) + 1 if len(blocks) else 0)
    return side.old.argsort(stable=True), (count.cumsum(0) - count)[blocks], count[blocks]


def _numbers(counts: Tensor) -> Tensor:
    """0, 1, …, each as often as ``counts`` says."""
    return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)


def written(query: Side, key: Side, rows: Tensor, columns: Tensor, terms: Terms, old: Tensor) -> tuple[Tensor, Tensor]:
    """What pairs of new blocks are, int64 [pairs], and the packed tiles of those that are seen in part.

    Args:
        rows, columns: int64 [pairs], the blocks.
        terms: what is said of them.
        old: bool [tiles, block_size, block_size], the table that ``terms`` point to.
    """
    old = torch.cat([old.new_zeros(1, *old.shape[1:]), old.new_ones(1, *old.shape[1:]), old])
    (q_forms, q_form), (k_forms, k_form) = query.forms(), key.forms()
    most = int(query.number.max()) + 1, int(key.number.max()) + 1
    states, tiles, made = [rows[:0]], [pack_bits(old[:0])], TILED
    for first in range(0, len(rows), PAIRS_AT_ONCE):
        part, said = slice(first, first + PAIRS_AT_ONCE), terms.of(first, first + PAIRS_AT_ONCE)
        state = rows.new_zeros(len(rows[part]), *most)
        state[said.pair - first, query.number[said.query], key.number[said.key]] = said.state
        alike = torch.cat([q_form[rows[part], None], k_form[columns[part], None], state.flatten(1)], 1)
        alike, which = alike.unique(dim=0, return_inverse=True)
        bits, there = _tiles(q_forms[alike[:, 0]], k_forms[alike[:, 1]], alike[:, 2:].unflatten(1, most), old)
        some, every = bits.flatten(1).any(1), (bits == there).flatten(1).all(1)
        numbers = made + torch.arange(len(alike), device=rows.device)
        states.append(numbers.where(some & ~every, torch.where(every, WHOLE, SKIPPED))[which])
        tiles.append(pack_bits(bits))
        made += len(alike)
    distinct, numbers = torch.cat(tiles).unique(dim=0, return_inverse=True)
    found = torch.cat(states)
    tiled = found >= TILED
    found[tiled] = TILED + numbers[found[tiled] - TILED]
    return found, distinct


def _tiles(query: Tensor, key: Tensor, state: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
    """Tiles, bool [n, block_size, block_size], and which of their slots hold tokens.

    Args:
        query, key: int64 [n, 2, block_size], how the blocks are filled.
        state: int64 [n, places, places], of every pair of pieces.
        old: bool [states, block_size, block_size].
    """
    (q_slot, q_place), (k_slot, k_place) = (side.clamp_min(0).unbind(1) for side in (query, key))
    each = torch.arange(len(state), device=state.device)[:, None, None]
    of_token = state[each, q_place[:, :, None], k_place[:, None]]
    there = (query[:, 0] >= 0)[:, :, None] & (key[:, 0] >= 0)[:, None]
    return old[of_token, q_slot[:, :, None], k_slot[:, None]] & there, there
