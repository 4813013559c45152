"""Attention over disjoint sets of keys, merged by their log-sum-exp as if it were one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dattn.control.fused import fused

PAIRS_AT_ONCE = 2**26
"""Logits of at most so many pairs, of all samples and heads, are held at once: memory is not tokens²."""


def dense_lse(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Dense attention and its LSE, by one kernel or a few rows at a time; differentiable.

    Args:
        query: [batch, heads, queries, head_dim].
        key, value: [batch, heads, keys, head_dim].
        mask: bool (True is seen) or added to the logits, broadcastable to [batch, heads, queries, keys]; or None.

    Returns:
        [batch, heads, queries, head_dim], and [batch, heads, queries] in float32 or wider. A row that sees nothing
        gives 0 and -inf.
    """
    found = fused(query, key, value, scale, mask)
    if found is not None:
        return found
    parts = [_summed(logits, value) for logits in logits_in_parts(query, key, scale, mask)]
    outputs, sums = zip(*parts, strict=True)
    return torch.cat(outputs, 2), torch.cat(sums, 2)


def logits_in_parts(query: Tensor, key: Tensor, scale: float, mask: Tensor | None) -> Iterator[Tensor]:
    """Logits [batch, heads, some queries, keys] in float32 or wider, as many rows at a time as may be held."""
    wide = torch.promote_types(query.dtype, torch.float32)
    keys = key.to(wide).mT
    rows = max(1, PAIRS_AT_ONCE // max(1, len(query) * query.shape[1] * key.shape[2]))
    for first in range(0, query.shape[2], rows):
        part = slice(first, first + rows)
        logits = (query[:, :, part].to(wide) * scale) @ keys  # as precise as PyTorch's kernels
        own = mask if mask is None or mask.shape[-2] == 1 else mask[..., part, :]
        if own is not None:
            logits = logits.masked_fill(~own, -torch.inf) if own.dtype == torch.bool else logits + own
        yield logits


def _summed(logits: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Values weighted by the softmax of logits, and their LSE."""
    lse = logits.logsumexp(-1)
    weights = (logits - lse.masked_fill(lse == -torch.inf, 0)[..., None]).exp()
    return weights.to(value.dtype) @ value, lse


def merge(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Two pairs of output and LSE over disjoint keys as one pair over both."""
    (output, lse), (more, others) = one, other
    total = torch.logaddexp(lse, others)
    safe = total.masked_fill(total == -torch.inf, 0)
    share, rest = ((part - safe).exp()[..., None] for part in (lse, others))
    return (output * share + more * rest).to(output.dtype), total
