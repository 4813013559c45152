"""Calls of attention in which keys are hidden, and pairs of output and LSE that count more or less."""

from __future__ import annotations

from dataclasses import replace
from math import log

import torch
from torch import Tensor

from dattn.control.base import Call


def hide(call: Call, keys: Tensor) -> Call:
    """The call without some keys, for all queries: bool [batch or 1, keys], True is hidden.

    It runs by whatever pattern the call runs by: a mask over keys is all that is added. Without a pattern, and where
    the model passes no mask of its own, it runs on PyTorch's attention: many of Diffusers' backends take no mask.
    """
    seen = ~keys[:, None, None].to(call.key.device)
    if call.mask is None:
        return replace(call, mask=seen)
    if call.mask.dtype == torch.bool:
        return replace(call, mask=call.mask & seen)
    return replace(call, mask=call.mask.masked_fill(~seen, -torch.inf))


def cut(call: Call, queries: Tensor, keys: Tensor) -> Call:
    """A call of some of its queries on some of its keys, int64 each."""
    mask = call.mask
    if mask is not None:
        mask = mask if mask.shape[-2] == 1 else mask[..., queries, :]
        mask = mask if mask.shape[-1] == 1 else mask[..., keys]
    query, key, value = call.query[:, :, queries], call.key[:, :, keys], call.value[:, :, keys]
    return replace(call, query=query, key=key, value=value, mask=mask)


def only(call: Call, keys: Tensor) -> Call:
    """The call with all but some keys hidden, int64."""
    others = torch.ones(1, call.key.shape[2], dtype=torch.bool, device=keys.device)
    return hide(call, others.index_fill(1, keys, False))


def some(call: Call, queries: Tensor, keys: Tensor) -> Tensor:
    """Attention of some queries over some keys, int64 each: [batch, heads, some queries, head_dim].

    Where neither a pattern nor another control has to see the whole sequence, no more than these are computed.
    """
    if call.runs.sparse or not call.runs.alone:
        return only(call, keys).attend()[:, :, queries]
    return cut(call, queries, keys).attend()


def of_rows(call: Call, queries: Tensor | None) -> Tensor:
    """Attention of some queries, int64, over all keys, as ``some``; of all where None."""
    if queries is None:
        return call.attend()
    if call.runs.sparse or not call.runs.alone:
        return call.attend()[:, :, queries]
    mask = call.mask if call.mask is None or call.mask.shape[-2] == 1 else call.mask[..., queries, :]
    return replace(call, query=call.query[:, :, queries], mask=mask).attend()


def weighted(pair: tuple[Tensor, Tensor], weight: float) -> tuple[Tensor, Tensor]:
    """Output and LSE of keys that count ``weight`` times, above 0."""
    output, lse = pair
    return output, lse + log(weight)
