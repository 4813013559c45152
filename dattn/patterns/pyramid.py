"""Pyramid: the less a block of keys matters, the coarser it is seen, and what matters least is left out.

Pyramid Sparse Attention (Li et al., arXiv 2512.04025). The blocks of every row are ranked by their scores and cut into
bands: the first is seen whole, the next ones through the means of every 2, 4 and 8 neighbouring keys and values along
the order, the rest not at all. The mean of n keys stands for n of them, so ln n is added to its logit:

    softmax over  { q·k_j / √d : j seen whole }  and  { q·k̄_r / √d + ln n_r : runs r of blocks seen through means }

A GPU computes means 64 at a time where one of them is seen, so that scattered blocks seen through long runs cost more
than their share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dattn.block_mask import BlockMask, MaskCache, tail_run
from dattn.grid import TokenGrid
from dattn.orders import Curve, Order
from dattn.patterns.base import as_tuple
from dattn.patterns.dynamic import Dynamic, Given
from dattn.patterns.selected import check_block, check_keep, sides_of
from dattn.reuse import for_steps, held_by
from dattn.runs import runs
from dattn.scores.base import Score, Sides
from dattn.scores.sampled import Sampled
from dattn.spec import State, check_kind, check_within, together

BY = ("weight", "blocks")


@dataclass(frozen=True)
class Pyramid(Dynamic):
    """Bands of blocks that are seen through ever coarser means.

    Args:
        bands: where each band of a row's ranking ends, rising shares; the first blocks, up to ``bands[0]``, are seen
            whole. Published by weight: (0.4, 0.5, 0.6, 0.8) for Wan 2.1 14B, (0.5, 0.6, 0.7, 0.8) for 1.3B; by blocks:
            (0.1, 0.25, 0.4, 0.75) for CogVideoX, (0.05, 0.2, 0.45, 0.95) for a model of few steps.
        runs: keys that a mean is taken of in each band, 1 first, rising powers of two below the block size.
        by: whether ``bands`` are shares of the "weight", the sum of the row's scores, or of the "blocks".
        guards: for every run but the first, the least cosine similarity between the means of its halves, averaged over
            a block, at which the block may be seen through means of it; a block below is seen through the next shorter
            run that may, as all shorter ones may too. (0.7, 0.65, 0.6) is published; () trusts all means.
        floor: share of the blocks that every row sees whole at least.
        score: how much a block of queries is expected to attend to a region of keys.
        order: how the visual tokens are laid out: neighbours along it are pooled.
        keep: names of what is seen whole besides, see ``dattn.orders.ALWAYS``; text always is.
        reuse: steps that lists are kept for; means are always those of the moment.
        block_size: 16, 32, 64 or 128.
        tail: pool what is in no band: False, True (one key per block) or a run of 16 … block size tokens.

    Raises:
        ValueError: a field outside these bounds, or of another kind.
    """

    bands: tuple[float, ...] = (0.4, 0.5, 0.6, 0.8)
    runs: tuple[int, ...] = (1, 2, 4, 8)
    by: str = "weight"
    guards: tuple[float, ...] = ()
    floor: float = 0.06
    score: Score = Sampled()
    order: Order = Curve()
    keep: tuple[str, ...] = ()
    reuse: int = 1
    block_size: int = 128
    tail: bool | int = False

    def __post_init__(self) -> None:
        for name in ("bands", "runs", "guards", "keep"):
            object.__setattr__(self, name, as_tuple(getattr(self, name)))
        check_kind("score", self.score, Score, "Sampled()")
        check_kind("order", self.order, Order, "Curve()")
        check_block(self.block_size, self.tail)
        check_keep(self.keep, self.order)
        self._check_bands()
        if self.by not in BY:
            raise ValueError(f"by={self.by!r}: choose one of {', '.join(BY)}")
        check_within("floor", self.floor, 0, 1)
        if type(self.reuse) is not int or self.reuse < 1:
            raise ValueError(f"reuse={self.reuse!r}: give a number of steps, 1 for none")

    def _check_bands(self) -> None:
        bands = self.bands if isinstance(self.bands, tuple) and all(map(_is_number, self.bands)) else ()
        rising = all(0 < a <= b <= 1 for a, b in pairwise((*bands[:1], *bands)))
        if not bands or not rising:
            raise ValueError(f"bands={self.bands!r}: give shares above 0 and at most 1 that do not fall")
        doubling = [1 << i for i in range(self.block_size.bit_length() - 1)]
        of = self.runs if isinstance(self.runs, tuple) and all(type(run) is int for run in self.runs) else ()
        if of[:1] != (1,) or len(of) != len(bands) or list(of) != sorted(set(of)) or not set(of) <= set(doubling):
            raise ValueError(
                f"runs={self.runs!r}: one for each of the {len(bands)} bands, 1 first, then rising powers of two "
                f"below the block size {self.block_size}"
            )
        guards = self.guards if isinstance(self.guards, tuple) and all(map(_is_number, self.guards)) else (math.nan,)
        if guards and (len(guards) != len(of) - 1 or not all(-1 <= guard <= 1 for guard in guards)):
            raise ValueError(
                f"guards={self.guards!r}: one similarity from -1 to 1 for each of the {len(of) - 1} runs above 1, or ()"
            )

    def at(self, layer: int, layers: int, step: int, steps: int) -> Pyramid:
        """Order and score of that layer."""
        order, score = self.order.at(layer), self.score.at(layer)
        return self if order is self.order and score is self.score else replace(self, order=order, score=score)

    def fit(self, grid: TokenGrid) -> tuple[Pyramid, str | None]:
        """The order clamped to the grid."""
        order, note = self.order.fit(grid)
        return (self if note is None else replace(self, order=order)), note

    def for_heads(self, heads: tuple[int, ...], of: int) -> Pyramid:
        """Itself, where every head is scored alone."""
        if self.score.all_heads:
            raise together(self)
        return self

    def build(self, given: Given) -> BlockMask:
        """See ``Dynamic.build``."""

        def make() -> BlockMask:
            sides = sides_of(given, self.order, self.block_size)
            level = self.levels(sides)
            coarse = {run: level == i for i, run in enumerate(self.runs) if i}
            return sides.partition.mask(level == 0, tail_run(self.tail, self.block_size), coarse)

        return for_steps(given.state, (self, *given.terms), self.reuse, make)

    def levels(self, sides: Sides) -> Tensor:
        """int64 [batch, heads or 1, blocks, regions]: which of ``runs`` each is seen by; their number for none."""
        scores = self.score.of(sides)
        ranked, order = scores.sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(scores.shape[-1], device=scores.device)
        before = (rank / len(rank)).expand_as(ranked)  # the share of what ranks higher
        if self.by == "weight":
            held = ranked.double()
            before = (held.cumsum(-1) - held) / held.sum(-1, keepdim=True).clamp_min(torch.finfo(held.dtype).tiny)
        bands = torch.tensor(self.bands, dtype=before.dtype, device=before.device)
        level = torch.bucketize(before.contiguous(), bands, right=True)
        if self.bands[-1] == 1:
            level.clamp_max_(len(self.runs) - 1)  # sums of very small weights may reach 1 before the last
        level[..., : max(1, math.ceil(self.floor * len(rank)))] = 0
        level = torch.empty_like(level).scatter_(-1, order, level)
        if self.guards:
            level = torch.where(level < len(self.runs), level.minimum(self.coarsest(sides)), level)
        must = self.score.must(sides)
        whole = sides.partition.always(self.keep) if must is None else sides.partition.always(self.keep) | must
        return level.masked_fill(whole, 0)

    def coarsest(self, sides: Sides) -> Tensor:
        """int64 [batch, heads, 1, regions]: up to which of ``runs`` the means of a region's keys can be trusted."""
        trusted = [self._alike(sides, run) >= guard for run, guard in zip(self.runs[1:], self.guards, strict=True)]
        return torch.stack(trusted).long().cumprod(0).sum(0)[..., None, :]

    def _alike(self, sides: Sides, run: int) -> Tensor:
        """[batch, heads, regions]: mean cosine similarity between the halves of whole runs; 1 where there is none."""
        keys, there = runs(sides.key, sides.partition.lengths)
        end = there.shape[1] // run * run
        first, second = keys[..., :end, :].unflatten(3, (-1, 2, run // 2)).mean(-2).unbind(-2)
        whole = there[:, :end].unflatten(1, (-1, run)).all(-1)
        compared = whole & (first != 0).any(-1) & (second != 0).any(-1)  # keys that nobody sees are 0
        similar = cosine_similarity(first, second, dim=-1).masked_fill(~compared, 0).sum(-1)
        return torch.where(compared.any(-1), similar / compared.sum(-1).clamp_min(1), 1.0)

    def held(self, state: State) -> int:
        """Lists that serve several steps."""
        return held_by(state)

    def cost(self, grid: TokenGrid, head_dim: int, masks: MaskCache) -> float:
        """What the bands ask for, where they are shares of the blocks and no guard raises them."""
        if self.by == "weight" or self.guards:
            return 1.0
        ends = [max(self.floor, end) for end in self.bands]
        widths = [ends[0], *(b - a for a, b in pairwise(ends)), 1 - ends[-1]]
        tail = tail_run(self.tail, self.block_size)
        return sum(width / run for width, run in zip(widths, (*self.runs, tail or math.inf), strict=True))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
