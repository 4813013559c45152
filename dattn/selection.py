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
from dattn.on_cpu import falling
from dattn.spec import Named, check_within

CHUNK = 1 << 16  # entries of a row that are summed at a time
ACROSS = ("row", "head", "layer")
OWN = "lists of our own"  # a note with a mask, see ``BlockMask.derived``; masks that are made from it have none


def top_k(scores: Tensor, count: int) -> Tensor:
    """bool like ``scores``: in every row the ``count`` best blocks, or all where there are fewer.

    Raises:
        ValueError: ``count`` below 1.
    """
    if count < 1:
        raise ValueError(f"top_k keeps {count} blocks: it keeps 1 or more, or rows would be empty")
    ranked = falling(scores)
    return _best(scores, ranked, torch.full_like(ranked[..., :1], min(count, scores.shape[-1]), dtype=torch.int64))


def top_p(scores: Tensor, share: float) -> Tensor:
    """bool like ``scores``: in every row the fewest best blocks that hold ``share`` of the row's sum.

    Scores are 0 or more; a row of zeros keeps its first block. 1.0 keeps every block above 0.

    Raises:
        ValueError: ``share`` outside of (0, 1].
    """
    if not 0 < share <= 1 or math.isnan(share):
        raise ValueError(f"top_p keeps a share of {share}: it is above 0 and at most 1")
    ranked = falling(scores)
    total = _sum(ranked, torch.float64)
    wanted = share * total if share < 1 else torch.full_like(total, torch.inf)
    count, held = torch.zeros_like(total, dtype=torch.int64), torch.zeros_like(total)
    for number, part in enumerate(ranked.split(CHUNK, -1)):
        if number and not (held < wanted).any():
            break
        before = part.cumsum(-1, dtype=torch.float64).sub_(part).add_(held)  # what the better blocks hold
        count += ((before < wanted) & (part > 0)).sum(-1, keepdim=True)
        held = before[..., -1:] + part[..., -1:]
    return _best(scores, ranked, count.clamp_min_(1))


def _best(scores: Tensor, ranked: Tensor, count: Tensor) -> Tensor:
    """bool like ``scores``: the ``count``, int64 [..., 1], best of every row, and what is no number.

    ``ranked`` are the scores, the largest first.
    """
    blocks = scores.shape[-1]
    least, next_one = ranked.gather(-1, count - 1), ranked.gather(-1, count.clamp_max(blocks - 1))
    if scores.device.type == "cpu" and ((next_one < least) | (count == blocks)).all():  # none is cut between equal ones
        return ~(scores < least)
    kept = ~(scores <= least)
    spare = count - _sum(kept, torch.int64)
    for some, own in zip(scores.split(CHUNK, -1), kept.split(CHUNK, -1), strict=True):
        ties = some == least
        own |= ties & (ties.cumsum(-1) <= spare)
        spare -= ties.sum(-1, keepdim=True)
    return kept


def _sum(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """[..., 1]: the sum of every row, some entries at a time, as PyTorch first writes them all out in that dtype."""
    return torch.stack([part.sum(-1, keepdim=True, dtype=dtype) for part in rows.split(CHUNK, -1)]).sum(0)


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
    mask = BlockMask(query, key, full, empty, empty.index, tiles, block_size, tail, levels, passing=True)
    mask.derived[OWN] = True  # looking through its lists, as of masks by others, would cost more than it is worth
    return mask


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
        check_within("floor", self.floor, 0, 1)

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
        raise ValueError(f"{name}={value!r}: give a share above 0 and at most 1")


def check_amount(name: str, value: int | float) -> None:
    """Raise ``ValueError`` unless ``value`` is a count (an int) or a share (a float)."""
    if not (type(value) is int and value >= 1) and not (isinstance(value, float) and 0 < value <= 1):
        raise ValueError(f"{name}={value!r}: give a count of 1 or more, or a share above 0 and at most 1.0")


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
        check_amount("amount", self.amount)

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
