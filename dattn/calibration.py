"""Centroids calibrated once and stored: ``Clustered`` then needs no k-means at run time (CATANet, arXiv 2503.06896)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dattn.attention import attend, masks_in
from dattn.clusters import Clusters, start
from dattn.patterns.base import check_count
from dattn.patterns.dense import Dense
from dattn.spec import Call, Operator, together

SIDES = ("query", "key")


@dataclass(eq=False)
class Running:
    """Centroids of one side of a layer, on the CPU, and how many tokens each is the mean of.

    Attributes:
        centroids: float [1, heads, clusters, head_dim].
        counts: int64 [1, heads, clusters].
    """

    centroids: Tensor
    counts: Tensor

    def take_in(self, tokens: Tensor) -> None:
        """Move every centroid to the mean of all its tokens so far, these ones included."""
        new = Clusters.of(tokens, self.centroids.to(tokens.device), 1)
        means, sizes = new.centroids.cpu(), new.sizes.cpu()
        share = sizes / (self.counts + sizes).clamp_min(1)
        self.centroids = torch.lerp(self.centroids, means, share[..., None].to(means.dtype))
        self.counts = self.counts + sizes


@dataclass(frozen=True, eq=False)
class Calibration(Operator):
    """Dense attention that learns centroids of the queries and keys of every layer as it goes: ::

        learnt = dattn.Calibration(query_clusters=300, key_clusters=1000)
        with dattn.apply(pipe, learnt):
            pipe("one or two prompts of yours")
        learnt.save("centroids.safetensors")
        dattn.apply(pipe, dattn.Clustered(centroids="centroids.safetensors"))

    The models of one pipeline (Wan 2.2 has two) share what is learnt, and layers that run dense learn nothing.

    The first call of a layer is clustered by k-means; every further one, of all steps, prompts and guidance branches,
    moves each centroid to the mean of all tokens that were nearest to it (mini-batch k-means, Sculley 2010).

    Args:
        query_clusters, key_clusters: in every head; at most as many as a first call has tokens.
        first_steps: rounds of k-means in the first call.
        seed: of the tokens that they start from.

    Raises:
        ValueError: a field below its bound.
    """

    query_clusters: int = 300
    key_clusters: int = 1000
    first_steps: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "_learnt", {})  # no field: it is no part of what reports and recipes say
        for name in ("query_clusters", "key_clusters", "first_steps"):
            check_count(name, getattr(self, name))

    @property
    def learnt(self) -> dict[int, list[Running]]:
        """Of every layer so far: queries, keys."""
        return vars(self)["_learnt"]

    def for_heads(self, heads: tuple[int, ...], of: int) -> Calibration:
        """Nothing: what is learnt is stored for all heads.

        Raises:
            ValueError: always.
        """
        raise together(self)

    def compute(self, call: Call) -> tuple[Tensor, None]:
        """Output of dense attention."""
        with torch.no_grad():
            self._look(call)
        return attend(*call[:3], Dense(), call.grid, **call.options, state={"masks": masks_in(call.state)}), None

    def _look(self, call: Call) -> None:
        visual = slice(call.grid.text_before, call.grid.text_before + call.grid.visual)
        factors = call.scale * call.query.shape[-1] ** 0.5, 1.0  # as ``Given.wide`` gives them to ``Clustered``
        sides = [
            (t[:, :, visual].float() * factor).transpose(0, 1).flatten(1, 2)[None]
            for t, factor in zip(call[:2], factors, strict=True)
        ]
        layer = call.state.get("layer", 0)
        if layer in self.learnt:
            for running, tokens in zip(self.learnt[layer], sides, strict=True):
                running.take_in(tokens)
            return
        counts = self.query_clusters, self.key_clusters
        starts = [
            start(tokens, min(count, tokens.shape[2]), self.seed) for tokens, count in zip(sides, counts, strict=True)
        ]
        found = [Clusters.of(t, first, self.first_steps) for t, first in zip(sides, starts, strict=True)]
        self.learnt[layer] = [Running(clusters.centroids.cpu(), clusters.sizes.cpu()) for clusters in found]

    def save(self, path: str | Path) -> None:
        """Write ``layers.I.query`` and ``layers.I.key``, float32 [heads, clusters, head_dim], as safetensors.

        Raises:
            ValueError: nothing was learnt yet.
        """
        from safetensors.torch import save_file

        if not self.learnt:
            raise ValueError(f"{self.name} has seen no call: apply it to a pipeline and run that first")
        tensors = {
            f"layers.{layer}.{side}": running.centroids[0].contiguous()
            for layer, sides in self.learnt.items()
            for side, running in zip(SIDES, sides, strict=True)
        }
        save_file(tensors, path)
