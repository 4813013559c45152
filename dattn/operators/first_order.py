"""A first-order tail: what a mask skips is expanded around the mean of its keys, values included.

PISA (2026, arXiv 2602.01077), on any static pattern. For a run of n skipped keys with means k̄ and v̄, and s the scale,

    Σ exp(s q·k)   ≈ n exp(s q·k̄)                      (the first order vanishes: the k - k̄ sum to 0)
    Σ exp(s q·k) v ≈ n exp(s q·k̄) (v̄ + s q H)           H = 1/n Σ (k - k̄)ᵀ (v - v̄)

with one H for all runs of a head, their mean. It costs a product of head_dim x head_dim for every query; ``tail`` of a
pattern is the same without H.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dattn.attention import attend, masks_in
from dattn.backends.pooling import members, run_slots
from dattn.block_mask import BlockMask, MaskCache, tail_run
from dattn.grid import TokenGrid
from dattn.heads import head_groups
from dattn.operators.per_head import cost_of
from dattn.patterns.base import check_tail
from dattn.spec import Call, OverPattern

CHUNK = 1 << 24  # logits of pooled keys held at a time


@dataclass(frozen=True)
class FirstOrder(OverPattern):
    """PISA's tail on a static pattern.

    Args:
        pattern: the pattern, without a tail of its own.
        tail: tokens over which keys and values are averaged: True (a block), 16, 32, 64 or 128.

    Raises:
        ValueError: a pattern that is not static or has a tail, or a tail that is not one of these.
    """

    tail: bool | int = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tail(self.tail)
        if self.tail is False or getattr(self.pattern, "tail", False):
            raise ValueError(f"tail={self.tail!r} on {self.pattern}: give the tail here, and none to the pattern")

    def compute(self, call: Call) -> tuple[Tensor, Tensor]:
        """The pattern, and the tail merged with it by their log-sums."""
        masks, (query, key, value) = masks_in(call.state), call[:3]
        mask = masks.get(self.pattern, call.grid, query.device)
        if mask.tail:
            raise ValueError(f"{self.pattern} in FirstOrder: it has a tail of its own; leave that out")
        options = {**call.options, "state": {"masks": masks}, "return_lse": True}
        output, lse = attend(query, key, value, self.pattern, call.grid, **options)
        outputs, sums = [], []
        for group, heads in enumerate(head_groups(query.shape[1], mask.groups)):
            q, k, v, kept, known = (t[:, heads].to(lse.dtype) for t in (query, key, value, output, lse))
            tail = _Tail.of(self._runs(mask, group), k, v, call.key_mask)
            merged = [tail.merge(q, kept, known, rows, call.scale) for rows in tail.chunks(q)]
            outputs.append(torch.cat([out for out, _ in merged], 2))
            sums.append(torch.cat([total for _, total in merged], 2))
        return torch.cat(outputs, 1).to(query.dtype), torch.cat(sums, 1)

    def cost(self, grid: TokenGrid, head_dim: int, masks: MaskCache) -> float:
        """The pattern's, the pooled keys', and head_dim more for the slope."""
        pooled = self._with_tail(masks.get(self.pattern, grid, "cpu")).tail_share
        return cost_of(self.pattern, grid, head_dim, masks) + pooled + head_dim / grid.tokens

    def _runs(self, mask: BlockMask, group: int) -> _Runs:
        """The runs of a head group, kept with the mask."""
        key = "first order", self.tail, group
        if key not in mask.derived:
            mask.derived[key] = _Runs.of(self._with_tail(mask), group)
        return mask.derived[key]

    def _with_tail(self, mask: BlockMask) -> BlockMask:
        return replace(mask, tail=tail_run(self.tail, mask.block_size))


@dataclass(frozen=True, eq=False)
class _Runs:
    """Which runs a head group has, and who skips them.

    Attributes:
        slots: int64 [visual key blocks, runs, run], raster positions, -1 where there is no token.
        skipped: bool [query blocks, all runs].
        block: int64 [tokens], the query block of every token.
    """

    slots: Tensor
    skipped: Tensor
    block: Tensor

    @classmethod
    def of(cls, mask: BlockMask, group: int) -> _Runs:
        """Those of a mask with a tail."""
        slots = run_slots(mask, 0, group)[mask.key.pooled]
        visited = mask.full.rows(0, group, 0, *mask.num_blocks) | mask.partial.rows(0, group, 0, *mask.num_blocks)
        skipped = ~visited[:, mask.key.pooled].repeat_interleave(slots.shape[1], 1)
        return cls(slots, skipped, mask.query_blocks(group))


@dataclass(frozen=True, eq=False)
class _Tail:
    """The runs of a head group, pooled.

    Attributes:
        runs: which they are.
        key, value: [batch, heads, runs, head_dim], the means.
        log_count: [batch, 1, 1, runs], ln n.
        slope: H, [batch, heads, head_dim, head_dim].
    """

    runs: _Runs
    key: Tensor
    value: Tensor
    log_count: Tensor
    slope: Tensor

    @classmethod
    def of(cls, runs: _Runs, key: Tensor, value: Tensor, key_mask: Tensor | None) -> _Tail:
        """Pool keys [batch, heads, tokens, head_dim] and values alike."""
        index, weight, count = members(runs.slots, key_mask, key)
        k, v = (t[:, :, index] for t in (key, value))
        weight = weight[:, None, ..., None]
        mean_key, mean_value = ((t * weight).sum(-2) for t in (k, v))
        there = (count > 0).sum((1, 2)).clamp_min(1).view(-1, 1, 1, 1)
        slope = torch.einsum("bhcrnd,bhcrne->bhde", (k - mean_key[..., None, :]) * weight, v) / there
        log_count = count.to(key.dtype).log().flatten(1)[:, None, None]
        return cls(runs, mean_key.flatten(2, 3), mean_value.flatten(2, 3), log_count, slope)

    def chunks(self, query: Tensor) -> list[slice]:
        """Runs of tokens whose logits are ``CHUNK`` numbers at most, or one token's."""
        tokens, step = query.shape[2], max(1, CHUNK // (query.shape[:2].numel() * max(1, self.key.shape[2])))
        return [slice(first, min(first + step, tokens)) for first in range(0, tokens, step)]

    def merge(self, query: Tensor, kept: Tensor, lse: Tensor, rows: slice, scale: float) -> tuple[Tensor, Tensor]:
        """Output and LSE of the tokens ``rows`` with their tail, from those without."""
        query, kept, lse = (t[:, :, rows] for t in (query, kept, lse))
        seen = self.runs.skipped[self.runs.block[rows]]
        logits = (query @ self.key.mT * scale + self.log_count).masked_fill(~seen, -torch.inf)
        blind = (logits == -torch.inf).all(-1)
        sums = logits.masked_fill(blind[..., None], 0).logsumexp(-1).masked_fill(blind, -torch.inf)
        nothing = blind & (lse == -torch.inf)
        known = torch.logaddexp(lse.masked_fill(nothing, 0), sums.masked_fill(nothing, 0))
        total = known.masked_fill(nothing, -torch.inf)
        weights = (logits - known[..., None]).exp()
        share = weights.sum(-1, keepdim=True)
        tail = weights @ self.value + share * (scale * query @ self.slope)
        return (1 - share) * kept + tail, total
