"""The Triton backend: block lists walked by our own kernels on a GPU, forward and backward.

Keys and values are brought into kernel order first; everything else that the forward pass reads or writes, and the
gradients, stay in raster order. Under ``TRITON_INTERPRET=1`` it runs on a CPU, for tests.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dattn.backends.problem import Problem
from dattn.backends.triton_lists import TritonLists, lists_of
from dattn.heads import head_groups
from dattn.kernels.arguments import Heads, Pool, Walk
from dattn.kernels.launch import block_sparse, block_sparse_gradients, delta_of
from dattn.kernels.pool import add_gradient, means
from dattn.kernels.reorder import in_order


class Prepared(NamedTuple):
    """What both passes start from.

    Attributes:
        key, value: [batch, heads, tokens, head_dim] in kernel order.
        walk: who visits whom, and how.
        weight: float32 [batch, groups, tokens], every key's weight in the mean of its run, in kernel order; None
            without a tail.
    """

    key: Tensor
    value: Tensor
    walk: Walk
    weight: Tensor | None


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """See ``Backend.forward``."""
    ready = _prepared(lists_of(problem.mask), problem, backward=False)
    return block_sparse(problem.query, ready.key, ready.value, ready.walk)


def backward(
    problem: Problem, output: Tensor, lse: Tensor, grad_output: Tensor, grad_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``Backend.backward``."""
    lists = lists_of(problem.mask)
    ready = _prepared(lists, problem, backward=True)
    delta = delta_of(output, grad_output, grad_lse)
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)  # rows that see nothing: weights of 0
    query, grad = (_reorder(t, lists.orders[0], lists) for t in (problem.query, grad_output))
    sums, delta = (_reorder(t[..., None], lists.orders[0], lists)[..., 0] for t in (lse, delta))
    dq, dk, dv, *pooled = block_sparse_gradients(query, ready.key, ready.value, grad, sums, delta, ready.walk)
    if lists.tail is not None and ready.weight is not None:
        blocks, sets, size = lists.visits.other, lists.visits.sets, problem.mask.block_size
        for total, part in zip((dk, dv), pooled, strict=True):
            add_gradient(total, part, ready.weight, lists.orders[1], blocks, sets, size, lists.tail.run)
    return dq, dk, dv


def _prepared(lists: TritonLists, problem: Problem, backward: bool) -> Prepared:
    head_groups(problem.query.shape[1], lists.visits.sets.groups)  # refuses more groups than heads
    key, value = (_reorder(t, lists.orders[1], lists) for t in (problem.key, problem.value))
    kept, size = _key_mask(lists, problem), problem.mask.block_size
    turned = lists.turned if backward else None
    walk = Walk(lists.visits, turned, lists.orders, kept, None, size, lists.ragged, problem.scale)
    if lists.tail is None:
        return Prepared(key, value, walk, None)
    weight, log_count = lists.tail.weights(kept, len(key))
    blocks, sets, tail = lists.visits.other, lists.visits.sets, lists.tail
    pooled = [Heads.of(means(t, weight, blocks, sets, size, tail.run)) for t in (key, value)]
    pool = Pool(pooled[0], pooled[1], log_count, len(log_count), tail.seen, tail.seen.shape[-1], tail.number)
    return Prepared(key, value, walk._replace(pool=pool), weight)


def _reorder(tensor: Tensor, order: Tensor | None, lists: TritonLists) -> Tensor:
    """[batch, heads, tokens, …] in kernel order; the tensor itself where the order is the identity."""
    return tensor if order is None else in_order(tensor, order, lists.visits.sets)


def _key_mask(lists: TritonLists, problem: Problem) -> Tensor | None:
    """uint8 [batch, groups, tokens] in kernel order."""
    if problem.key_mask is None:
        return None
    groups, order = lists.visits.sets.groups, lists.orders[1]
    kept = problem.key_mask[:, None].expand(-1, groups, -1)
    if order is not None:
        kept = kept.gather(2, order.view(-1, groups, order.shape[-1]).expand(len(kept), -1, -1).long())
    return kept.contiguous().view(torch.uint8)
