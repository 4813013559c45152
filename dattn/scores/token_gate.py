"""Scores from gates of single queries."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from dattn.on_cpu import at_once
from dattn.scores.base import Score, Sides
from dattn.selection import Select, TopP
from dattn.selection_in_parts import best_in_parts
from dattn.spec import check_kind

GATES = 1 << 26  # of a head, that are held at a time on a GPU; fewer on a CPU


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
        keys, lengths = sides.key_means(), sides.partition.blocks
        votes = [
            torch.stack([self._votes(*head, lengths) for head in zip(*sample, strict=True)])
            for sample in zip(sides.query, keys, strict=True)
        ]
        return torch.stack(votes)

    def _votes(self, query: Tensor, keys: Tensor, lengths: Tensor) -> Tensor:
        """[blocks, regions] of one head, whose gates, tokens x regions, are made some rows at a time, several times.

        Args:
            query: [tokens, head_dim], block by block.
            keys: [regions, head_dim].
            lengths: int64 [blocks].
        """
        some = query.split(max(1, at_once(GATES, query.device) // len(keys)))
        ends = None if self.pick.across == "row" else torch.stack([_ends(part @ keys.mT) for part in some])
        bounds = None if ends is None else (ends[:, 0].amin(), ends[:, 1].amax())
        gates = lambda: (_unit(part @ keys.mT, bounds) for part in some)
        picked: Iterable[Tensor]
        if bounds is None:
            picked = map(self.pick.chosen, gates())
        else:
            flat = best_in_parts(lambda: (part.flatten() for part in gates()), self.pick)
            picked = (part.view(-1, len(keys)) for part in flat)
        block = torch.arange(len(lengths), device=query.device).repeat_interleave(lengths)
        votes = query.new_zeros(len(lengths), len(keys))
        for rows, part in zip(block.split(len(some[0])), picked, strict=True):
            votes.index_add_(0, rows, part.to(votes.dtype))
        return votes / lengths[:, None]


def _ends(gates: Tensor) -> Tensor:
    return torch.stack([gates.min(), gates.max()])


def _unit(gates: Tensor, bounds: tuple[Tensor, Tensor] | None) -> Tensor:
    """Gates brought to [0, 1]: between bounds, or each row between its own."""
    low, high = bounds or (gates.amin(-1, keepdim=True), gates.amax(-1, keepdim=True))
    return gates.sub_(low).div_((high - low).clamp_min(torch.finfo(gates.dtype).tiny))
