"""What every backend is given, and how what it gives back lies in memory."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dattn.block_mask import BlockMask


class Problem(NamedTuple):
    """Attention to compute; checked by then.

    Attributes:
        query, key, value: [batch, heads, tokens, head_dim] in raster order, of one dtype.
        mask: who sees whom.
        scale: factor of the logits.
        key_mask: bool [batch, tokens], False for keys that nobody sees; or None.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: BlockMask
    scale: float
    key_mask: Tensor | None = None


def empty_like_model(tensor: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """An empty [batch, heads, tokens, …] whose memory runs as models have it: [batch, tokens, heads, …]."""
    return torch.empty_like(tensor.transpose(1, 2), dtype=dtype, memory_format=torch.contiguous_format).transpose(1, 2)
