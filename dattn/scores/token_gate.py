"""Scores from gates of single queries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dattn.scores.base import CHUNK, Score, Sides
from dattn.selection import Select, TopP
from dattn.spec import check_kind
from dattn.sums import means


@dataclass(frozen=True)
class TokenGate(Score):
    """Every query picks regions of its own, as VMoBA does (Wu et al. 2025, arXiv 2506.23858); a block counts votes.

    The gate of query t and region j is q_t · k̄_j. Gates are brought to [0, 1] by the least and the largest one of
    those that compete, and ``pick`` chooses among them. The score of a block and a region is the share of the block's
    queries that pick the region. So a ``Select`` over the scores says how single queries' choices become lists:
    ``Threshold(1e-6)`` takes the union, ``Threshold(0.5)`` the majority.

    Args:
        pick: what a query picks; across a "row" (one query) or a "head" (queries compete with each other).

    Raises:
        ValueError: a pick across the layer, or one with a floor.
    """

    pick: Select = TopP(0.25, across="head")

    def __post_init__(self) -> None:
        check_kind("pick", self.pick, Select, "TopP(0.25)")
        if self.pick.across == "layer":
            raise ValueError(f"pick={self.pick!r}: queries compete in their own head at most; take 'row' or 'head'")
        if self.pick.floor:
            raise ValueError(f"pick={self.pick!r}: a floor is one of blocks; give it to the select around the score")

    def of(self, sides: Sides) -> Tensor:
        """See ``Score.of``, but rows do not sum to 1."""
        keys = sides.key_means()
        heads = [self._votes(sides.query[:, h, None], keys[:, h, None], sides) for h in range(keys.shape[1])]
        return torch.cat(heads, 1)

    def _votes(self, query: Tensor, keys: Tensor, sides: Sides) -> Tensor:
        """[batch, 1, blocks, regions] of one head: its gates are tokens x regions."""
        gates = query @ keys.mT
        among = -1 if self.pick.across == "row" else (-2, -1)
        low, high = gates.amin(among, keepdim=True), gates.amax(among, keepdim=True)
        gates = gates.sub_(low).div_((high - low).clamp_min(torch.finfo(gates.dtype).tiny))
        picked = self.pick.chosen(gates if self.pick.across == "row" else gates.flatten(2)).view_as(gates)
        few = max(1, CHUNK // picked.shape[2])  # regions at a time: votes are as many as gates
        votes = [means(part.to(gates.dtype), sides.partition.blocks) for part in picked.split(few, -1)]
        return torch.cat(votes, -1)
