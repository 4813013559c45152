"""What every score is: how much the queries of a block are expected to attend to the keys of a region."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dattn.block_mask import MaskCache
from dattn.on_cpu import at_once
from dattn.orders.base import Partition
from dattn.spec import Named
from dattn.sums import in_order, means, wide

CHUNK = 1 << 24  # numbers that a score holds at a time beyond its inputs and its result


@dataclass(frozen=True, eq=False)
class Sides:
    """What there is to score.

    Attributes:
        query_tokens, key_tokens: [batch, heads, visual, head_dim] in raster order, as the call has them.
        partition: the query blocks and the key regions.
        masks: a cache of what is worked out once.
        factor: logits are the products of queries and keys over √head_dim, times this.
        kernels: whether they lie where our kernels run, in 16 bits, which these are made for.
    """

    query_tokens: Tensor
    key_tokens: Tensor
    partition: Partition
    masks: MaskCache
    factor: float = 1.0
    kernels: bool = False

    @cached_property
    def queries(self) -> Tensor:
        """[batch, heads, visual, head_dim]: the queries block by block, as the call has them."""
        return self._in_order(self.query_tokens, self.partition.query)

    @cached_property
    def keys(self) -> Tensor:
        """[batch, heads, visual, head_dim]: the keys region by region, as the call has them."""
        return self._in_order(self.key_tokens, self.partition.key)

    @cached_property
    def query(self) -> Tensor:
        """``queries`` times the factor, float32 or float64: logits are their products with keys over √head_dim."""
        query = wide(self.queries)
        return query if self.factor == 1 else query * self.factor

    @cached_property
    def key(self) -> Tensor:
        """``keys`` in float32 or float64."""
        return wide(self.keys)

    def _in_order(self, tokens: Tensor, order: Tensor) -> Tensor:
        return tokens if self.partition.in_place else in_order(tokens, order)

    def query_means(self) -> Tensor:
        """[batch, heads, blocks, head_dim]: the mean query of every block."""
        found = means(self.query_tokens, self.partition.blocks, self.partition.query)
        return found if self.factor == 1 else found * self.factor

    def key_means(self) -> Tensor:
        """[batch, heads, regions, head_dim]: the mean key of every region."""
        return means(self.key_tokens, self.partition.lengths, self.partition.key)

    def of(self, query: Tensor, key: Tensor) -> Sides:
        """The same blocks and regions of other heads, made of ``query`` and ``key``: in order already."""
        return Sides(query, key, self.partition.put_in_place(), self.masks)


@dataclass(frozen=True)
class Score(Named):
    """Base of block scores. A subclass is one small file: its fields and ``of``."""

    def of(self, sides: Sides) -> Tensor:
        """Scores [batch, heads or 1, blocks, regions] of 0 or more, larger is better; rows sum to 1 at most."""
        raise NotImplementedError

    @property
    def all_heads(self) -> bool:
        """Whether it looks at all heads together, or has something stored for each."""
        return False

    def at(self, layer: int) -> Score:
        """The score in one layer."""
        return self

    def must(self, sides: Sides) -> Tensor | None:
        """bool, broadcast over [batch, heads, blocks, regions]: pairs that are kept whatever their scores; or None."""
        return None


def logits_of(queries: Tensor, keys: Tensor, there: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Logits of all queries with all keys, some blocks at a time, so that ``CHUNK`` numbers are held.

    Args:
        queries: [batch, heads, blocks, in a block, head_dim].
        keys: [batch, heads, regions, in a region, head_dim].
        there: bool [regions, in a region], which keys there are; others get -inf.

    Yields:
        Which blocks, and their logits [batch, heads, blocks · in a block, regions · in a region].
    """
    flat, absent = keys.flatten(2, 3).mT * queries.shape[-1] ** -0.5, ~there.flatten()
    step = max(1, at_once(CHUNK, flat.device) // (flat[:, :, 0].numel() * queries.shape[3]))
    for first in range(0, queries.shape[2], step):
        logits = queries[:, :, first : first + step].flatten(2, 3) @ flat
        yield slice(first, first + step), logits.masked_fill_(absent, -torch.inf) if absent.any() else logits
