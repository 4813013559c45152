"""Consecutive runs of tokens side by side."""

from __future__ import annotations

import torch
from torch import Tensor


def runs(tensor: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Consecutive runs of tokens side by side.

    Args:
        tensor: [batch, heads, tokens, …].
        lengths: int64 [runs], of ``tokens`` in all.

    Returns:
        [batch, heads, runs, longest, …] with 0 where a run has no more tokens, and bool [runs, longest] where it has.
    """
    index, there = slots_of(lengths)
    if there.all():
        return tensor.unflatten(2, there.shape), there
    spread = tensor.index_select(2, index.flatten()).unflatten(2, index.shape)
    spread[:, :, ~there] = 0
    return spread, there


def slots_of(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """int64 [runs, longest], the number of every token of consecutive runs, and bool like it, whether there is one."""
    slot = torch.arange(int(lengths.max()), device=lengths.device)
    index = (lengths.cumsum(0) - lengths)[:, None] + slot
    return index.clamp_max(int(lengths.sum()) - 1), slot < lengths[:, None]
