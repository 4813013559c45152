"""ByCluster: tokens of a k-means cluster next to each other."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dattn.clusters import Clusters, start
from dattn.grid import TokenGrid
from dattn.on_cpu import argsort, group
from dattn.orders.by_content import ByContent
from dattn.patterns.base import check_count
from dattn.principal import leading


@dataclass(frozen=True)
class ByCluster(ByContent):
    """k-means clusters of queries and of keys, head by head, one after the other (Sparse VideoGen 2, arXiv 2505.18875).

    Clusters follow each other along the direction in which their centroids differ most, so that a block that ends one
    and begins the next holds tokens that are not too far apart. Blocks are full: where each is to hold tokens of one
    cluster alone, and clusters are to go on from step to step, take the pattern ``Clustered``.

    Args:
        clusters: of queries, and of keys, in every head.
        rounds: of k-means, from tokens drawn at random.
        seed: of that draw.

    Raises:
        ValueError: a number below 1; more clusters than visual tokens, when the grid is met.
    """

    clusters: int = 64
    rounds: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("clusters", self.clusters)
        check_count("rounds", self.rounds)
        check_count("seed", self.seed, least=0)

    def fit(self, grid: TokenGrid) -> tuple[ByCluster, str | None]:
        """At most as many clusters as there are visual tokens."""
        if self.clusters <= grid.visual:
            return self, None
        return replace(self, clusters=grid.visual), f"clamped to {grid.visual} clusters"

    def sorted(self, tokens: Tensor, block_size: int) -> Tensor:
        """See ``ByContent.sorted``."""
        wide = tokens.to(torch.promote_types(tokens.dtype, torch.float32)).contiguous()
        found = Clusters.of(wide, start(wide, self.clusters, self.seed), self.rounds)
        line, _ = leading(found.centroids.flatten(0, 1), 1)
        rank = argsort(argsort(line[..., 0])).view(found.sizes.shape)
        return group(rank.gather(2, found.labels), self.clusters)
