"""Centroids calibrated once and stored: ``Clustered`` then needs no k-means at run time (CATANet, arXiv 2503.06896)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dattn.attention import attend, masks_in
from dattn.clusters import Clusters, start
from dattn.patterns.base import check_count
from dattn.patterns.dense import Dense
from dattn.spec import Call, Operator

SIDES = ("query", "key")


@dataclass(eq=False)
class Running:
    """Centroids of one side of a layer, and how many tokens each is the mean of.

    Attributes:
        centroids: float [1, heads, clusters, head_dim].
        counts: int64 [1, heads, clusters].
    """

    centroids: Tensor
    counts: Tensor

    def take_in(self, tokens: Tensor) -> None:
        """Move every centroid to the mean of all its tokens so far, these ones included."""
        new = Clusters.of(tokens, self.centroids, 0)
        share = new.sizes / (self.counts + new.sizes).clamp_min(1)
        self.centroids = torch.lerp(self.centroids, new.centroids, share[..., None].to(self.centroids.dtype))
        self.counts = self.counts + new.sizes


@dataclass(frozen=True, eq=False)
class Calibration(Operator):
    """Dense attention that learns centroids of the queries and keys of every layer as it goes: ::

        learnt = dattn.Calibration(query_clusters=300, key_clusters=1000)
        with dattn.apply(pipe, learnt):
            pipe("one or two prompts of yours")
        learnt.save("centroids.safetensors")
        dattn.apply(pipe, dattn.Clustered(centroids="centroids.safetensors"))

    The first call of a layer is clustered by k-means; every further one, of all steps, prompts and guidance branches,
    moves each centroid to the mean of all tokens that were nearest to it (mini-batch k-means, Sculley 2010).

    Args:
        query_clusters, key_clusters: in every head.
        first_steps: moves of the centroids in the first call.
        seed: of the tokens that they start from.

    Raises:
        ValueError: a field below its bound; more clusters than visual tokens in the first call.
    """

    query_clusters: int = 300
    key_clusters: int = 1000
    first_steps: int = 50
    seed: int = 0
    learnt: dict[int, list[Running]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name in ("query_clusters", "key_clusters"):
            check_count(name, getattr(self, name))
        check_count("first_steps", self.first_steps, least=0)

    def compute(self, call: Call) -> tuple[Tensor, Tensor]:
        """Output and LSE of dense attention."""
        with torch.no_grad():
            self._look(call)
        options = {**call.options, "return_lse": True}
        output, lse = attend(*call[:3], Dense(), call.grid, **options, state={"masks": masks_in(call.state)})
        return output, lse

    def _look(self, call: Call) -> None:
        visual = slice(call.grid.text_before, call.grid.text_before + call.grid.visual)
        sides = [t[:, :, visual].float().transpose(0, 1).flatten(1, 2)[None] for t in call[:2]]
        layer = call.state.get("layer", 0)
        if layer in self.learnt:
            for running, tokens in zip(self.learnt[layer], sides, strict=True):
                running.take_in(tokens)
            return
        counts = self.query_clusters, self.key_clusters
        starts = [start(tokens, count, self.seed) for tokens, count in zip(sides, counts, strict=True)]
        found = [Clusters.of(t, first, self.first_steps) for t, first in zip(sides, starts, strict=True)]
        self.learnt[layer] = [Running(clusters.centroids, clusters.sizes) for clusters in found]

    def save(self, path: str | Path) -> None:
        """Write ``layers.I.query`` and ``layers.I.key``, float32 [heads, clusters, head_dim], as safetensors.

        Raises:
            ValueError: nothing was learnt yet.
        """
        from safetensors.torch import save_file

        if not self.learnt:
            raise ValueError(f"{self.name} has seen no call: apply it to a pipeline and run that first")
        tensors = {
            f"layers.{layer}.{side}": running.centroids[0].cpu().contiguous()
            for layer, sides in self.learnt.items()
            for side, running in zip(SIDES, sides, strict=True)
        }
        save_file(tensors, path)
