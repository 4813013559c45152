"""Pooled keys and values, of the tail and of levels: means over runs of tokens inside a block."""

from __future__ import annotations

import torch
from torch import Tensor

from dattn.block_mask import BlockMask


def run_slots(mask: BlockMask, batch: int, group: int, run: int) -> Tensor:
    """int64 [key blocks, runs, run]: the raster position of every slot of every run, -1 where there is none."""
    return mask.key.slots(batch, group, mask.block_size).unflatten(-1, (-1, run))


def pool_runs(key: Tensor, value: Tensor, slots: Tensor, key_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Means of keys and values over runs.

    Args:
        key, value: [batch, heads, tokens, head_dim].
        slots: int64 [..., run], from ``run_slots``.
        key_mask: bool [batch, tokens] or None.

    Returns:
        Mean keys and values [batch, heads, ..., head_dim], and [batch, ...] ln n, where n counts the run's
        tokens that exist and that ``key_mask`` allows; -inf where there are none.
    """
    index, weight, count = members(slots, key_mask, key)
    pooled = [torch.einsum("bh...rd,b...r->bh...d", t[:, :, index], weight) for t in (key, value)]
    return pooled[0], pooled[1], count.to(torch.promote_types(key.dtype, torch.float32)).log()


def unpool_runs(grad: Tensor, slots: Tensor, key_mask: Tensor | None, tokens: int) -> Tensor:
    """The gradient of keys or values [batch, heads, tokens, head_dim] from that of their means, as ``pool_runs``
    gives them."""
    index, weight, _ = members(slots, key_mask, grad)
    parts = grad[..., None, :] * weight[:, None, ..., None]
    out = grad.new_zeros(*grad.shape[:2], tokens, grad.shape[-1])
    return out.index_add_(2, index.flatten(), parts.flatten(2, -2))


def members(slots: Tensor, key_mask: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Positions [..., run], their weights in the mean [batch, ..., run] (0 where there is none), and n."""
    there = (slots >= 0)[None].expand(like.shape[0], *slots.shape)
    index = slots.clamp_min(0)
    if key_mask is not None:
        there = there & key_mask[:, index]
    count = there.sum(-1)
    return index, there.to(like.dtype) / count.clamp_min(1)[..., None], count
