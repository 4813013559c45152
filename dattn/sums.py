"""Sums and means over lists of tokens: gathered and added in one pass, always in the same order."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, pad


def wide(tensor: Tensor) -> Tensor:
    """The same in float32, or float64 where it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def as_rows(tensor: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens of all heads as rows, the way they lie in memory, and in which row each is.

    Args:
        tensor: [batch, heads, tokens, width].
        order: int64 [places], or [batch, heads, places] where every head has an order of its own; which tokens.

    Returns:
        [batch · heads · tokens, width], and int64 [batch · heads · places].
    """
    batch, heads, tokens, _ = tensor.shape
    sample, head = (torch.arange(n, device=order.device) for n in (batch, heads))
    if tensor.stride(1) < tensor.stride(2):  # token by token, as models hold them
        index = (sample[:, None, None] * tokens + order) * heads + head[:, None]
        return tensor.transpose(1, 2).flatten(0, 2), index.flatten()
    return tensor.flatten(0, 2), ((sample[:, None, None] * heads + head[:, None]) * tokens + order).flatten()


def in_order(tensor: Tensor, order: Tensor) -> Tensor:
    """[batch, heads, places, width] of tokens [batch, heads, tokens, width]; for ``order`` see ``as_rows``."""
    if order.ndim == 1:
        return tensor.index_select(2, order)
    rows, index = as_rows(tensor, order)
    return rows.index_select(0, index).view(*tensor.shape[:2], -1, tensor.shape[-1])


def sums(tensor: Tensor, lengths: Tensor, order: Tensor | None = None) -> Tensor:
    """[batch, heads, lists, width], float32 or float64: the sums of lists of tokens, 0 for an empty one.

    Args:
        tensor: [batch, heads, tokens, width].
        lengths: int64 [lists] or [batch, heads, lists], how many tokens are in each.
        order: the tokens list by list, see ``as_rows``; None where they lie so.
    """
    order = torch.arange(tensor.shape[2], device=tensor.device) if order is None else order
    rows, index = as_rows(wide(tensor), order)
    lengths = lengths.expand(*tensor.shape[:2], -1)
    ends = pad(lengths.flatten().cumsum(0), (1, 0))
    total = embedding_bag(index, rows, ends, mode="sum", include_last_offset=True)
    return total.view(*lengths.shape, tensor.shape[-1])


def means(tensor: Tensor, lengths: Tensor, order: Tensor | None = None) -> Tensor:
    """[batch, heads, lists, width]: the means of lists of tokens, see ``sums``."""
    return sums(tensor, lengths, order) / lengths.clamp_min(1)[..., None]
