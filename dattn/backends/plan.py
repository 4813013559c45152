"""How the torch backend walks a block mask: calls of equal shape, rows shared where their lists agree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from dattn.backends.pooling import run_slots
from dattn.block_mask import BlockMask

Kind = Literal["whole", "part", "means"]

ROWS = 1024  # queries that may share one call where their lists agree: short query tiles are slow on a CPU
MASKED_ROWS = 512  # the same where blocks are seen in part: a call's mask is a matrix, rows x keys
SHARED_BLOCKS = 4  # key blocks that neighbouring query blocks must have in common to share a call


@dataclass(frozen=True, eq=False)
class Call:
    """Some query blocks against some key blocks.

    Attributes:
        turn: 0 for the first call of these queries, whose result is merged with nothing; then 1, 2, …
        kind: key blocks seen whole, in part, or through their pooled keys.
        queries: int64 [query blocks].
        keys: int64 [key blocks].
        tiles: int64 [query blocks, key blocks], the mask tile of every pair of blocks, for kind "part".
        pool: which of ``BlockMask.pools``, for kind "means".
    """

    turn: int
    kind: Kind
    queries: Tensor
    keys: Tensor
    tiles: Tensor | None = None
    pool: int = 0


@dataclass(frozen=True, eq=False)
class Piece:
    """Calls of the same turn, kind, pool, shape and tiles: ``queries`` and ``keys`` are int64 [calls, blocks]."""

    turn: int
    kind: Kind
    queries: Tensor
    keys: Tensor
    tiles: Tensor | None
    pool: int

    @classmethod
    def of(cls, calls: list[Call], device: torch.device) -> Piece:
        """Stack calls that are alike."""
        queries, keys = (
            torch.stack(blocks).to(device) for blocks in ([c.queries for c in calls], [c.keys for c in calls])
        )
        first = calls[0]
        tiles = None if first.tiles is None else first.tiles.to(device)
        return cls(first.turn, first.kind, queries, keys, tiles, first.pool)


@dataclass(frozen=True, eq=False)
class Plan:
    """The pieces of one (batch, group) of a mask, and the raster positions of all slots, -1 where empty.

    Attributes:
        pieces: in the order in which they run.
        queries, keys: int64 [blocks, block_size].
        runs: int64 [key blocks, runs, run] for each of ``BlockMask.pools``.
        complete: whether every query block is in some first call, so that outputs need not start from 0.
    """

    pieces: list[Piece]
    queries: Tensor
    keys: Tensor
    runs: list[Tensor]
    complete: bool


def plan_for(mask: BlockMask, batch: int, group: int) -> Plan:
    """The plan of one (batch, group), worked out once per mask."""
    at = (min(batch, mask.full.offsets.shape[0] - 1), group)
    if at not in mask.derived:
        mask.derived[at] = _plan(mask, *at)
    return mask.derived[at]


def same_groups(mask: BlockMask, batch: int) -> list[list[int]]:
    """The head groups of a batch row, those together that have the same lists and layouts; found once per mask."""
    key = "same groups", min(batch, mask.full.offsets.shape[0] - 1)
    if key not in mask.derived:
        found: dict[Hashable, list[int]] = {}
        alone = mask.groups == 1 or mask.passing  # lists made for a single call differ from head to head
        for group in range(mask.groups):
            found.setdefault(group if alone else _content(mask, key[1], group), []).append(group)
        mask.derived[key] = list(found.values())
    return mask.derived[key]


def _content(mask: BlockMask, batch: int, group: int) -> Hashable:
    """All that one (batch, group) of a mask says."""
    at = lambda t: t[min(batch, t.shape[0] - 1), min(group, t.shape[1] - 1)].cpu()
    used = lambda blocks, t: at(t)[: int(at(blocks.offsets)[-1])]
    sides = [at(part) for side in (mask.query, mask.key) for part in (side.order, side.lengths)]
    lists = [part for b in (mask.full, mask.partial) for part in (at(b.offsets), used(b, b.index))]
    if "tile kinds" not in mask.derived:  # equal tiles may stand in the table more than once
        mask.derived["tile kinds"] = mask.tiles.unique(dim=0, return_inverse=True)[1].cpu()
    tiles = mask.derived["tile kinds"][used(mask.partial, mask.tile).long()]
    return tuple(part.numpy().tobytes() for part in (*sides, *lists, tiles))


def _lengths(mask: BlockMask, batch: int, group: int) -> list[Tensor]:
    """int32 [blocks] of both sides, on the CPU."""
    sides = (mask.query.lengths, mask.key.lengths)
    return [t[min(batch, t.shape[0] - 1), min(group, t.shape[1] - 1)].cpu() for t in sides]


def _plan(mask: BlockMask, batch: int, group: int) -> Plan:
    queries, keys = (side.slots(batch, group, mask.block_size) for side in (mask.query, mask.key))
    runs = [run_slots(mask, batch, group, run) for run in mask.pools]
    lengths = _lengths(mask, batch, group)
    pieces = list(_passing(mask, batch, group) if mask.passing else _shared_pieces(mask, batch, group))
    pieces.sort(key=lambda piece: piece.turn)
    complete = sum(piece.queries.numel() for piece in pieces if piece.turn == 0) == int((lengths[0] > 0).sum())
    return Plan(pieces, queries, keys, runs, complete)


def _passing(mask: BlockMask, batch: int, group: int) -> Iterator[Piece]:
    """Every query block a call of its own, those of equally many keys together: quick to find."""
    blocks, keys = mask.num_blocks
    lengths = _lengths(mask, batch, group)
    there = (lengths[0] > 0)[:, None] & (lengths[1] > 0)
    yield from _by_row(mask.full.rows(batch, group, 0, blocks, keys).cpu() & there, lengths, mask, 0, "whole")
    for pool, seen in enumerate(mask.pooled_rows(batch, group, 0, blocks).cpu()):
        yield from _by_row(seen & there, lengths, mask, 1 + pool, "means", pool)


def _by_row(
    seen: Tensor, lengths: list[Tensor], mask: BlockMask, turn: int, kind: Kind, pool: int = 0
) -> Iterator[Piece]:
    """The pieces of bool [query blocks, key blocks]: rows of equally many blocks and tokens."""
    index, ends = _numbers(seen.flatten()) % seen.shape[1], seen.sum(1).cumsum(0)
    shape = torch.stack([seen.sum(1), (seen * lengths[1]).sum(1), lengths[0].long()], 1)
    for count, *tokens in shape.unique(dim=0).tolist():
        if count:
            rows = _numbers((shape == torch.tensor([count, *tokens])).all(1))
            columns = index[ends[rows, None] - count + torch.arange(count)]
            device = mask.full.index.device
            yield Piece(turn, kind, rows[:, None].to(device), columns.to(device), None, pool)


def _shared_pieces(mask: BlockMask, batch: int, group: int) -> Iterator[Piece]:
    """Rows that see the same share a call, calls that are alike a piece: slower to find, faster to run."""
    lengths = _lengths(mask, batch, group)
    device = mask.full.index.device
    alike: dict[tuple[object, ...], list[Call]] = defaultdict(list)
    for call in _calls(mask, batch, group):
        tokens = (int(n[i].sum()) for n, i in zip(lengths, (call.queries, call.keys), strict=True))
        tiles = () if call.tiles is None else tuple(call.tiles.flatten().tolist())
        alike[call.turn, call.kind, call.pool, len(call.queries), len(call.keys), *tokens, tiles].append(call)
    yield from (Piece.of(calls, device) for calls in alike.values())


def _calls(mask: BlockMask, batch: int, group: int) -> Iterator[Call]:
    """What every query block visits, as calls; ``ROWS`` queries at a time look for what they share."""
    step = max(1, ROWS // mask.block_size)
    blocks, keys = mask.num_blocks
    offsets, index, tile = (t[batch, group].long().cpu() for t in (mask.partial.offsets, mask.partial.index, mask.tile))
    there, keys_there = (lengths > 0 for lengths in _lengths(mask, batch, group))
    for first in range(0, blocks, step):
        last = min(first + step, blocks)
        whole = mask.full.rows(batch, group, first, last, keys).cpu()
        means = mask.pooled_rows(batch, group, first, last).cpu()
        turns = [0] * (last - first)
        for rows, found in _shared(whole, 0, last - first):
            yield Call(turns[rows.start], "whole", torch.arange(first + rows.start, first + rows.stop), found)
            turns[rows] = [turns[rows.start] + 1] * (rows.stop - rows.start)
        lists = [index[offsets[row] : offsets[row + 1]].tolist() for row in range(first, last)]
        for rows in _runs(list(zip(turns, lists, strict=True)), max(1, MASKED_ROWS // mask.block_size)):
            if lists[rows.start]:
                queries = torch.arange(first + rows.start, first + rows.stop)
                tiles = tile[offsets[queries[0]] : offsets[queries[-1] + 1]].view(len(queries), -1)
                yield Call(turns[rows.start], "part", queries, torch.tensor(lists[rows.start]), tiles)
                turns[rows] = [turns[rows.start] + 1] * len(queries)
        for row, pool in product(_numbers(there[first:last]).tolist(), range(len(means))):
            if len(pooled := _numbers(means[pool][row] & keys_there)):
                yield Call(turns[row], "means", torch.tensor([first + row]), pooled, pool=pool)
                turns[row] += 1


def _shared(whole: Tensor, first: int, last: int) -> Iterator[tuple[slice, Tensor]]:
    """Yields (rows, key blocks): what all rows first … last - 1 see is one call, the rest is left to either half."""
    rows = whole[first:last]
    common = rows.all(0)
    alone = last - first == 1
    if common.sum() >= (1 if alone else SHARED_BLOCKS):
        yield slice(first, last), _numbers(common)
        whole[first:last] = rows & ~common
    if not alone:
        middle = (first + last + 1) // 2
        yield from _shared(whole, first, middle)
        yield from _shared(whole, middle, last)


def _runs(items: Sequence[object], longest: int) -> Iterator[slice]:
    """Yields the slices of neighbouring items that are equal, at most ``longest`` each."""
    start = 0
    for i in range(1, len(items) + 1):
        if i == len(items) or i - start == longest or items[i] != items[start]:
            yield slice(start, i)
            start = i


def _numbers(flags: Tensor) -> Tensor:
    return flags.nonzero().flatten()
