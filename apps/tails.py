"""Ways to stand in for the blocks that a mask skips, written out naively, for ``dattn probe`` to compare.

A skipped block of n tokens contributes Σ exp(s q·k) to a query's denominator and Σ exp(s q·k) v to its numerator. With
means k̄, v̄ over a run of tokens and C = Σ (k - k̄)ᵀ (v - v̄) over them:

    zeroth order   n exp(s q·k̄)   and   n exp(s q·k̄) v̄                  ``tail`` of every pattern
    first order    n exp(s q·k̄)   and   n exp(s q·k̄) (v̄ + s q C / n)    PISA (2026, arXiv 2602.01077) takes one C / n,
                                                                         the mean over all blocks
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dattn.attention import masks_in
from dattn.block_mask import BlockMask, MaskCache
from dattn.grid import TokenGrid
from dattn.spec import Call, Spec, TorchOperator


@dataclass(frozen=True)
class NaiveTail(TorchOperator):
    """A static pattern of whole blocks with a tail; slow, and for one sample after the other.

    Args:
        pattern: the pattern, without a tail of its own.
        near: tokens of a run in skipped blocks at most ``reach`` blocks from the query's.
        far: tokens of a run in those further away; ``near`` and ``far`` divide the block.
        reach: how far near is; 0 makes all far.
        order: 0; 1 for a C of each run's own; "mean" for one C, the mean over all runs.
    """

    pattern: Spec
    far: int
    near: int = 16
    reach: int = 0
    order: int | str = 0

    @property
    def title(self) -> str:
        """As it is named in a table."""
        runs = f"{self.near} to {self.reach} blocks, then {self.far}" if self.reach else f"{self.far}"
        order = {0: "", 1: ", first order", "mean": ", first order by the mean"}[self.order]
        return f"{self.pattern} + tail {runs}{order}"

    def compute(self, call: Call) -> tuple[Tensor, None]:
        """Query block after query block; there is no LSE."""
        query, key, value = call[:3]
        if call.key_mask is not None:
            raise ValueError("key_mask: a naive tail has none; leave it out")
        mask = masks_in(call.state).get(self.pattern, call.grid, query.device)
        output = torch.empty_like(value)
        slots, visited = mask.key.slots(0, 0, mask.block_size), self._visited(mask)
        pools = {run: _pool(key, value, slots, run) for run in (self.near, self.far)}
        for row, seen in enumerate(visited):
            rows = _real(slots[row])
            keys = _real(slots[seen])
            runs = [self._runs(pools[run], chosen & ~seen) for run, chosen in self._near_and_far(row, mask)]
            means = [torch.cat(parts, 2) for parts in zip(*runs, strict=True)]
            output[:, :, rows] = self._row(query[:, :, rows], key[:, :, keys], value[:, :, keys], means, call.scale)
        return output, None

    def _visited(self, mask: BlockMask) -> Tensor:
        if mask.partial.index.numel() or mask.groups > 1:
            raise ValueError(f"{self.pattern}: a naive tail is for patterns of whole blocks that all heads share")
        return mask.full.rows(0, 0, 0, *mask.num_blocks) | ~mask.key.pooled

    def _near_and_far(self, row: int, mask: BlockMask) -> list[tuple[int, Tensor]]:
        near = (torch.arange(mask.num_blocks[1], device=mask.tile.device) - row).abs() <= self.reach
        return [(self.near, near & (self.reach > 0)), (self.far, ~near | (self.reach == 0))]

    def _runs(self, pool: list[Tensor], blocks: Tensor) -> list[Tensor]:
        """The runs of the chosen blocks: [batch, heads, runs, …] of k̄, v̄, ln n and C / n."""
        return [t[:, :, blocks].flatten(2, 3) for t in pool]

    def _row(self, query: Tensor, key: Tensor, value: Tensor, means: list[Tensor], scale: float) -> Tensor:
        mean_key, mean_value, log_count, slope = means
        logits = torch.cat([query @ key.mT * scale, query @ mean_key.mT * scale + log_count[..., None, :, 0]], -1)
        weights = logits.softmax(-1)
        pooled = weights[..., key.shape[2] :]
        out = weights[..., : key.shape[2]] @ value + pooled @ mean_value
        if self.order == "mean":
            slope = slope.mean(2, keepdim=True)
        if self.order != 0 and pooled.shape[-1]:
            moved = torch.einsum("bhqd,bhrde->bhqre", query * scale, slope)
            out = out + (pooled[..., None] * moved).sum(-2)
        return out

    def cost(self, grid: TokenGrid, head_dim: int, masks: MaskCache) -> float:
        """Blocks and pooled keys; the first order of every run costs as much as head_dim keys."""
        mask = masks.get(self.pattern, grid, "cpu")
        visited, extra = self._visited(mask), {0: 0, 1: head_dim, "mean": 0}[self.order]
        keys = 0.0
        for row in range(len(visited)):
            for run, chosen in self._near_and_far(row, mask):
                keys += int((chosen & ~visited[row]).sum()) * (mask.block_size // run) * (1 + extra)
        return mask.density + keys / len(visited) / grid.tokens


def _real(slots: Tensor) -> Tensor:
    return slots.flatten()[slots.flatten() >= 0]


def _pool(key: Tensor, value: Tensor, slots: Tensor, run: int) -> list[Tensor]:
    """[batch, heads, blocks, runs, …] of every run: k̄, v̄, ln n [1], C / n [head_dim, head_dim]; ln 0 where none."""
    members = slots.unflatten(1, (-1, run))
    there = (members >= 0).to(key.dtype)
    count = there.sum(-1)
    k, v = (t[:, :, members.clamp_min(0)] for t in (key, value))
    weight = (there / count.clamp_min(1)[..., None])[..., None]
    mean_key, mean_value = ((t * weight).sum(-2) for t in (k, v))
    apart = [(t - mean[..., None, :]) for t, mean in ((k, mean_key), (v, mean_value))]
    slope = torch.einsum("bhcrnd,bhcrne->bhcrde", apart[0] * weight, apart[1])
    log_count = count.log()[None, None, ..., None].expand(*mean_key.shape[:4], 1)
    return [mean_key, mean_value, log_count, slope]


def variants(pattern: Any, block_size: int) -> list[NaiveTail]:
    """The tails to compare on a pattern whose blocks have this size."""
    runs = [run for run in (16, 32, 64, 128) if run <= block_size]
    tails = [NaiveTail(pattern, run) for run in runs]
    tails += [NaiveTail(pattern, block_size, near=16, reach=reach) for reach in (8, 24) if block_size > 16]
    tails += [NaiveTail(pattern, run, order=order) for run in runs[::-2] for order in ("mean", 1)]
    return tails
