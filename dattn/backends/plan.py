"""How the torch backend walks a block mask: calls of equal shape, rows shared where their lists agree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dattn.backends.pooling import run_slots
from dattn.block_mask import BlockMask

Kind = Literal["whole", "part", "tail"]

ROWS = 1024  # queries that may share one call where their lists agree: short query tiles are slow on a CPU
SHARED_BLOCKS = 4  # key blocks that neighbouring query blocks must have in common to share a call


@dataclass(frozen=True, eq=False)
class Piece:
    """Several calls of the same shape: each some query blocks against some key blocks.

    Attributes:
        kind: key blocks seen whole, in part, or through their pooled keys.
        queries: int64 [calls, query blocks].
        keys: int64 [calls, key blocks].
        tiles: int64 [calls, key blocks], the mask tile of every key block, for kind "part".
        fresh: these queries have no result yet, so there is nothing to merge with.
    """

    kind: Kind
    queries: Tensor
    keys: Tensor
    tiles: Tensor | None
    fresh: bool


@dataclass(frozen=True, eq=False)
class Plan:
    """The pieces of one (batch, group) of a mask, and the raster positions of all slots, -1 where empty.

    Attributes:
        pieces: in the order in which they run.
        queries, keys: int64 [blocks, block_size].
        runs: int64 [key blocks, runs, run] for the tail, or None.
    """

    pieces: list[Piece]
    queries: Tensor
    keys: Tensor
    runs: Tensor | None


def plan_for(mask: BlockMask, batch: int, group: int) -> Plan:
    """The plan of one (batch, group), worked out once per mask."""
    at = (min(batch, mask.full.offsets.shape[0] - 1), group)
    if at not in mask.derived:
        mask.derived[at] = _plan(mask, *at)
    return mask.derived[at]


def _plan(mask: BlockMask, batch: int, group: int) -> Plan:
    calls: dict[tuple[object, ...], list[tuple[Tensor, Tensor, Tensor | None]]] = defaultdict(list)
    sides = [
        side.slots(min(batch, side.order.shape[0] - 1), min(group, side.order.shape[1] - 1), mask.block_size)
        for side in (mask.query, mask.key)
    ]
    lengths = [(slots >= 0).sum(-1).cpu() for slots in sides]
    for order, (kind, fresh, queries, keys, tiles) in _calls(mask, batch, group):
        tokens = [int(n[i].sum()) for n, i in zip(lengths, (queries, keys), strict=True)]
        calls[order, kind, fresh, len(queries), len(keys), *tokens].append((queries, keys, tiles))
    pieces = [_piece(key, calls[key], sides[0].device) for key in sorted(calls, key=lambda k: k[0])]  # type: ignore[arg-type,return-value]
    return Plan(pieces, *sides, run_slots(mask, batch, group) if mask.tail else None)


def _piece(key: tuple[object, ...], calls: list[tuple[Tensor, Tensor, Tensor | None]], device: torch.device) -> Piece:
    queries, keys = (torch.stack([c[i] for c in calls]).to(device) for i in (0, 1))  # type: ignore[misc]
    tiles = None if calls[0][2] is None else torch.stack([c[2] for c in calls if c[2] is not None]).to(device)
    return Piece(key[1], queries, keys, tiles, bool(key[2]))  # type: ignore[arg-type]


Call = tuple[Kind, bool, Tensor, Tensor, Tensor | None]


def _calls(mask: BlockMask, batch: int, group: int) -> Iterator[tuple[int, Call]]:
    """Yields (pass, call): a query block's calls in different passes are merged, the first is fresh."""
    step = max(1, ROWS // mask.block_size)
    blocks, keys = mask.num_blocks
    partial = (t[batch, group].cpu() for t in (mask.partial.offsets, mask.partial.index, mask.tile))
    offsets, index, tile = (t.long() for t in partial)
    for first in range(0, blocks, step):
        last = min(first + step, blocks)
        whole, part = (b.rows(batch, group, first, last, keys).cpu() for b in (mask.full, mask.partial))
        skipped = ~(whole | part) & mask.key.pooled.cpu() if mask.tail else torch.zeros_like(whole)
        passes = torch.zeros(last - first, dtype=torch.int64)
        for rows, found in _shared(whole, 0, last - first):
            number = int(passes[rows.start])
            yield number, ("whole", number == 0, torch.arange(first + rows.start, first + rows.stop), found, None)
            passes[rows] += 1
        for row in range(last - first):
            entries = slice(offsets[first + row], offsets[first + row + 1])
            rest: tuple[tuple[Kind, Tensor, Tensor | None], ...] = (
                ("part", index[entries], tile[entries]),
                ("tail", _numbers(skipped[row]), None),
            )
            for kind, found, tiles in rest:
                if len(found):
                    number = int(passes[row])
                    yield number, (kind, number == 0, torch.tensor([first + row]), found, tiles)
                    passes[row] += 1


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


def _numbers(flags: Tensor) -> Tensor:
    return flags.nonzero().flatten()
