"""k-means over queries or keys, head by head, and how clusters become blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dattn.on_cpu import argmin

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
        """Lloyd's algorithm from ``centroids`` on: the nearest by Euclidean distance, then their means.

        Args:
            tokens: [batch, heads, tokens, head_dim].
            centroids: [batch or 1, heads, clusters, head_dim].
            steps: how often centroids move; with 0 they only label, and stay.
        """
        centroids = centroids.expand(len(tokens), -1, -1, -1)
        moving = torch.ones(centroids.shape[:2], dtype=torch.bool, device=tokens.device)
        for _ in range(steps):
            means, _ = _means(tokens, _nearest(tokens, centroids), centroids)
            centroids, before = torch.where(moving[..., None, None], means, centroids), centroids
            moving &= (centroids - before).norm(dim=-1).amax(-1) >= STILL
            if not moving.any():
                break
        labels = _nearest(tokens, centroids)
        means, sizes = _means(tokens, labels, centroids)
        return cls(means, labels, sizes)

    def blocks(self, block_size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Clusters cut into blocks, each head in its own way.

        Returns:
            int64 [batch, heads, tokens], the tokens cluster by cluster; int64 [batch, heads, blocks], how many of them
            each block holds, 0 for those at the end that a head does not need; int64 like them, the cluster of each.
        """
        order = self.labels.argsort(dim=-1, stable=True)
        counts = -(-self.sizes // block_size)
        ends = counts.cumsum(-1)
        block = torch.arange(int(ends[..., -1].max()), device=order.device).expand(*ends.shape[:2], -1).contiguous()
        cluster = torch.searchsorted(ends, block, right=True).clamp_max(counts.shape[-1] - 1)
        place = block - (ends - counts).gather(-1, cluster)
        lengths = (self.sizes.gather(-1, cluster) - place * block_size).clamp(0, block_size)
        return order, lengths, cluster


def start(tokens: Tensor, count: int, seed: int) -> Tensor:
    """[batch, heads, count, head_dim]: centroids to begin with, tokens drawn at random, the same ones in every head.

    Raises:
        ValueError: more clusters than tokens.
    """
    if count > tokens.shape[2]:
        raise ValueError(f"{count} clusters of {tokens.shape[2]} tokens: at most as many as there are tokens")
    drawn = torch.randperm(tokens.shape[2], generator=torch.Generator().manual_seed(seed))[:count]
    return tokens[:, :, drawn.to(tokens.device)]


def _nearest(tokens: Tensor, centroids: Tensor) -> Tensor:
    """int64 [batch, heads, tokens]."""
    half = centroids.square().sum(-1).flatten(0, 1)[:, None] / 2
    turned = centroids.flatten(0, 1).mT
    step = max(1, CHUNK // half.numel())
    parts = [argmin(torch.baddbmm(half, t.flatten(0, 1), turned, alpha=-1)) for t in tokens.split(step, 2)]
    return torch.cat(parts, 1).view(tokens.shape[:3])


def _means(tokens: Tensor, labels: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """The means of the clusters, ``centroids`` where they are empty, and their sizes; sums are always in one order."""
    clusters = centroids.shape[2]
    first = torch.arange(labels.shape[0] * labels.shape[1], device=labels.device).view(*labels.shape[:2], 1) * clusters
    together = (labels + first).flatten()
    sizes = together.bincount(minlength=first.numel() * clusters)
    order = together.argsort(stable=True)
    total = torch.segment_reduce(tokens.flatten(0, 2).index_select(0, order), "sum", lengths=sizes)
    sizes, total = sizes.view(*labels.shape[:2], clusters), total.view_as(centroids)
    return torch.where(sizes[..., None] > 0, total / sizes.clamp_min(1)[..., None], centroids), sizes
