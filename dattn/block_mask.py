"""BlockMask: which key blocks every query block visits, and the 0/1 tiles of those it visits in part."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dattn.grid import Layout, TokenGrid, text_blocks

WORD = 32  # bits in a word of a packed tile
CHUNK_PAIRS = 1 << 21  # block pairs looked at in one go while a mask is built: bounds the memory of building

# (first, last) visual query block -> bool [rows, visual key blocks]: visited whole, visited in part,
# and, for the pairs visited in part in row-major order, their tile in the table
RowRule = Callable[[int, int], tuple[Tensor, Tensor | None, Tensor | None]]


@dataclass(frozen=True, eq=False)
class BlockList:
    """Compressed rows: query block i visits key blocks ``index[offsets[i] : offsets[i + 1]]``, ascending.

    Attributes:
        offsets: int32 [batch or 1, groups or 1, query blocks + 1].
        index: int32 [batch or 1, groups or 1, entries]; entries past the last offset mean nothing.
    """

    offsets: Tensor
    index: Tensor

    def counts(self) -> Tensor:
        """int32 [batch or 1, groups or 1, query blocks]: how many key blocks each query block visits."""
        return self.offsets.diff(dim=-1)

    def rows(self, batch: int, group: int, first: int, last: int, key_blocks: int) -> Tensor:
        """bool [last - first, key_blocks]: the rows first … last - 1 written out; larger batch rows mean the last."""
        at = min(batch, len(self.offsets) - 1), min(group, self.offsets.shape[1] - 1)
        offsets = self.offsets[*at, first : last + 1].long()
        out = torch.zeros(last - first, key_blocks, dtype=torch.bool, device=offsets.device)
        row = torch.arange(last - first, device=offsets.device).repeat_interleave(offsets.diff())
        out[row, self.index[*at, offsets[0] : offsets[-1]].long()] = True
        return out

    def sums(self, weight: Tensor) -> Tensor:
        """[batch, groups, query blocks]: the sum of ``weight`` [batch or 1, groups or 1, key blocks] over each list."""
        gathered = weight.expand(*self.index.shape[:2], -1).gather(-1, self.index.long().clamp_min(0))
        sums = torch.nn.functional.pad(gathered.cumsum(-1), (1, 0))
        return sums.gather(-1, self.offsets.long()).diff(dim=-1)

    def only(self, rows: Tensor) -> tuple[BlockList, Tensor]:
        """The lists of the query blocks that ``rows``, bool [query blocks], names; those of the others are empty.

        With them comes, int64 [batch or 1, groups or 1, entries], where each entry was before.
        """
        places = torch.arange(self.index.shape[-1], device=self.index.device).expand(self.index.shape)
        row = torch.searchsorted(self.offsets.long().contiguous(), places.contiguous(), right=True) - 1
        kept = torch.nn.functional.pad(rows, (0, 1))[row.clamp_max(len(rows))]  # past the last offset: no row
        order = (~kept).byte().argsort(dim=-1, stable=True)
        offsets = torch.nn.functional.pad((self.counts() * rows).cumsum(-1), (1, 0)).int()
        order = order[..., : int(offsets[..., -1].max())]
        return BlockList(offsets, self.index.gather(-1, order)), order

    def to(self, device: torch.device | str) -> BlockList:
        """The same lists on another device."""
        return BlockList(self.offsets.to(device), self.index.to(device))


class Level(NamedTuple):
    """Key blocks that are seen through the means of every ``run`` neighbouring keys, a mean counting as often."""

    run: int
    blocks: BlockList


@dataclass(frozen=True, eq=False)
class BlockMask:
    """The block pairs that attention computes: what every pattern becomes, and all that a backend sees.

    Leading dimensions of every list and layout are [batch or 1, groups or 1]; group g of G serves the heads h
    with ⌊h·G/H⌋ = g.

    Attributes:
        query, key: the two sides' layouts; they may differ in order, lengths and number of blocks.
        full: key blocks visited whole.
        partial: key blocks visited in part.
        tile: int32 [batch or 1, groups or 1, partial entries]: each partial entry's row of ``tiles``.
        tiles: int32 [distinct tiles, block_size, ⌈block_size / 32⌉]: bit k % 32 of word k // 32 of row q says
            whether slot q of the query block sees slot k of the key block.
        block_size: slots in a block.
        tail: 0, or the run length over which the keys and values of skipped blocks are averaged.
        levels: key blocks seen through means over shorter runs, which divide ``block_size``. A pair of blocks is in one
            list at most: full, partial, that of a level, or, in none, skipped.
        passing: whether it serves a call or a few alone, so that a backend spends no time on preparing it well; it then
            has no partial blocks.
        derived: what a backend works out from the mask and keeps with it.
    """

    query: Layout
    key: Layout
    full: BlockList
    partial: BlockList
    tile: Tensor
    tiles: Tensor
    block_size: int
    tail: int = 0
    levels: tuple[Level, ...] = ()
    passing: bool = False
    derived: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def num_blocks(self) -> tuple[int, int]:
        """(query blocks, key blocks)."""
        return self.query.blocks, self.key.blocks

    @property
    def groups(self) -> int:
        """Head groups that have lists of their own."""
        return self.full.offsets.shape[1]

    @cached_property
    def density(self) -> float:
        """Visited block pairs ÷ all block pairs, the mean over groups; empty blocks do not count.

        Blocks that list keys another time count where they are visited, not among all.
        """
        starts = self.key.lengths.cumsum(-1) - self.key.lengths
        keys = ((self.key.lengths > 0) & (starts < self.query.order.shape[-1])).sum(-1).double()
        queries = (self.query.lengths > 0).sum(-1).double()
        return (self.visited / (queries * keys)).mean().item()

    @property
    def repeats(self) -> bool:
        """Whether keys may be listed several times, behind the first listing of all of them."""
        return self.key.order.shape[-1] != self.query.order.shape[-1]

    @property
    def visited(self) -> Tensor:
        """float64 [batch or 1, groups or 1]: visited block pairs."""
        return (self.full.counts().double() + self.partial.counts()).sum(-1)

    @cached_property
    def element_density(self) -> float:
        """Pairs of tokens that see each other ÷ all pairs, the mean over groups; counted, nothing is written out."""
        batch, groups = self.full.offsets.shape[:2]
        shares = [self._seen_pairs(b, g) for b in range(batch) for g in range(groups)]
        return sum(shares) / len(shares) / self.query.order.shape[-1] ** 2

    def _seen_pairs(self, batch: int, group: int) -> float:
        queries, keys = (
            side.lengths[batch * (len(side.lengths) > 1), group * (side.lengths.shape[1] > 1)].double()
            for side in (self.query, self.key)
        )
        counts, used = self.full.counts()[batch, group].long(), int(self.full.offsets[batch, group, -1])
        index = self.full.index[batch, group, :used].long()
        whole = (keys[index] * queries.repeat_interleave(counts)).sum()
        tiles = self.tile[batch, group, : int(self.partial.offsets[batch, group, -1])].long()
        return float(whole + self.unpacked_tiles().flatten(1).sum(1)[tiles].sum())

    @cached_property
    def slot_density(self) -> float:
        """What is computed ÷ dense, empty slots of ragged blocks included."""
        slots = self.visited.mean().item() * self.block_size**2
        return slots / self.query.order.shape[-1] ** 2

    @cached_property
    def tail_share(self) -> float:
        """Pooled keys that stand for blocks ÷ (queries x keys): the share of dense work of the tail and the levels."""
        seen = torch.zeros(1, 1, 1, dtype=torch.long, device=self.key.lengths.device)
        for run, blocks in self.levels:
            seen = seen + blocks.sums(self._runs(run))
        if self.tail:
            runs = self._runs(self.tail) * self.key.pooled
            seen = seen + runs.sum(-1, keepdim=True)
            for blocks in self._visited_lists():
                seen = seen - blocks.sums(runs)
        work = (seen * self.query.lengths).sum(-1).double()
        return (work / self.query.order.shape[-1] ** 2).mean().item()

    def _runs(self, run: int) -> Tensor:
        """int64 [batch or 1, groups or 1, key blocks]: runs in each block."""
        return -(-self.key.lengths.long() // run)

    def _visited_lists(self) -> list[BlockList]:
        """All lists of what is not skipped."""
        return [self.full, self.partial, *(level.blocks for level in self.levels)]

    @property
    def pools(self) -> list[int]:
        """Run lengths of all that is seen through means: the levels, then the tail."""
        return [level.run for level in self.levels] + [self.tail] * bool(self.tail)

    def pooled_rows(self, batch: int, group: int, first: int, last: int) -> Tensor:
        """bool [pools, last - first, key blocks]: what query blocks first … last - 1 see through means of ``pools``.

        Larger batch rows and groups mean the last.
        """
        rows = lambda blocks: blocks.rows(batch, group, first, last, self.key.blocks)
        seen = [rows(level.blocks) for level in self.levels]
        if self.tail:
            visited = [rows(self.full), *seen]
            if self.partial.index.shape[-1]:
                visited.append(rows(self.partial))
            seen.append(self.key.pooled & ~torch.stack(visited).any(0))
        nothing = torch.zeros(0, last - first, self.key.blocks, dtype=torch.bool, device=self.full.index.device)
        return torch.stack(seen) if seen else nothing

    @property
    def is_all(self) -> bool:
        """Whether every query sees every key: the mask then saves nothing."""
        return self.partial.index.shape[-1] == 0 and self.density == 1.0

    def unpacked_tiles(self) -> Tensor:
        """bool [distinct tiles, block_size, block_size]: the tile table written out."""
        bits = torch.arange(WORD, device=self.tiles.device, dtype=torch.int32)
        return ((self.tiles[..., None] >> bits) & 1).bool().flatten(2)[..., : self.block_size]

    def to_dense(self) -> Tensor:
        """bool [tokens, tokens], or with leading groups (and batch) where there are several: an oracle.

        Keys that are seen through means alone are not seen.

        Element-wise, raster order, text included; memory grows with the square of the tokens.
        """
        batch, groups = self.full.offsets.shape[:2]
        dense = torch.stack([torch.stack([self._dense(b, g) for g in range(groups)]) for b in range(batch)])
        return dense[0, 0] if batch == groups == 1 else dense[0] if batch == 1 else dense

    def _dense(self, batch: int, group: int) -> Tensor:
        tokens, size = self.query.order.shape[-1], self.block_size
        canvas = torch.zeros(tokens + 1, tokens + 1, dtype=torch.bool, device=self.tiles.device)
        queries, keys = (side.slots(batch, group, self.block_size) for side in (self.query, self.key))
        tiles = None
        for blocks, partial in ((self.full, False), (self.partial, True)):
            offsets, index = blocks.offsets[batch, group].tolist(), blocks.index[batch, group].tolist()
            tiles = self.unpacked_tiles() if partial and index else None
            for row in range(self.query.blocks):
                for entry in range(offsets[row], offsets[row + 1]):
                    part = True if tiles is None else tiles[self.tile[batch, group, entry]]
                    canvas[queries[row].view(size, 1), keys[index[entry]]] = torch.as_tensor(part)
        return canvas[:-1, :-1]  # empty slots (-1) wrote into the last row and column

    def query_blocks(self, group: int = 0, row: int = 0) -> Tensor:
        """int64 [tokens], raster order: the query block of every token, for a head group and a row of the batch."""
        order, lengths = (
            t[min(row, len(t) - 1), min(group, t.shape[1] - 1)] for t in (self.query.order, self.query.lengths)
        )
        block = torch.empty_like(order)
        block[order] = torch.arange(len(lengths), device=order.device).repeat_interleave(lengths.long())
        return block

    def neighbours(self, token: int, group: int = 0) -> Tensor:
        """bool [tokens], raster order: the keys that one query token (a raster position) sees, means apart.

        Raises:
            ValueError: a token outside the sequence.
        """
        tokens = self.query.order.shape[-1]
        if not 0 <= token < tokens:
            raise ValueError(f"token {token}: the sequence has {tokens} tokens, 0 to {tokens - 1}")
        row, slot = (self.query.slots(0, group, self.block_size) == token).nonzero()[0].tolist()
        keys = self.key.slots(0, group, self.block_size)
        seen = torch.zeros(tokens + 1, dtype=torch.bool, device=keys.device)
        seen[keys[self.full.rows(0, group, row, row + 1, self.key.blocks)[0]]] = True
        first, last = self.partial.offsets[0, group, row : row + 2].tolist()
        tiles = self.unpacked_tiles()
        for entry in range(first, last):
            seen[keys[self.partial.index[0, group, entry], tiles[self.tile[0, group, entry], slot]]] = True
        return seen[:-1]

    def plot(self, path: str | None = None) -> Any:
        """A picture of the block grid; saved where ``path`` says, and returned as a matplotlib figure."""
        from dattn.plot import plot_blocks

        return plot_blocks(self, path)

    def of_groups(self, groups: list[int]) -> BlockMask:
        """A mask whose groups are these of this one, in this order."""
        pick = lambda t: t if t.shape[1] == 1 else t[:, groups]
        lists = lambda blocks: BlockList(pick(blocks.offsets), pick(blocks.index))
        side = lambda layout: replace(layout, order=pick(layout.order), lengths=pick(layout.lengths))
        levels = tuple(Level(run, lists(blocks)) for run, blocks in self.levels)
        parts = {"full": lists(self.full), "partial": lists(self.partial), "tile": pick(self.tile), "levels": levels}
        return replace(self, query=side(self.query), key=side(self.key), **parts)

    def only(self, rows: Tensor) -> BlockMask:
        """The same for the query blocks that ``rows``, bool [query blocks], names; the others visit no block."""
        full, _ = self.full.only(rows)
        partial, order = self.partial.only(rows)
        tile = self.tile.expand(order.shape[0], order.shape[1], -1).gather(-1, order)
        levels = tuple(Level(run, blocks.only(rows)[0]) for run, blocks in self.levels)
        return replace(self, full=full, partial=partial, tile=tile, levels=levels)

    def to(self, device: torch.device | str) -> BlockMask:
        """The same mask on another device."""
        moved = {n: getattr(self, n).to(device) for n in ("query", "key", "full", "partial", "tile", "tiles")}
        levels = tuple(Level(run, blocks.to(device)) for run, blocks in self.levels)
        return replace(self, **moved, levels=levels)


def build(
    grid: TokenGrid,
    layout: Layout,
    rule: RowRule,
    block_size: int,
    tiles: Tensor | None = None,
    tail: bool | int = False,
) -> BlockMask:
    """A mask with the same layout for queries and keys, shared by all heads, built chunk by chunk of rows.

    Args:
        grid: the token grid; its text rows and columns are kept whole.
        layout: blocks of both sides, text included.
        rule: what each visual query block visits, see ``RowRule``.
        block_size: slots in a block.
        tiles: bool [distinct, block_size, block_size], the tiles that partial pairs point to.
        tail: as in the patterns: False, True (one pooled key per block) or a run length.

    Raises:
        ValueError: a tail that does not fit the block.
    """
    before, after = text_blocks(grid, block_size)
    counts: tuple[list[Tensor], list[Tensor]] = ([], [])
    index: tuple[list[Tensor], list[Tensor]] = ([], [])
    table: list[Tensor] = []
    for kind, rows in _rows(rule, before, layout.blocks - before - after, after):
        if kind == 2:
            table.append(rows)
            continue
        counts[kind].append(rows.sum(-1))
        index[kind].append(rows.nonzero()[:, 1].int())
    full, partial = (_compress(c, i) for c, i in zip(counts, index, strict=True))
    tile = torch.cat(table).int() if table else torch.zeros(0, dtype=torch.int32)
    packed = pack_bits(torch.zeros(0, block_size, block_size) if tiles is None else tiles)
    run = tail_run(tail, block_size)
    return BlockMask(layout, layout, full, partial, tile[None, None], packed, block_size, run)


def _rows(rule: RowRule, before: int, visual: int, after: int) -> Iterator[tuple[int, Tensor]]:
    """Yields (0, full rows), (1, partial rows) and (2, tile numbers), text rows and columns added."""
    blocks = before + visual + after
    step = max(1, CHUNK_PAIRS // blocks)
    chunks = [(a, min(a + step, visual)) for a in range(0, visual, step)]
    text = lambda rows: (torch.ones(rows, blocks, dtype=torch.bool), torch.zeros(rows, blocks, dtype=torch.bool))
    yield from enumerate(text(before))
    for first, last in chunks:
        whole, part, tile = rule(first, last)
        yield 0, torch.nn.functional.pad(whole, (before, after), value=True)
        part = torch.zeros_like(whole) if part is None else part
        yield 1, torch.nn.functional.pad(part, (before, after), value=False)
        if tile is not None:
            yield 2, tile
    yield from enumerate(text(after))


def _compress(counts: list[Tensor], index: list[Tensor]) -> BlockList:
    offsets = torch.nn.functional.pad(torch.cat(counts).cumsum(0), (1, 0)).int()
    return BlockList(offsets[None, None], torch.cat(index)[None, None])


def pack_bits(bits: Tensor) -> Tensor:
    """int32 [..., ⌈n / 32⌉] from bool [..., n]: bit k % 32 of word k // 32, the rest 0."""
    padded = torch.nn.functional.pad(bits.long(), (0, -bits.shape[-1] % WORD))
    words = (padded.unflatten(-1, (-1, WORD)) << torch.arange(WORD, device=bits.device)).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def tail_run(tail: bool | int, block_size: int) -> int:
    """The run length that ``tail`` means for blocks of ``block_size``: 0 for no tail.

    Raises:
        ValueError: a run that is no divisor of the block, or below 16.
    """
    if tail is False:
        return 0
    run = block_size if tail is True else tail
    if run < min(16, block_size) or block_size % run:
        raise ValueError(f"tail={tail!r}: a run is 16 tokens or more and divides the block size {block_size}")
    return run


@dataclass
class MaskCache:
    """Masks, and what operators derive from a grid, of the grids met lately: at most ``size`` of them."""

    size: int = 16
    _kept: OrderedDict[Hashable, Any] = field(default_factory=OrderedDict, repr=False)

    def get(self, pattern: Any, grid: TokenGrid, device: torch.device | str) -> BlockMask:
        """A static pattern's mask of this grid on this device, built on first use."""
        return self.keep((pattern, grid, torch.device(device)), lambda: pattern.mask(grid).to(device))

    def keep(self, key: Hashable, build: Callable[[], Any]) -> Any:
        """What ``build`` gives, built when ``key`` is met first."""
        if key not in self._kept:
            self._kept[key] = build()
            if len(self._kept) > self.size:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]
