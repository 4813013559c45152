"""Scores by the true weights: what selections are judged by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dattn.runs import runs
from dattn.scores.base import Score, Sides, logits_of

BY = ("largest", "total")


@dataclass(frozen=True)
class TrueWeights(Score):
    """What the queries of a block really give to the keys of a region: i and j, over the sum of the row.

        p = softmax(q·k / √head_dim) over keys        "largest": max p over i and j        "total": Σ p over i and j

    ``largest`` is the target of SeerAttention's gate (Gao et al. 2024, arXiv 2410.13276). It costs half of dense
    attention: it is there to compare with, not to save time. A gate is taught by ``dattn.backends.weights_of_blocks``.

    Args:
        by: "largest" or "total".

    Raises:
        ValueError: neither of them.
    """

    by: str = "largest"

    def __post_init__(self) -> None:
        if self.by not in BY:
            raise ValueError(f"by={self.by!r}: choose one of {', '.join(BY)}")

    def of(self, sides: Sides) -> Tensor:
        """See ``Score.of``."""
        scores = self._by_kernel(sides) if sides.kernels else self._by_logits(sides)
        return scores / scores.sum(-1, keepdim=True)

    def _by_kernel(self, sides: Sides) -> Tensor:
        from dattn.backends.triton_scores import true_weights

        return true_weights(sides.queries, sides.keys, sides.partition, self.by == "largest", sides.factor)

    def _by_logits(self, sides: Sides) -> Tensor:
        queries, row_there = runs(sides.query, sides.partition.blocks)
        keys, column_there = runs(sides.key, sides.partition.lengths)
        parts = []
        for blocks, logits in logits_of(queries, keys, column_there):
            there = row_there[blocks]
            weights = logits.softmax(-1).unflatten(-1, column_there.shape)
            weights = (weights.amax(-1) if self.by == "largest" else weights.sum(-1)).unflatten(2, there.shape)
            weights = weights * there[..., None]
            parts.append(weights.amax(3) if self.by == "largest" else weights.sum(3))
        return torch.cat(parts, 2)
