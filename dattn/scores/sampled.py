"""Scores from a sample of the tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dattn.runs import slots_of
from dattn.scores.base import Score, Sides, logits_of
from dattn.selection import check_share
from dattn.sums import in_order, wide


@dataclass(frozen=True)
class Sampled(Score):
    """The largest weight among sampled pairs (Pyramid Sparse Attention, arXiv 2512.04025).

    A share of every block's queries and of every region's keys is drawn at random, always the same ones. A weight is
    exp(logit - the largest logit of its query); the score of a block and a region is their largest weight, over the
    sum of the row.

    Args:
        share: of the tokens that are looked at; work is share² / 2 of dense attention.
        seed: of the draw.

    Raises:
        ValueError: a share that is not in (0, 1].
    """

    share: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        check_share("share", self.share)

    def of(self, sides: Sides) -> Tensor:
        """See ``Score.of``."""
        partition = sides.partition
        queries, row_there = self._sample(sides.query_tokens, partition.query, partition.blocks)
        keys, column_there = self._sample(sides.key_tokens, partition.key, partition.lengths)
        queries = queries if sides.factor == 1 else queries * sides.factor
        parts = []
        for blocks, logits in logits_of(queries, keys, column_there):
            largest = logits.unflatten(-1, column_there.shape).amax(-1)
            weights = (largest - largest.amax(-1, keepdim=True)).exp()
            there = row_there[blocks]
            parts.append((weights.unflatten(2, there.shape) * there[..., None]).amax(3))
        scores = torch.cat(parts, 2)
        return scores / scores.sum(-1, keepdim=True)

    def _sample(self, tokens: Tensor, order: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """[batch, heads, runs, drawn, head_dim], and bool [runs, drawn], which of them are there."""
        index, there = slots_of(lengths)
        luck = torch.rand(there.shape, generator=torch.Generator().manual_seed(self.seed)).to(there.device)
        drawn = luck.masked_fill(~there, 2).argsort(1)[:, : math.ceil(self.share * there.shape[1])]
        wanted = torch.arange(drawn.shape[1], device=there.device) < (self.share * lengths).ceil()[:, None]
        picked = wide(in_order(tokens, order[..., index.gather(1, drawn).flatten()]))
        return picked.unflatten(2, drawn.shape), wanted
