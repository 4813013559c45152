"""Attention and its LSE by PyTorch's own kernels, which hold no logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_efficient_attention

ALIGNED = 16
"""A bias of the kernel for GPUs begins its rows at multiples of so many numbers."""
Pair = tuple[Tensor, Tensor]


def fused(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None) -> Pair | None:
    """``dense_lse`` by one kernel; None where none serves, and where gradients are wanted, which these do not give."""
    graded = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    empty = 0 in (query.shape[2], key.shape[2])
    if graded or empty or value.shape[-1] != query.shape[-1]:
        return None
    if query.device.type == "cpu" and mask is None:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, scale=scale)
    served = query.device.type == "cuda" and torch.version.hip is None
    return efficient(query, key, value, scale, mask) if served else None


def efficient(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None) -> Pair | None:
    """By the memory-efficient kernel for NVIDIA's GPUs; None where it does not serve."""
    bias = None if mask is None else _bias(mask, query, key)
    if not can_use_efficient_attention(SDPAParams(query, key, value, bias, 0.0, False, False)):
        return None
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    output, lse, *_ = kernel(query, key, value, bias, True, scale=scale)
    lse = lse[..., : query.shape[2]]  # it is longer, up to a multiple of 32
    if mask is None:
        return output, lse
    nothing = ~mask.any(-1) if mask.dtype == torch.bool else (mask == -torch.inf).all(-1)
    nothing = nothing.expand(lse.shape)  # of such rows the kernel promises nothing
    return output.masked_fill(nothing[..., None], 0), lse.masked_fill(nothing, -torch.inf)


def _bias(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """What a mask, of any shape that broadcasts, adds to the logits: [batch, heads, queries, keys]."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)
    keys = key.shape[2]
    rows = F.pad(mask.to(query.dtype).expand(*mask.shape[:-1], keys), (0, -keys % ALIGNED))
    return rows[..., :keys].expand(*query.shape[:3], keys)
