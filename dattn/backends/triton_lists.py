"""A block mask as the Triton kernels take it: sets of int32 lists, their transpose, orders, and bits of pooled keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

from dattn.backends.list_check import check_lists
from dattn.block_mask import WORD, BlockList, BlockMask, pack_bits
from dattn.grid import Layout
from dattn.kernels.arguments import Blocks, Lists, Sets, Visits
from dattn.selection import OWN

CHUNK = 1 << 24  # (query block, pooled key) pairs written out at a time


@dataclass(frozen=True, eq=False)
class Runs:
    """The keys cut into runs of one length, for one of ``BlockMask.pools``.

    Attributes:
        run: tokens in a run; ``number`` runs in all.
        run_of: int64 [batch or 1, groups, tokens], the run of every key, in kernel order.
    """

    run: int
    number: int
    run_of: Tensor

    def weights(self, kept: Tensor | None, batch: int) -> tuple[Tensor, Tensor]:
        """Every key's weight in the mean of its run, and ln n of the runs; n counts the keys that are ``kept``.

        Args:
            kept: uint8 [batch, groups, tokens] in kernel order, or None for all.
            batch: rows of the batch.

        Returns:
            float32 [batch, groups, tokens], and float32 [batch or 1, groups, runs].
        """
        if kept is None:
            weight, log_count = self._all_kept
            return weight.expand(batch, -1, -1).contiguous(), log_count
        return self._weights(kept.float(), self.run_of.expand(batch, -1, -1))

    @cached_property
    def _all_kept(self) -> tuple[Tensor, Tensor]:
        return self._weights(torch.ones_like(self.run_of, dtype=torch.float32), self.run_of)

    def _weights(self, counts: Tensor, run_of: Tensor) -> tuple[Tensor, Tensor]:
        total = counts.new_zeros(*run_of.shape[:2], self.number).scatter_add_(2, run_of, counts)
        return counts / total.gather(2, run_of).clamp_min(1), total.log()


@dataclass(frozen=True, eq=False)
class TritonLists:
    """What the kernels need of a mask, worked out once.

    Attributes:
        visits: what every query block visits.
        orders: int32 [sets, tokens] of queries and of keys, None where they are the identity.
        ragged: whether a key block holds fewer tokens than it has slots.
        repeats: whether a key may be listed several times.
        pools: how keys are pooled, once for each of ``BlockMask.pools``.
        seen, bits: see ``Pool``; None where there are no pools.
    """

    visits: Visits
    orders: tuple[Tensor | None, Tensor | None]
    ragged: bool
    repeats: bool
    pools: list[Runs]
    seen: Tensor | None
    bits: Tensor | None

    @cached_property
    def turned(self) -> Visits:
        """By whom every key block is visited; the backward pass alone asks."""
        own, other, full, partial, tiles, sets = self.visits
        back = _transposed(full, other.number), _transposed(partial, other.number) if partial else None
        return Visits(other, own, *back, tiles, sets)


def lists_of(mask: BlockMask) -> TritonLists:
    """The mask's lists, kept with it."""
    if "triton" not in mask.derived:
        mask.derived["triton"] = _lists_of(mask)
    return mask.derived["triton"]


def _lists_of(mask: BlockMask) -> TritonLists:
    if OWN not in mask.derived:
        check_lists(mask)
    parts = mask.query.order, mask.key.order, mask.query.lengths, mask.key.lengths, mask.full.offsets
    batches, groups = (max(t.shape[i] for t in parts) for i in (0, 1))
    sets = lambda t: t.expand(batches, groups, -1).flatten(0, 1).int().contiguous()
    queries, keys = (blocks_of(sets(side.lengths), side.order.shape[-1]) for side in (mask.query, mask.key))
    full, partial = _lists(mask.full, None, sets), None
    if mask.partial.index.shape[-1]:
        partial = _lists(mask.partial, mask.tile, sets)
    tiles = mask.tiles.contiguous() if partial else None
    groups_of = Sets(batches, groups)
    visits = Visits(queries, keys, full, partial, tiles, groups_of)
    ragged = mask.key.shortest < mask.block_size
    orders = (_order(mask.query, sets), _order(mask.key, sets))
    pools = [_runs(run, mask.block_size, visits) for run in mask.pools]
    assert not (mask.repeats and pools), "keys that are listed again are not pooled"
    return TritonLists(
        visits, orders, ragged, mask.repeats, pools, *(_seen(mask, groups_of), _bits(mask)) if pools else (None, None)
    )


def _runs(run: int, block_size: int, visits: Visits) -> Runs:
    keys, per_block = visits.other, block_size // run
    blocks = torch.arange(keys.number, device=keys.lengths.device)
    run_of = []
    for starts, lengths in zip(keys.starts, keys.lengths, strict=True):
        block = blocks.repeat_interleave(lengths, output_size=keys.tokens)
        slot = torch.arange(len(block), device=block.device) - starts[block]
        run_of.append(block * per_block + slot // run)
    return Runs(run, keys.number * per_block, torch.stack(run_of).view(*visits.sets, -1))


def blocks_of(lengths: Tensor, tokens: int) -> Blocks:
    """Consecutive blocks of lengths int32 [sets, blocks], over ``tokens`` places."""
    return Blocks((lengths.cumsum(-1) - lengths).int(), lengths, lengths.shape[-1], tokens)


def _lists(blocks: BlockList, tile: Tensor | None, sets: Callable[[Tensor], Tensor]) -> Lists:
    offsets, index = sets(blocks.offsets), sets(blocks.index)
    return Lists(offsets, index, None if tile is None else sets(tile), offsets.shape[-1] - 1, index.shape[-1])


def _order(layout: Layout, sets: Callable[[Tensor], Tensor]) -> Tensor | None:
    return None if layout.raster else sets(layout.order)


def _transposed(lists: Lists, columns: int) -> Lists:
    """For every key block the query blocks that visit it, ascending."""
    offsets, index = torch.zeros_like(lists.offsets[:, :1]).repeat(1, columns + 1), torch.zeros_like(lists.blocks)
    tile = None if lists.tile is None else torch.zeros_like(lists.tile)
    for i in range(len(index)):
        counts = lists.offsets[i].diff()
        visited = lists.blocks[i, : int(lists.offsets[i, -1])]
        rows = torch.arange(lists.rows, device=index.device).repeat_interleave(counts)
        by_column = visited.argsort(stable=True)
        offsets[i, 1:] = visited.bincount(minlength=columns).cumsum(0)
        index[i, : len(rows)] = rows[by_column]
        if tile is not None and lists.tile is not None:
            tile[i, : len(rows)] = lists.tile[i, by_column]
    return Lists(offsets, index, tile, columns, lists.entries)


def _seen(mask: BlockMask, sets: Sets) -> Tensor:
    """The bits of ``Pool.seen``: key blocks that a query block sees through the means of a pool, pool after pool."""
    rows, columns = mask.num_blocks
    words = -(-columns * len(mask.pools) // WORD)
    seen = torch.empty(sets.batches * sets.groups, rows, words, dtype=torch.int32, device=mask.full.index.device)
    step = max(1, CHUNK // (words * WORD))
    for batch, group, first in product(range(sets.batches), range(sets.groups), range(0, rows, step)):
        last = min(first + step, rows)
        blocks = mask.pooled_rows(batch, group, first, last)
        seen[batch * sets.groups + group, first:last] = pack_bits(blocks.transpose(0, 1).flatten(1))
    return seen


def _bits(mask: BlockMask) -> Tensor:
    """``Pool.bits``: the bit of ``_seen`` that belongs to each pooled key."""
    blocks = torch.arange(mask.key.blocks, dtype=torch.int32, device=mask.full.index.device)
    parts = [
        (blocks + pool * mask.key.blocks).repeat_interleave(mask.block_size // run)
        for pool, run in enumerate(mask.pools)
    ]
    return torch.cat(parts)
