"""Scores from means: the mean query of a block with the mean key of a region."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dattn.scores.base import Score, Sides
from dattn.spec import check_within
from dattn.sums import means


@dataclass(frozen=True)
class Pooled(Score):
    """softmax_j(q̄_i · k̄_j / √d + ln n_j): attention among means, a region of n tokens counting n times."""

    def of(self, sides: Sides) -> Tensor:
        """See ``Score.of``."""
        return self.logits(sides).softmax(-1)

    def logits(self, sides: Sides) -> Tensor:
        """[batch, heads, blocks, regions]."""
        products = sides.query_means() @ sides.key_means().mT * sides.query.shape[-1] ** -0.5
        return products + sides.partition.lengths.to(products.dtype).log()


@dataclass(frozen=True)
class MeanSimilarity(Pooled):
    """Means where they say something: SpargeAttn's first stage (Zhang et al., ICML 2025, arXiv 2502.18137).

    The self-similarity of a run of tokens is the mean entry of the Gram matrix of its tokens divided by their lengths,
    that is |mean_t x_t / |x_t||². Keys lose their mean over all tokens first. A block or region below ``guard`` cannot
    be told from its mean: such a block of queries sees everything, such a region of keys is seen by everyone and does
    not compete.

    Args:
        guard: the least self-similarity that a mean is trusted at, from -1 to 1; -1 trusts all.

    Raises:
        ValueError: a guard outside of [-1, 1].
    """

    guard: float = 0.6

    def __post_init__(self) -> None:
        check_within("guard", self.guard, -1, 1)

    def of(self, sides: Sides) -> Tensor:
        """See ``Score.of``; untold regions score 0."""
        untold = self._untold_keys(sides)[..., None, :]
        return self.logits(sides).masked_fill(untold, -torch.inf).softmax(-1).masked_fill(untold, 0)

    def must(self, sides: Sides) -> Tensor:
        """Rows and columns of what cannot be told from its mean."""
        rows = similarity(sides.query, sides.partition.blocks) < self.guard
        return rows[..., None] | self._untold_keys(sides)[..., None, :]

    def _untold_keys(self, sides: Sides) -> Tensor:
        centred = sides.key - sides.key.mean(2, keepdim=True)
        return similarity(centred, sides.partition.lengths) < self.guard


def similarity(tensor: Tensor, lengths: Tensor) -> Tensor:
    """[batch, heads, runs]: mean cosine among the tokens of every run, each with itself too."""
    return means(normalize(tensor, dim=-1), lengths).square().sum(-1)
