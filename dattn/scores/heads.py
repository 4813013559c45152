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
from dattn.spec import check_kind


@dataclass(frozen=True)
class Joined(Score):
    """All heads side by side as one, so that they choose together (BiFormer, Zhu et al., CVPR 2023, arXiv 2303.08810).

    Args:
        score: what is asked of the joint head; its logits are divided by the root of its width.
    """

    score: Score = Pooled()

    def __post_init__(self) -> None:
        check_kind("score", self.score, Score, "Pooled()")

    @property
    def all_heads(self) -> bool:
        """True: it joins them."""
        return True

    def at(self, layer: int) -> Joined:
        """Its score in that layer."""
        return Joined(self.score.at(layer))

    def of(self, sides: Sides) -> Tensor:
        """Scores [batch, 1, blocks, regions]."""
        return self.score.of(self._joined(sides))

    def must(self, sides: Sides) -> Tensor | None:
        """What the score says of the joint head."""
        return self.score.must(self._joined(sides))

    def _joined(self, sides: Sides) -> Sides:
        query, key = (t.transpose(1, 2).flatten(2)[:, None] for t in (sides.query, sides.key))
        return sides.of(query, key)


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
        check_kind("score", self.score, Score, "Antidiagonal()")
        check_kind("own", self.own, Score, "Pooled()")

    @property
    def all_heads(self) -> bool:
        """True: it averages them."""
        return True

    def at(self, layer: int) -> Proxy:
        """Its scores in that layer."""
        return Proxy(self.score.at(layer), self.heads, self.own.at(layer))

    def of(self, sides: Sides) -> Tensor:
        """See ``Score.of``."""
        proxies, of_head = self._proxies(sides)
        ranking = self.score.of(proxies).sort(dim=-1, descending=True, stable=True).indices[:, of_head]
        profile = self.own.of(sides).sort(dim=-1, descending=True).values
        return torch.zeros_like(profile).scatter_(-1, ranking, profile)

    def must(self, sides: Sides) -> Tensor | None:
        """What either score says must be kept."""
        proxies, of_head = self._proxies(sides)
        ranking, own = self.score.must(proxies), self.own.must(sides)
        ranking = None if ranking is None else ranking.expand(-1, int(of_head.max()) + 1, -1, -1)[:, of_head]
        return own if ranking is None else ranking if own is None else ranking | own

    def _proxies(self, sides: Sides) -> tuple[Sides, Tensor]:
        """The averaged heads, and int64 [heads], the proxy of each head."""
        heads = sides.query.shape[1]
        groups = head_groups(heads, min(self.heads, heads))
        query, key = (torch.stack([t[:, g].mean(1) for g in groups], 1) for t in (sides.query, sides.key))
        of_head = torch.tensor([i for i, g in enumerate(groups) for _ in range(g.start, g.stop)])
        return sides.of(query, key), of_head.to(query.device)
