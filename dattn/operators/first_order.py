"""A first-order tail: what a mask skips is expanded around the mean of its keys, values included.

PISA (2026, arXiv 2602.01077), on any pattern. For a run of n skipped keys with means k̄ and v̄, and s the scale,

    Σ exp(s q·k)   ≈ n exp(s q·k̄)                      (the first order vanishes: the k - k̄ sum to 0)
    Σ exp(s q·k) v ≈ n exp(s q·k̄) (v̄ + s q H)           H = 1/n Σ (k - k̄)ᵀ (v - v̄)

with one H for all runs of a head, their mean. It costs a product of head_dim x head_dim for every query; ``tail`` of a
pattern is the same without H.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dattn.backends.pooling import members
from dattn.grid import TokenGrid
from dattn.operators.own_tail import OwnTail, Pooled, Runs
from dattn.spec import Call


@dataclass(frozen=True)
class FirstOrder(OwnTail):
    """PISA's tail on a pattern.

    Args:
        pattern: static or dynamic, without a tail of its own.
        tail: tokens over which keys and values are averaged: True (a block), 16, 32, 64 or 128.

    Raises:
        ValueError: no such pattern, or one that has a tail; a tail that is not one of these.
    """

    def pool(self, runs: Runs, call: Call) -> Pooled:
        """Means, ln n, and the mean slope."""
        index, weight, count = members(runs.slots, call.key_mask, call.key)
        k, v = (t[:, :, index] for t in (call.key, call.value))
        weight = weight[:, None, ..., None]
        key, value = ((t * weight).sum(-2) for t in (k, v))
        there = (count > 0).sum((1, 2)).clamp_min(1).view(-1, 1, 1, 1)
        slope = torch.einsum("bhcrnd,bhcrne->bhde", (k - key[..., None, :]) * weight, v) / there
        log_count = count.to(key.dtype).log().flatten(1)[:, None, None]
        return Pooled(runs, key.flatten(2, 3), value.flatten(2, 3), log_count, slope)

    def extra(self, grid: TokenGrid, head_dim: int) -> float:
        """head_dim more for the slope."""
        return head_dim / grid.tokens
