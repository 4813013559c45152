"""The weight that attention gives to pairs of blocks, on any device: logits of some pairs at a time, less the LSE."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from dattn.backends.problem import Problem
from dattn.heads import head_groups

HELD = 1 << 21  # weights at a time, a few MB


def block_weights(problem: Problem, lse: Tensor) -> tuple[Tensor, Tensor]:
    """See ``Backend.block_weights``."""
    mask, (batch, heads) = problem.mask, problem.query.shape[:2]
    largest, total = (lse.new_zeros(batch, heads, *mask.num_blocks) for _ in range(2))
    for row, (group, own) in product(range(batch), enumerate(head_groups(heads, mask.groups))):
        queries, keys = (side.slots(row, group, mask.block_size) for side in (mask.query, mask.key))
        visited = mask.full.rows(row, group, 0, *mask.num_blocks)
        for down, right in _portions(own.stop - own.start, queries, keys):
            weights = _weights(problem, lse, row, own, queries[down], keys[right]) * visited[down, None, right, None]
            largest[row, own, down, right] = weights.amax((2, 4))
            total[row, own, down, right] = weights.sum((2, 4))
    return largest, total


def _portions(heads: int, queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, slice]]:
    """Blocks of queries and of keys whose weights are held together."""
    size = queries.shape[1]
    down = max(1, HELD // (heads * size * keys.numel()))
    right = max(1, HELD // (heads * size * size * down))
    for first, start in product(range(0, len(queries), down), range(0, len(keys), right)):
        yield slice(first, first + down), slice(start, start + right)


def _weights(problem: Problem, lse: Tensor, row: int, heads: slice, queries: Tensor, keys: Tensor) -> Tensor:
    """[heads, query blocks, slots, key blocks, slots]: exp(q·k · scale - lse), 0 for slots that hold nothing."""
    q, k = (
        side[row, heads][:, slots.flatten()].to(lse.dtype)
        for side, slots in ((problem.query, queries), (problem.key, keys))
    )
    sums = lse[row, heads][:, queries.flatten(), None]
    there = keys.flatten() >= 0
    if problem.key_mask is not None:
        there = there & problem.key_mask[row, keys.flatten()]
    seen = (queries.flatten() >= 0)[:, None] & there & (sums > -torch.inf)
    logits = (q @ k.mT * problem.scale - sums).masked_fill(~seen, -torch.inf)
    return logits.exp().unflatten(2, keys.shape).unflatten(1, queries.shape)
