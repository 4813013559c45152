"""Which key blocks a query block visits, chosen from block scores; shared by every pattern that looks at q and k.

Scores are [batch or 1, groups or 1, query blocks, key blocks], larger is better; ties go to the lower block.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dattn.block_mask import BlockList


def top_k(scores: Tensor, count: int) -> Tensor:
    """bool like ``scores``: in every row the ``count`` best blocks, or all where there are fewer.

    Raises:
        ValueError: ``count`` below 1.
    """
    if count < 1:
        raise ValueError(f"top_k keeps {count} blocks: it keeps 1 or more, or rows would be empty")
    best = scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True)


def top_p(scores: Tensor, share: float) -> Tensor:
    """bool like ``scores``: in every row the fewest best blocks that hold ``share`` of the row's sum.

    Scores are 0 or more; a row of zeros keeps its first block. 1.0 keeps every block above 0.

    Raises:
        ValueError: ``share`` outside of (0, 1].
    """
    if not 0 < share <= 1 or math.isnan(share):
        raise ValueError(f"top_p keeps a share of {share}: it is above 0 and at most 1")
    ranked, order = scores.sort(dim=-1, descending=True, stable=True)
    before = ranked.double().cumsum(-1) - ranked  # what the better blocks hold
    wanted = share * ranked.double().sum(-1, keepdim=True) if share < 1 else torch.inf
    kept = (before < wanted) & (ranked > 0)
    kept[..., 0] = True
    return torch.zeros_like(kept).scatter_(-1, order, kept)


def to_lists(kept: Tensor) -> BlockList:
    """The lists of bool [batch, groups, query blocks, key blocks]; rows of the longest set's length."""
    offsets = torch.nn.functional.pad(kept.sum(-1).cumsum(-1), (1, 0))
    index = kept.new_zeros(*kept.shape[:2], int(offsets[..., -1].max()), dtype=torch.int32)
    used = torch.arange(index.shape[-1], device=kept.device) < offsets[..., -1:]
    index[used] = kept.nonzero()[:, -1].int()
    return BlockList(offsets.int(), index)
