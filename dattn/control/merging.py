"""Attention over disjoint sets of keys, merged by their log-sum-exp as if it were one."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS_AT_ONCE = 2**22
"""Logits of at most so many pairs per sample and head are held at once, so that memory is not tokens²."""


def dense_lse(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Dense attention and its LSE, a few rows at a time; differentiable.

    Args:
        query: [batch, heads, queries, head_dim].
        key, value: [batch, heads, keys, head_dim].
        mask: bool (True is seen) or added to the logits, broadcastable to [batch, heads, queries, keys]; or None.

    Returns:
        [batch, heads, queries, head_dim], and [batch, heads, queries] in float32 or wider. A row that sees nothing
        gives 0 and -inf.
    """
    rows = max(1, ROWS_AT_ONCE // max(1, key.shape[2]))
    parts = []
    for first in range(0, query.shape[2], rows):
        part = slice(first, first + rows)
        own = mask if mask is None or mask.shape[-2] == 1 else mask[..., part, :]
        parts.append(_dense_lse(query[:, :, part], key, value, scale, own))
    outputs, sums = zip(*parts, strict=True)
    return torch.cat(outputs, 2), torch.cat(sums, 2)


def _dense_lse(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(query.dtype, torch.float32)
    logits = (query @ key.mT).to(wide) * scale
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
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
