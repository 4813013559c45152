"""k-means over queries or keys, head by head, and how clusters become blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dattn.on_cpu import argmin, at_once, group
from dattn.sums import sums

CHUNK = 1 << 24  # distances held at a time
STILL = 1e-4  # centroids of a head that all moved less than this stay where they are


@dataclass(frozen=True, eq=False)
class Clusters:
    """Tokens sorted into clusters.

    Attributes:
        centroids: [batch, heads, clusters, head_dim], the means of the clusters' tokens; an empty one's is anywhere.
        labels: int64 [batch, heads, tokens], the cluster of each.
        sizes: int64 [batch, heads, clusters].
    """

    centroids: Tensor
    labels: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, tokens: Tensor, centroids: Tensor, steps: int) -> Clusters:
        """Lloyd's algorithm from ``centroids`` on: to the nearest by Euclidean distance, then their means.

        Args:
            tokens: [batch, heads, tokens, head_dim].
            centroids: [batch or 1, heads, clusters, head_dim].
            steps: how often, 1 or more.
        """
        centroids = centroids.expand(len(tokens), -1, -1, -1)
        moving = torch.ones(centroids.shape[:2], dtype=torch.bool, device=tokens.device)
        for _ in range(steps):
            labels = _nearest(tokens, centroids)
            means, sizes = _means(tokens, labels, centroids)
            moving &= (means - centroids).norm(dim=-1).amax(-1) >= STILL
            if not moving.any():
                break
            centroids = torch.where(moving[..., None, None], means, centroids)
        return cls(means, labels, sizes)

    def blocks(self, block_size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Clusters cut into blocks, each head in its own way.

        Returns:
            int64 [batch, heads, tokens], the tokens cluster by cluster; int64 [batch, heads, blocks], how many of them
            each block holds, 0 for those at the end that a head does not need; int64 like them, the cluster of each.
        """
        order = group(self.labels, self.sizes.shape[-1])
        counts = -(-self.sizes // block_size)
        ends = counts.cumsum(-1)
        block = torch.arange(int(ends[..., -1].max()), device=order.device).expand(*ends.shape[:2], -1).contiguous()
        cluster = torch.searchsorted(ends, block, right=True).clamp_max(counts.shape[-1] - 1)
        place = block - (ends - counts).gather(-1, cluster)
        lengths = (self.sizes.gather(-1, cluster) - place * block_size).clamp(0, block_size)
        return order, lengths, cluster


def start(tokens: Tensor, count: int, seed: int, name: str = "clusters") -> Tensor:
    """[batch, heads, count, head_dim]: centroids to begin with, tokens drawn at random, the same ones in every head.

    Raises:
        ValueError: more clusters than tokens.
    """
    if count > tokens.shape[2]:
        raise ValueError(f"{name}={count} of {tokens.shape[2]} tokens: give at most as many as there are tokens")
    drawn = torch.randperm(tokens.shape[2], generator=torch.Generator().manual_seed(seed))[:count]
    return tokens[:, :, drawn.to(tokens.device)]


def _nearest(tokens: Tensor, centroids: Tensor) -> Tensor:
    """int64 [batch, heads, tokens]."""
    half = centroids.square().sum(-1)[:, :, None] / 2
    few = max(1, at_once(CHUNK, tokens.device) // half[0].numel())
    found = []
    for sample, own, turned in zip(tokens, half, centroids.mT, strict=True):
        parts = [argmin(torch.baddbmm(own, some, turned, alpha=-1)) for some in sample.split(few, 1)]
        found.append(torch.cat(parts, 1))
    return torch.stack(found)


def _means(tokens: Tensor, labels: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """The means of the clusters, ``centroids`` where they are empty, and their sizes; sums are always in one order."""
    clusters, count = centroids.shape[2], centroids.shape[:3].numel()
    first = torch.arange(0, count, clusters, device=labels.device).view(*labels.shape[:2], 1)
    sizes = (labels + first).flatten().bincount(minlength=count).view(centroids.shape[:3])
    total = sums(tokens, sizes, group(labels, clusters))
    return torch.where(sizes[..., None] > 0, total / sizes.clamp_min(1)[..., None], centroids), sizes
