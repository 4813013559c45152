"""Scores by the true weights: what selections are judged by, and what a gate is trained on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dattn.orders import runs
from dattn.scores.base import CHUNK, Score, Sides


@dataclass(frozen=True)
class Largest(Score):
    """The largest attention weight that a query of the block gives to a key of the region, over the sum of the row.

        s_ij = max_{q in i, k in j} softmax_k(q·k / √head_dim)        score = s_ij / Σ_j s_ij

    The target of SeerAttention's gate (Gao et al. 2024, arXiv 2410.13276). It costs half of dense attention: it is
    there to train and to compare with, not to save time.
    """

    def of(self, sides: Sides) -> Tensor:
        """See ``Score.of``."""
        queries, row_there = runs(sides.query, sides.partition.blocks)
        keys, column_there = runs(sides.key, sides.partition.lengths)
        keys, absent = keys.flatten(2, 3).mT * sides.query.shape[-1] ** -0.5, ~column_there.flatten()
        step = max(1, CHUNK // (keys.shape[0] * keys.shape[1] * keys.shape[-1] * queries.shape[3]))
        parts = []
        for first in range(0, queries.shape[2], step):
            logits = queries[:, :, first : first + step].flatten(2, 3) @ keys
            if absent.any():
                logits.masked_fill_(absent, -torch.inf)
            highest = logits.unflatten(-1, column_there.shape).amax(-1)
            weights = (highest - logits.logsumexp(-1, keepdim=True)).exp()
            there = row_there[first : first + step]
            parts.append((weights.unflatten(2, there.shape) * there[..., None]).amax(3))
        scores = torch.cat(parts, 2)
        return scores / scores.sum(-1, keepdim=True)
