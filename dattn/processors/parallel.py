"""Attention whose sequence is spread over processes, as Diffusers' context parallelism does (Ulysses).

DeepSpeed Ulysses (Jacobs et al., 2023, arXiv 2309.14509): outside of attention every process holds some tokens of all
heads; inside it holds all tokens of some heads, and an all-to-all before and after changes one into the other. Here
neither the tokens nor the heads have to divide: heads go where the least work waits, so that heads of unequal cost
(per-head masks) keep all processes equally busy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from dattn.grid import TokenGrid


class Spread(NamedTuple):
    """Who holds what.

    Attributes:
        group: the processes.
        rank: this one among them.
        tokens: for every process the raster positions of the tokens that it holds outside of attention, in its order.
        heads: for every process the heads that it computes, ascending.
        raster: int64 [tokens], where each token stands among all processes' tokens, one process after the other.
        ascending: int64 [heads], the same for heads.
    """

    group: Any
    rank: int
    tokens: list[Tensor]
    heads: list[list[int]]
    raster: Tensor
    ascending: Tensor


def tokens_of(grid: TokenGrid, processes: int, one_stream: bool = False) -> list[Tensor]:
    """int64 raster positions per process: Diffusers cuts text and picture apart, each into consecutive parts.

    What comes behind the picture belongs to it where text comes first, as reference pictures do; with ``one_stream``
    all tokens are cut together.
    """
    cut = grid.tokens if one_stream else grid.text_before or grid.visual
    streams = [part for part in torch.arange(grid.tokens).split([cut, grid.tokens - cut]) if len(part)]
    parts = [stream.tensor_split(processes) for stream in streams]
    return [torch.cat([part[rank] for part in parts]) for rank in range(processes)]


def heads_of(work: Sequence[float], processes: int) -> list[list[int]]:
    """The heads of every process: the most laborious first, each to whom the least work waits for.

    Args:
        work: of every head, in any unit.

    Raises:
        ValueError: fewer heads than processes.
    """
    if len(work) < processes:
        raise ValueError(f"{len(work)} heads for {processes} processes: lower ulysses_degree to at most {len(work)}")
    heads: list[list[int]] = [[] for _ in range(processes)]
    for head in sorted(range(len(work)), key=lambda h: -work[h]):
        min(heads, key=lambda mine: (sum(work[h] for h in mine), len(mine))).append(head)
    return [sorted(mine) for mine in heads]


def spread_over(group: Any, tokens: list[Tensor], work: Sequence[float], device: torch.device) -> Spread:
    """Who holds what, of tokens as ``tokens_of`` gives them and of heads with so much work each.

    Raises:
        ValueError: fewer heads than processes.
    """
    heads = heads_of(work, dist.get_world_size(group))
    order = torch.cat(tokens).argsort().to(device), torch.tensor([*chain(*heads)]).argsort().to(device)
    return Spread(group, dist.get_rank(group), [part.to(device) for part in tokens], heads, *order)


def attend_spread(
    spread: Spread, query: Tensor, key: Tensor, value: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """``attend`` on all tokens of this process's heads.

    Args:
        spread: who holds what.
        query, key, value: [batch, heads, own tokens, head_dim].
        attend: on [batch, own heads, tokens, head_dim] in raster order.

    Returns:
        [batch, heads, own tokens, head_dim]. Differentiable.
    """
    whole = _to_heads(torch.stack((query, key, value)).flatten(0, 1), spread)
    return _to_tokens(attend(*whole.unflatten(0, (3, -1)).unbind(0)), spread)


def _to_heads(tensor: Tensor, spread: Spread) -> Tensor:
    """[n, heads, own tokens, d] -> [n, own heads, tokens, d]."""
    n, _, _, width = tensor.shape
    sent = [tensor[:, heads] for heads in spread.heads]
    shapes = [(n, len(spread.heads[spread.rank]), len(tokens), width) for tokens in spread.tokens]
    together = torch.cat(_exchange(sent, shapes, spread.group), 2)
    return together[:, :, spread.raster]


def _to_tokens(tensor: Tensor, spread: Spread) -> Tensor:
    """[n, own heads, tokens, d] -> [n, heads, own tokens, d]."""
    n, _, _, width = tensor.shape
    sent = [tensor[:, :, tokens] for tokens in spread.tokens]
    shapes = [(n, len(heads), len(spread.tokens[spread.rank]), width) for heads in spread.heads]
    together = torch.cat(_exchange(sent, shapes, spread.group), 1)
    return together[:, spread.ascending]


def _exchange(sent: list[Tensor], shapes: Sequence[tuple[int, ...]], group: Any) -> list[Tensor]:
    """One tensor to each process, one of each of these shapes back."""
    sizes = [torch.Size(shape).numel() for shape in shapes]
    flat = _AllToAll.apply(torch.cat([t.flatten() for t in sent]), sizes, [t.numel() for t in sent], group)
    return [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]


class _AllToAll(torch.autograd.Function):
    """Every process sends a part of its numbers to every process; gradients go back the same way."""

    @staticmethod
    def forward(ctx: Any, sent: Tensor, received_sizes: list[int], sent_sizes: list[int], group: Any) -> Tensor:
        ctx.sizes, ctx.group = (received_sizes, sent_sizes), group
        received = sent.new_empty(sum(received_sizes))
        dist.all_to_all_single(received, sent.contiguous(), received_sizes, sent_sizes, group)
        return received

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        received_sizes, sent_sizes = ctx.sizes
        grad = grads[0].new_empty(sum(sent_sizes))
        dist.all_to_all_single(grad, grads[0].contiguous(), sent_sizes, received_sizes, ctx.group)
        return grad, None, None, None
