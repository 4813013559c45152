"""Which key blocks a query block visits, chosen from block scores; shared by every pattern that looks at q and k.

Scores are [batch or 1, groups or 1, query blocks, key blocks], larger is better; ties go to the lower block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from dattn.block_mask import BlockList, BlockMask, Level, pack_bits
from dattn.grid import Layout
from dattn.spec import Named

LONG = 1 << 16  # entries of a row up to which it is sorted
BINS, ROUNDS, CHUNK = 1 << 12, 3, 1 << 22
ACROSS = ("row", "head", "layer")


def top_k(scores: Tensor, count: int) -> Tensor:
    """bool like ``scores``: in every row the ``count`` best blocks, or all where there are fewer.

    Raises:
        ValueError: ``count`` below 1.
    """
    if count < 1:
        raise ValueError(f"top_k keeps {count} blocks: it keeps 1 or more, or rows would be empty")
    best = scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True)


def top_p(scores: Tensor, share: float) -> Tensor:
    """bool like ``scores``: in every row the fewest best blocks that hold ``share`` of the row's sum.

    Scores are 0 or more; a row of zeros keeps its first block. 1.0 keeps every block above 0. In rows of more than
    ``LONG`` entries all that are as large as the last one kept are kept too.

    Raises:
        ValueError: ``share`` outside of (0, 1].
    """
    if not 0 < share <= 1 or math.isnan(share):
        raise ValueError(f"top_p keeps a share of {share}: it is above 0 and at most 1")
    if scores.shape[-1] > LONG and share < 1:
        rows = scores.flatten(0, -2)
        kept = torch.stack([row >= max(_least_kept(row, share), torch.finfo(row.dtype).tiny) for row in rows])
        return kept.scatter_(-1, rows.argmax(-1, keepdim=True), True).view_as(scores)
    ranked, order = scores.sort(dim=-1, descending=True, stable=True)
    before = ranked.double().cumsum(-1) - ranked  # what the better blocks hold
    wanted = share * ranked.double().sum(-1, keepdim=True) if share < 1 else torch.inf
    kept = (before < wanted) & (ranked > 0)
    kept[..., 0] = True
    return torch.zeros_like(kept).scatter_(-1, order, kept)


def _least_kept(row: Tensor, share: float) -> float:
    """The largest bound at which the entries of 0 or more that reach it hold ``share`` of the sum.

    By sums over ever finer bins, for rows that would take long and much memory to sort.
    """
    low, high, above, inside = 0.0, float(row.max()), 0.0, row
    top = high
    wanted = share * float(row.sum(dtype=torch.float64))
    for _ in range(ROUNDS):
        width = (high - low) / BINS
        if low + width == low:
            break
        mass = torch.zeros(BINS, dtype=torch.float64, device=row.device)
        for part in map(Tensor.double, inside.split(CHUNK)):
            mass += torch.bincount(((part - low) / width).long().clamp_max_(BINS - 1), weights=part, minlength=BINS)
        held = mass.flip(0).cumsum(0) + above
        place = min(int((held < wanted).sum()), BINS - 1)
        above = float(held[place - 1]) if place else above
        low += (BINS - 1 - place) * width
        high = top if place == 0 and high == top else low + width
        inside = torch.cat([_between(part, low, high, top) for part in inside.split(CHUNK)])
    return low


def _between(part: Tensor, low: float, high: float, top: float) -> Tensor:
    """The entries from ``low`` to below ``high``, or to ``top`` itself."""
    exact = part.double()
    return part[(exact >= low) if high == top else (exact >= low) & (exact < high)]


def to_lists(kept: Tensor) -> BlockList:
    """The lists of bool [batch, groups, query blocks, key blocks]; rows of the longest set's length."""
    offsets = pad(kept.sum(-1).cumsum(-1), (1, 0))
    index = kept.new_zeros(*kept.shape[:2], int(offsets[..., -1].max()), dtype=torch.int32)
    used = torch.arange(index.shape[-1], device=kept.device) < offsets[..., -1:]
    index[used] = torch.arange(kept.shape[-1], dtype=torch.int32, device=kept.device).expand(kept.shape)[kept]
    return BlockList(offsets.int(), index)


def whole_blocks(
    query: Layout, key: Layout, full: BlockList, block_size: int, tail: int = 0, levels: tuple[Level, ...] = ()
) -> BlockMask:
    """A mask of blocks that are visited whole or not at all, made for a call or a few."""
    empty = BlockList(torch.zeros_like(full.offsets), full.index[..., :0])
    tiles = pack_bits(torch.zeros(0, block_size, block_size, dtype=torch.bool, device=full.index.device))
    return BlockMask(query, key, full, empty, empty.index, tiles, block_size, tail, levels, passing=True)


@dataclass(frozen=True)
class Select(Named):
    """Base of the ways to choose blocks.

    Args:
        across: who competes for what is kept: the blocks of a "row", of all rows of a "head", or of all heads of the
            "layer", so that those which need more get more. Samples of a batch never do.
        floor: share of the blocks that every row keeps at least, its best ones.

    Raises:
        ValueError: a field outside these bounds.
    """

    across: str = field(default="row", kw_only=True)
    floor: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        if self.across not in ACROSS:
            raise ValueError(f"across={self.across!r}: choose one of {', '.join(ACROSS)}")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor={self.floor!r}: a share of the blocks, from 0 to 1")

    @property
    def fills_rows(self) -> bool:
        """Whether ``chosen`` keeps one block at least."""
        return True

    def chosen(self, scores: Tensor) -> Tensor:
        """bool like ``scores`` [..., blocks], in each row of which blocks compete."""
        raise NotImplementedError

    def expected(self) -> float:
        """Density before there are any scores; 1 where they decide it."""
        return 1.0

    def kept(self, scores: Tensor) -> Tensor:
        """bool like ``scores``, [batch, heads, query blocks, key blocks]; larger is better, ties go to the lower."""
        competing = scores.flatten({"row": 3, "head": 2, "layer": 1}[self.across])
        kept = self.chosen(competing).view_as(scores)
        least = max(1, math.ceil(self.floor * scores.shape[-1]))  # no row is empty
        return kept if least == 1 and self.across == "row" and self.fills_rows else kept | top_k(scores, least)


def check_share(name: str, value: float) -> None:
    """Raise ``ValueError`` unless ``value`` is above 0 and at most 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ValueError(f"{name}={value!r}: a share, above 0 and at most 1")


@dataclass(frozen=True)
class TopK(Select):
    """The best blocks, so many of those that compete.

    Args:
        amount: an int is a count, a float in (0, 1] a share, rounded up.

    Raises:
        ValueError: neither of them.
    """

    amount: int | float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        count = type(self.amount) is int and self.amount >= 1
        if not count and not (isinstance(self.amount, float) and 0 < self.amount <= 1):
            raise ValueError(f"amount={self.amount!r}: a count of 1 or more, or a share above 0 and at most 1.0")

    def chosen(self, scores: Tensor) -> Tensor:
        """See ``Select.chosen``."""
        if isinstance(self.amount, int):
            return top_k(scores, self.amount)
        return top_k(scores, math.ceil(self.amount * scores.shape[-1] - 1e-9))

    def expected(self) -> float:
        """The share."""
        return 1.0 if isinstance(self.amount, int) else max(self.amount, self.floor)


@dataclass(frozen=True)
class TopP(Select):
    """The fewest best blocks that hold ``share`` of all that compete.

    Raises:
        ValueError: a share that is not in (0, 1].
    """

    share: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("share", self.share)

    def chosen(self, scores: Tensor) -> Tensor:
        """See ``Select.chosen``."""
        return top_p(scores, self.share)


@dataclass(frozen=True)
class Threshold(Select):
    """Every block whose score is at least ``least``, and the best one.

    Raises:
        ValueError: a threshold that is not in (0, 1].
    """

    least: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("least", self.least)

    @property
    def fills_rows(self) -> bool:
        """False: a whole row may lie below."""
        return False

    def chosen(self, scores: Tensor) -> Tensor:
        """See ``Select.chosen``."""
        return scores >= self.least


SELECTS: dict[str, type[Select]] = {select.__name__: select for select in (TopK, TopP, Threshold)}
