"""Clustered: queries and keys sorted by what they say, so that blocks hold tokens that attend alike.

SVG2 (Yang et al., NeurIPS 2025, arXiv 2505.18875), head by head, on queries and keys as attention sees them:

1. k-means of the queries, and of the keys; the next step of the denoising loop starts from this one's centroids.
2. P_ij = softmax_j(q̄_i · k̄_j / √d + ln |K_j|), and every query cluster keeps the fewest key clusters that hold
   ``top_p`` of its row, at least ``floor`` of them.
3. Tokens are laid out cluster by cluster, and attention visits the kept pairs of clusters.

With ``tail=True`` a skipped cluster counts |K_j| · exp(q · k̄_j) with its mean value, in the same softmax (SVG-EAR,
arXiv 2603.08982), one mean per block of it. ``route="error"`` is the choice that goes with it: a query cluster computes
no more keys than in step 2 (but one cluster), of those clusters whose mean errs most for each of their keys,

    E_ij / |K_j|          E_ij = Σ_{t in K_j} (exp(q̄_i · k̄_j / √d) - exp(q̄_i · k_t / √d))²
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import pad

from dattn.attention import masks_in
from dattn.block_mask import BlockMask, tail_run
from dattn.clusters import Clusters, start
from dattn.grid import Layout, TokenGrid, text_blocks, with_text
from dattn.patterns.base import check_count
from dattn.patterns.dynamic import Dynamic, Given
from dattn.patterns.selected import check_block
from dattn.reuse import for_steps, held_by
from dattn.selection import TopP, check_share, to_lists, whole_blocks
from dattn.spec import State, check_within, together
from dattn.stored import check_file, layer_tensors

CENTROIDS = "centroids"
COUNTS = "query_clusters", "key_clusters"


@dataclass(frozen=True)
class Clustered(Dynamic):
    """SVG2: attention between clusters of queries and clusters of keys.

    Args:
        query_clusters: clusters of queries in every head; 300 for Wan 720p, 200 for HunyuanVideo 480p are published.
        key_clusters: clusters of keys; 1000 and 500 to go with them.
        top_p: share of a query cluster's estimated weight that it keeps.
        floor: share of the key clusters that it keeps at least.
        first_steps: rounds of k-means where there are no centroids yet.
        steps: rounds in every further step of a denoising call.
        route: how pairs are chosen: by "weight", or by "error", for a tail.
        reuse: keep clusters and lists for so many steps; the tail's means are always those of the moment.
        seed: of the first centroids.
        centroids: instead of k-means, a file of centroids that ``dattn.Calibration`` wrote: tokens go to the nearest,
            and numbers of clusters and steps say nothing.
        layer: whose centroids; set by ``at``.
        block_size: 16, 32, 64 or 128.
        tail: pool what is skipped: False, True (one key per block of a cluster) or a run of 16 … block size tokens.

    Raises:
        ValueError: a field outside these bounds; more clusters than visual tokens, when the grid is met.
    """

    query_clusters: int = 300
    key_clusters: int = 1000
    top_p: float = 0.9
    floor: float = 0.1
    route: str = "weight"
    first_steps: int = 50
    steps: int = 2
    reuse: int = 1
    seed: int = 0
    centroids: str | None = None
    layer: int = 0
    block_size: int = 128
    tail: bool | int = False

    def __post_init__(self) -> None:
        if self.centroids is not None:
            object.__setattr__(self, "centroids", str(self.centroids))
            check_file("centroids", str(self.centroids))
        for name in ("query_clusters", "key_clusters", "first_steps", "steps", "reuse"):
            check_count(name, getattr(self, name))
        check_count("layer", self.layer, least=0)
        if self.route not in ("weight", "error"):
            raise ValueError(f"route={self.route!r}: choose weight or error")
        if self.route == "error" and not self.tail:
            raise ValueError("route='error' without a tail: it leaves to means what they say well; give tail=True")
        check_share("top_p", self.top_p)
        check_within("floor", self.floor, 0, 1)
        check_block(self.block_size, self.tail)

    def at(self, layer: int, layers: int, step: int, steps: int) -> Clustered:
        """With the centroids of that layer, where they are stored."""
        return self if self.centroids is None else replace(self, layer=layer)

    def fit(self, grid: TokenGrid) -> tuple[Clustered, str | None]:
        """At most as many clusters as there are visual tokens."""
        if self.centroids is not None or max(self.query_clusters, self.key_clusters) <= grid.visual:
            return self, None
        counts = [min(n, grid.visual) for n in (self.query_clusters, self.key_clusters)]
        return replace(self, query_clusters=counts[0], key_clusters=counts[1]), f"clamped to {counts} clusters"

    def for_heads(self, heads: tuple[int, ...], of: int) -> Clustered:
        """Itself, where no centroids are stored."""
        if self.centroids is not None:
            raise together(self)
        return self

    def build(self, given: Given) -> BlockMask:
        """See ``Dynamic.build``."""
        return for_steps(given.state, (self, *given.terms), self.reuse, lambda: self._sorted(given))

    def _sorted(self, given: Given) -> BlockMask:
        """A mask over new clusters."""
        grid, visual = given.grid, slice(given.grid.text_before, given.grid.text_before + given.grid.visual)
        sides = [side[:, :, visual].contiguous() for side in given.wide()]
        queries, keys = self._clusters(sides, given)
        kept = TopP(self.top_p, floor=self.floor).kept(scores(queries, keys))
        if self.route == "error":
            kept = by_error(kept, queries, keys, sides[1])
        (rows, own), (columns, other) = (self._layout(side, grid) for side in (queries, keys))
        batch, head = torch.meshgrid(*(torch.arange(n, device=kept.device) for n in kept.shape[:2]), indexing="ij")
        blocks = kept[batch[..., None, None], head[..., None, None], own[..., None], other[..., None, :]]
        before, after = text_blocks(grid, self.block_size)
        blocks = pad(blocks, (before, after, before, after), value=True)
        blocks &= (rows.lengths > 0)[..., None] & (columns.lengths > 0)[..., None, :]
        return whole_blocks(rows, columns, to_lists(blocks), self.block_size, tail_run(self.tail, self.block_size))

    def _clusters(self, sides: list[Tensor], given: Given) -> list[Clusters]:
        """Those of queries and keys, from stored centroids or those of the step before where there are any.

        A schedule may choose another share of the same clusters, step by step.
        """
        state = given.state
        if self.centroids is not None:
            stored = masks_in(state).keep((self, sides[0].dtype, sides[0].device), lambda: self._stored(sides[0]))
            return [Clusters.of(t, centroids, 1) for t, centroids in zip(sides, stored, strict=True)]
        before, counts = state.get(CENTROIDS), {name: getattr(self, name) for name in COUNTS}
        terms = tuple(counts.values()), self.seed, *given.terms
        if before is not None and before[0] == terms:
            found = [Clusters.of(t, old, self.steps) for t, old in zip(sides, before[1:], strict=True)]
        else:
            starts = [start(t, n, self.seed, name) for t, (name, n) in zip(sides, counts.items(), strict=True)]
            found = [Clusters.of(t, first, self.first_steps) for t, first in zip(sides, starts, strict=True)]
        state[CENTROIDS] = terms, *(clusters.centroids for clusters in found)
        return found

    def _stored(self, like: Tensor) -> list[Tensor]:
        """Centroids of queries and keys [1, heads, clusters, head_dim] from the file."""
        assert self.centroids is not None
        heads, width = like.shape[1], like.shape[-1]
        found = layer_tensors("centroids", self.centroids, self.layer, ("query", "key"), like)
        for side in found:
            if side.ndim != 3 or side.shape[0] != heads or side.shape[-1] != width:
                raise ValueError(
                    f"centroids {self.centroids}: those of layer {self.layer} are {tuple(side.shape)}, the layer has "
                    f"{heads} heads of {width}: give [{heads}, clusters, {width}]"
                )
        return [side[None] for side in found]

    def _layout(self, clusters: Clusters, grid: TokenGrid) -> tuple[Layout, Tensor]:
        """A side cluster by cluster, with the text around it, and the cluster of every visual block."""
        order, lengths, cluster = clusters.blocks(self.block_size)
        return with_text(grid, order, lengths, self.block_size), cluster

    def held(self, state: State) -> int:
        """The centroids, and lists that serve several steps."""
        kept = state.get(CENTROIDS, (None,))[1:]
        return held_by(state) + sum(t.numel() * t.element_size() for t in kept)


def scores(queries: Clusters, keys: Clusters) -> Tensor:
    """[batch, heads, query clusters, key clusters]: attention among the means, every cluster with its size."""
    logits = queries.centroids @ keys.centroids.mT * queries.centroids.shape[-1] ** -0.5
    return (logits + keys.sizes.to(logits.dtype).log()[..., None, :]).softmax(-1)


def by_error(kept: Tensor, queries: Clusters, keys: Clusters, tokens: Tensor) -> Tensor:
    """The same budget of keys for every query cluster, spent where means err most; at least one cluster of keys.

    Args:
        kept: bool [batch, heads, query clusters, key clusters], whose keys are the budget.
        tokens: [batch, heads, tokens, head_dim], the keys.
    """
    scale, chosen = tokens.shape[-1] ** -0.5, torch.empty_like(kept)
    for at in product(*map(range, kept.shape[:2])):  # head by head: errors are query clusters x tokens
        logits = queries.centroids[at] @ tokens[at].mT * scale
        means, top = queries.centroids[at] @ keys.centroids[at].mT * scale, logits.amax(-1, keepdim=True)
        gaps = ((means - top).exp().index_select(1, keys.labels[at]) - (logits - top).exp()).square()
        order, sizes = keys.labels[at].argsort(stable=True), keys.sizes[at]
        errors = torch.segment_reduce(gaps.mT[order], "sum", lengths=sizes).mT / sizes.clamp_min(1)
        ranking = errors.sort(dim=-1, descending=True, stable=True).indices
        spent, budget = sizes[ranking].cumsum(-1), (kept[at] * sizes).sum(-1, keepdim=True)
        within = spent <= budget
        within[:, 0] = True
        chosen[at] = torch.zeros_like(within).scatter_(-1, ranking, within)
    return chosen
