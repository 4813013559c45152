"""Scores from antidiagonals: every row and column of a pair of blocks is met, at a fraction of its products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from dattn.on_cpu import at_once
from dattn.patterns.base import check_count
from dattn.runs import runs
from dattn.scores.base import CHUNK, Score, Sides


@dataclass(frozen=True)
class Antidiagonal(Score):
    """XAttention (Xu et al., ICML 2025, arXiv 2503.16428).

    Blocks and regions are cut into groups of S consecutive tokens. The logit of query group a and key group c sums the
    antidiagonal of their S x S pairs, Σ_r q[S·a + S - 1 - r] · k[S·c + r] / (√d · S), where tokens that are not there
    add nothing. Rows are softmaxed over all key groups; the score of a block and a region is the mean over the groups
    of one of the sum over the groups of the other.

    Args:
        stride: S, tokens in a group: 8 or 16. Work is 1 / (2 S) of dense attention.

    Raises:
        ValueError: a stride below 1.
    """

    stride: int = 8

    def __post_init__(self) -> None:
        check_count("stride", self.stride)

    def of(self, sides: Sides) -> Tensor:
        """See ``Score.of``."""
        if self._by_kernel(sides):
            from dattn.backends.triton_scores import antidiagonals

            return antidiagonals(sides.queries, sides.keys, sides.partition, self.stride, sides.factor)
        queries, row_there = self._groups(sides.query, sides.partition.blocks, reverse=True)
        keys, column_there = self._groups(sides.key, sides.partition.lengths, reverse=False)
        keys, absent = keys.flatten(2, 3).mT, ~column_there.flatten()
        scale = sides.query.shape[-1] ** -0.5 / self.stride
        step = max(1, at_once(CHUNK, keys.device) // (keys[:, :, 0].numel() * queries.shape[3]))
        parts = []
        for first in range(0, queries.shape[2], step):
            rows, there = queries[:, :, first : first + step], row_there[first : first + step]
            logits = (rows.flatten(2, 3) @ keys).mul_(scale)
            if absent.any():
                logits.masked_fill_(absent, -torch.inf)
            weights = logits.softmax(-1).unflatten(-1, column_there.shape).sum(-1).unflatten(2, there.shape)
            parts.append((weights * there[..., None]).sum(3) / there.sum(1).clamp_min(1)[:, None])
        return torch.cat(parts, 2)

    def _by_kernel(self, sides: Sides) -> bool:
        """Whether the kernel can: it takes powers of two, and regions of one block."""
        fits = self.stride.bit_count() == 1 and self.stride <= sides.partition.block_size
        return sides.kernels and fits and len(sides.partition.lengths) == len(sides.partition.blocks)

    def _groups(self, tensor: Tensor, lengths: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
        """[batch, heads, runs, groups, stride · head_dim], and bool [runs, groups], which groups have a token."""
        spread, there = runs(tensor, lengths)
        if more := -spread.shape[3] % self.stride:
            spread, there = pad(spread, (0, 0, 0, more)), pad(there, (0, more))
        spread = spread.unflatten(3, (-1, self.stride))
        there = there.unflatten(1, (-1, self.stride)).any(-1)
        return (spread.flip(4) if reverse else spread).flatten(4), there
