"""Scores that look at several heads together, around any other score."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dattn.heads import head_groups
from dattn.patterns.base import check_count
from dattn.scores.antidiagonal import Antidiagonal
from dattn.scores.base import Score, Sides
from dattn.scores.pooled import Pooled


@dataclass(frozen=True)
class Joined(Score):
    """All heads side by side as one, so that they choose together (BiFormer, Zhu et al., CVPR 2023, arXiv 2303.08810).

    Args:
        score: what is asked of the joint head; its logits are divided by the root of its width.
    """

    score: Score = Pooled()

    def of(self, sides: Sides) -> Tensor:
        """Scores [batch, 1, blocks, regions]."""
        return self.score.of(self._joined(sides))

    def must(self, sides: Sides) -> Tensor | None:
        """What the score says of the joint head."""
        return self.score.must(self._joined(sides))

    def _joined(self, sides: Sides) -> Sides:
        query, key = (t.transpose(1, 2).flatten(2)[:, None] for t in (sides.query, sides.key))
        return sides._replace(query=query, key=key)


@dataclass(frozen=True)
class Proxy(Score):
    """One ranking of the blocks for many heads, and for each head how many it needs (after ProxyAttn).

    Queries and keys are averaged over consecutive heads into proxy heads, and ``score`` ranks the regions for each of
    these. What a head has of its own is the profile of ``own``: its sorted scores, laid out along the ranking of its
    proxy. So heads of a proxy visit the same regions first, and a head whose attention is spread visits more of them.

    Args:
        score: ranks for a proxy head.
        heads: proxy heads; as many as there are heads where there are fewer.
        own: says how spread each head's attention is; a cheap one.

    Raises:
        ValueError: fewer than one proxy head.
    """

    score: Score = Antidiagonal()
    heads: int = 1
    own: Score = Pooled()

    def __post_init__(self) -> None:
        check_count("heads", self.heads)

    def of(self, sides: Sides) -> Tensor:
        """See ``Score.of``."""
        groups = head_groups(sides.query.shape[1], min(self.heads, sides.query.shape[1]))
        query, key = (torch.stack([t[:, g].mean(1) for g in groups], 1) for t in (sides.query, sides.key))
        ranking = self.score.of(sides._replace(query=query, key=key)).sort(dim=-1, descending=True, stable=True).indices
        ranking = torch.cat([ranking[:, i, None].expand(-1, g.stop - g.start, -1, -1) for i, g in enumerate(groups)], 1)
        profile = self.own.of(sides).sort(dim=-1, descending=True).values
        return torch.zeros_like(profile).scatter_(-1, ranking, profile)
