"""What every backend is given, and how what it gives back lies in memory."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dattn.block_mask import BlockMask


class Problem(NamedTuple):
    """Attention to compute.

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


def check_mask(problem: Problem) -> None:
    """See that the mask is of these tokens: by shapes and devices alone, so a GPU is asked nothing.

    Raises:
        ValueError: a mask of other tokens, or on another device.
    """
    query, mask = problem.query, problem.mask
    tokens, (queries, keys) = query.shape[2], (side.order.shape[-1] for side in (mask.query, mask.key))
    if queries != tokens or keys < tokens:
        raise ValueError(
            f"a mask of {queries} queries and {keys} keys for {tokens} tokens: it orders each of them; "
            "build it for their grid, pattern.mask(grid)"
        )
    strange = {t.device for t in (mask.query.order, mask.key.order, mask.full.index, mask.tiles)} - {query.device}
    if strange:
        raise ValueError(f"a mask on {strange.pop()}, the query on {query.device}: move it, mask.to(query.device)")


def empty_like_model(tensor: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """An empty [batch, heads, tokens, …] whose memory runs as models have it: [batch, tokens, heads, …]."""
    return torch.empty_like(tensor.transpose(1, 2), dtype=dtype, memory_format=torch.contiguous_format).transpose(1, 2)
