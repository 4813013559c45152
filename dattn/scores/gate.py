"""Scores of a learned gate, read from a file.

SeerAttention (Gao et al. 2024, arXiv 2410.13276) pools the queries of a block by their mean and the keys of a region by
their largest, smallest and mean channels, projects both, head by head, and softmaxes the products:

    softmax_j( W_q q̄_i · W_k (max k ⊕ min k ⊕ k̄)_j / √dim )

The original gates on queries and keys before their rotary embedding and rotates the projections by block; attention
sees them rotated, so this gate takes them as they are, and places are in what it pools.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dattn.patterns.base import check_count
from dattn.runs import runs
from dattn.scores.base import Score, Sides
from dattn.stored import check_file, layer_tensors


@dataclass(frozen=True)
class Gate(Score):
    """A trained gate; ``dattn.LearnedGate`` chooses by it.

    Args:
        path: a safetensors file with ``layers.I.query`` [heads, head_dim, dim] and ``layers.I.key``
            [heads, 3 · head_dim, dim] for every layer I.
        layer: the layer; set by ``at``.

    Raises:
        ValueError: no such file; when attention is computed, no such layer in it, or matrices of other shapes.
    """

    path: str
    layer: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", str(self.path))
        check_count("layer", self.layer, least=0)
        check_file("gate", self.path)

    @property
    def all_heads(self) -> bool:
        """True: each has its own matrices."""
        return True

    def at(self, layer: int) -> Gate:
        """That layer's matrices."""
        return replace(self, layer=layer)

    def of(self, sides: Sides) -> Tensor:
        """See ``Score.of``."""
        key = (self, sides.query.dtype, sides.query.device)
        read = lambda: layer_tensors("gate", self.path, self.layer, ("query", "key"), sides.query)
        query_matrix, key_matrix = sides.masks.keep(key, read)
        self._check(query_matrix, key_matrix, sides)
        return gate_logits(sides, query_matrix, key_matrix).softmax(-1)

    def _check(self, query: Tensor, key: Tensor, sides: Sides) -> None:
        """Raise ``ValueError`` unless the matrices are this layer's."""
        heads, width = sides.query.shape[1], sides.query.shape[-1]
        for side, matrix, channels in (("query", query, width), ("key", key, 3 * width)):
            if matrix.ndim != 3 or matrix.shape[:2] != (heads, channels):
                raise ValueError(
                    f"gate {self.path}: layers.{self.layer}.{side} is {tuple(matrix.shape)}, "
                    f"the layer has {heads} heads of {width}: give one of [{heads}, {channels}, dim]"
                )


def gate_logits(sides: Sides, query_matrix: Tensor, key_matrix: Tensor) -> Tensor:
    """[batch, heads, blocks, regions]: the gate's logits, differentiable in its matrices; see ``Gate`` for these."""
    spread, there = runs(sides.key, sides.partition.lengths)
    absent = ~there[..., None]
    pooled = [
        spread.masked_fill(absent, -torch.inf).amax(3),
        spread.masked_fill(absent, torch.inf).amin(3),
        sides.key_means(),
    ]
    queries, keys = sides.query_means() @ query_matrix, torch.cat(pooled, -1) @ key_matrix
    return queries @ keys.mT * query_matrix.shape[-1] ** -0.5
