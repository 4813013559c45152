"""The tail's pooled keys and values: means over runs of tokens inside a block."""

from __future__ import annotations

import torch
from torch import Tensor

from dattn.block_mask import BlockMask


def run_slots(mask: BlockMask, batch: int, group: int) -> Tensor:
    """int64 [key blocks, runs, run]: the raster position of every slot of every run, -1 where there is none."""
    layout = mask.key
    at = batch if layout.order.shape[0] > 1 else 0, group if layout.order.shape[1] > 1 else 0
    return layout.slots(*at, mask.block_size).unflatten(-1, (-1, mask.tail))


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
    there = (slots >= 0)[None].expand(key.shape[0], *slots.shape)
    index = slots.clamp_min(0)
    if key_mask is not None:
        there = there & key_mask[:, index]
    count = there.sum(-1)
    weight = there.to(key.dtype) / count.clamp_min(1)[..., None]
    pooled = [torch.einsum("bh...rd,b...r->bh...d", t[:, :, index], weight) for t in (key, value)]
    return pooled[0], pooled[1], count.to(torch.promote_types(key.dtype, torch.float32)).log()
