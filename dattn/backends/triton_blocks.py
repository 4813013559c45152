"""The Triton backend: block lists walked by our own kernels on a GPU, forward and backward.

Orders are applied by one gather of query, key and value; outputs and gradients are written back to raster order
by the kernels themselves. Under ``TRITON_INTERPRET=1`` it runs on a CPU, for tests.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dattn.backends.pooling import pool_runs, unpool_runs
from dattn.backends.problem import Problem
from dattn.backends.triton_lists import TritonLists, lists_of
from dattn.heads import head_groups
from dattn.kernels.arguments import Heads, Pool
from dattn.kernels.launch import block_sparse, block_sparse_gradients, delta_of


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """See ``Backend.forward``."""
    lists = lists_of(problem.mask)
    inputs, kept, pool = _in_kernel_order(lists, problem), _key_mask(lists, problem), _pool(lists, problem)
    size = problem.mask.block_size
    return block_sparse(*inputs, lists.visits, lists.orders[0], kept, pool, size, lists.ragged, problem.scale)


def backward(
    problem: Problem, output: Tensor, lse: Tensor, grad_output: Tensor, grad_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``Backend.backward``."""
    lists = lists_of(problem.mask)
    delta = delta_of(output, grad_output, grad_lse)
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)  # rows that see nothing: weights of 0
    grad, lse, delta = (_reorder(t, lists.orders[0], lists) for t in (grad_output, lse, delta))
    dq, dk, dv, *pooled = block_sparse_gradients(
        *_in_kernel_order(lists, problem),
        grad,
        lse,
        delta,
        lists.visits,
        lists.turned,
        lists.orders,
        _key_mask(lists, problem),
        _pool(lists, problem),
        problem.mask.block_size,
        problem.scale,
    )
    for total, part in zip((dk, dv), pooled, strict=False):
        for rows, heads, runs, kept in _parts(lists, problem):
            spread = part[rows, heads].unflatten(2, runs.shape[:2])
            total[rows, heads] += unpool_runs(spread, runs, kept, total.shape[2])
    return dq, dk, dv


def _parts(lists: TritonLists, problem: Problem) -> Iterator[tuple[slice, slice, Tensor, Tensor | None]]:
    """Batch rows and heads that share one set of lists: (rows, heads, runs that are pooled, key mask)."""
    batches, groups, key_mask = lists.visits.batches, lists.visits.groups, problem.key_mask
    batch, heads = problem.key.shape[:2]
    assert lists.runs is not None
    for row in range(batches):
        rows = slice(row, row + 1) if batches > 1 else slice(0, batch)
        for group, of_group in enumerate(head_groups(heads, groups)):
            yield rows, of_group, lists.runs[row * groups + group], None if key_mask is None else key_mask[rows]


def _pool(lists: TritonLists, problem: Problem) -> Pool | None:
    """Pooled keys and values [batch, heads, count, head_dim], ln n [batch, groups, count], and who sees them."""
    if lists.runs is None or lists.seen is None:
        return None
    key, value = problem.key, problem.value
    count = lists.runs.shape[1] * lists.runs.shape[2]
    means = [t.new_empty(*t.shape[:2], count, t.shape[3]) for t in (key, value)]
    bias = key.new_empty(key.shape[0], lists.visits.groups, count, dtype=torch.float32)
    for at, (rows, heads, runs, kept) in enumerate(_parts(lists, problem)):
        *parts, log_count = pool_runs(key[rows, heads], value[rows, heads], runs, kept)
        for mean, part in zip(means, parts, strict=True):
            mean[rows, heads] = part.flatten(2, 3)
        bias[rows, at % lists.visits.groups] = log_count.flatten(1)
    pooled_key, pooled_value = map(Heads.of, means)
    return Pool(pooled_key, pooled_value, bias, len(bias), lists.seen, lists.seen.shape[-1], count)


def _in_kernel_order(lists: TritonLists, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    of_queries, of_keys = lists.orders
    query, key, value = problem[:3]
    return _reorder(query, of_queries, lists), _reorder(key, of_keys, lists), _reorder(value, of_keys, lists)


def _reorder(tensor: Tensor, order: Tensor | None, lists: TritonLists) -> Tensor:
    """[batch, heads, tokens, …] in kernel order; the tensor itself where the order is the identity."""
    if order is None:
        return tensor
    if len(order) == 1:
        return tensor.index_select(2, order[0])
    index = _per_head(order.view(lists.visits.batches, lists.visits.groups, -1), tensor.shape[1]).long()
    index = index.expand(tensor.shape[0], -1, -1)
    return tensor.gather(2, index if tensor.ndim == 3 else index[..., None].expand_as(tensor))


def _per_head(per_group: Tensor, heads: int) -> Tensor:
    """[batch or 1, groups, …] -> [batch or 1, heads, …]."""
    groups = per_group.shape[1]
    return per_group[:, torch.arange(heads, device=per_group.device) * groups // heads]


def _key_mask(lists: TritonLists, problem: Problem) -> Tensor | None:
    """uint8 [batch, groups, tokens] in kernel order."""
    if problem.key_mask is None:
        return None
    groups, order = lists.visits.groups, lists.orders[1]
    kept = problem.key_mask[:, None].expand(-1, groups, -1)
    if order is not None:
        kept = kept.gather(2, order.view(-1, groups, order.shape[-1]).expand(len(kept), -1, -1).long())
    return kept.contiguous().view(torch.uint8)
