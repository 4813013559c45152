"""The Triton backend: block lists walked by our own kernels on a GPU, forward and backward.

Keys and values are brought into kernel order first; everything else that the forward pass reads or writes, and the
gradients, stay in raster order. Under ``TRITON_INTERPRET=1`` it runs on a CPU, for tests.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dattn.backends.problem import Problem
from dattn.backends.triton_lists import Tail, TritonLists, lists_of
from dattn.kernels.arguments import Heads, Pool
from dattn.kernels.launch import block_sparse, block_sparse_gradients, delta_of
from dattn.kernels.pool import add_gradient, means
from dattn.kernels.reorder import in_order


class Keys(NamedTuple):
    """The side of the keys in kernel order.

    Attributes:
        key, value: [batch, heads, tokens, head_dim].
        kept: uint8 [batch, groups, tokens], 0 for keys that nobody sees; or None.
        pool: pooled keys and values, or None.
        weight: float32 [batch, groups, tokens], every key's weight in the mean of its run; None without a pool.
    """

    key: Tensor
    value: Tensor
    kept: Tensor | None
    pool: Pool | None
    weight: Tensor | None


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """See ``Backend.forward``."""
    lists, size = lists_of(problem.mask), problem.mask.block_size
    keys = _keys(lists, problem)
    return block_sparse(
        problem.query,
        keys.key,
        keys.value,
        lists.visits,
        lists.orders[0],
        keys.kept,
        keys.pool,
        size,
        lists.ragged,
        problem.scale,
    )


def backward(
    problem: Problem, output: Tensor, lse: Tensor, grad_output: Tensor, grad_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``Backend.backward``."""
    lists, size = lists_of(problem.mask), problem.mask.block_size
    delta = delta_of(output, grad_output, grad_lse)
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)  # rows that see nothing: weights of 0
    keys = _keys(lists, problem)
    query, grad = (_reorder(t, lists.orders[0], lists) for t in (problem.query, grad_output))
    sums, delta = (_reorder(t[..., None], lists.orders[0], lists)[..., 0] for t in (lse, delta))
    dq, dk, dv, *pooled = block_sparse_gradients(
        query,
        keys.key,
        keys.value,
        grad,
        sums,
        delta,
        lists.visits,
        lists.turned,
        lists.orders,
        keys.kept,
        keys.pool,
        size,
        problem.scale,
    )
    if lists.tail is not None and keys.weight is not None:
        blocks, sets, run = lists.visits.other, lists.visits.sets, lists.tail.run
        for total, part in zip((dk, dv), pooled, strict=True):
            add_gradient(total, part, keys.weight, lists.orders[1], blocks, sets, size, run)
    return dq, dk, dv


def _keys(lists: TritonLists, problem: Problem) -> Keys:
    key, value = (_reorder(t, lists.orders[1], lists) for t in (problem.key, problem.value))
    kept = _key_mask(lists, problem)
    if lists.tail is None:
        return Keys(key, value, kept, None, None)
    weight, log_count = _run_weights(lists, lists.tail, kept, len(key))
    blocks, sets, tail = lists.visits.other, lists.visits.sets, lists.tail
    pooled = [Heads.of(means(t, weight, blocks, sets, problem.mask.block_size, tail.run)) for t in (key, value)]
    pool = Pool(pooled[0], pooled[1], log_count, len(key), tail.seen, tail.seen.shape[-1], tail.number)
    return Keys(key, value, kept, pool, weight)


def _run_weights(lists: TritonLists, tail: Tail, kept: Tensor | None, batch: int) -> tuple[Tensor, Tensor]:
    """1 / n for every key that counts, float32 [batch, groups, tokens], and ln n [batch, groups, runs]."""
    run_of = tail.run_of.view(*lists.visits.sets, -1).expand(batch, -1, -1)
    counts = torch.ones_like(run_of, dtype=torch.float32) if kept is None else kept.float()
    total = counts.new_zeros(*run_of.shape[:2], tail.number).scatter_add_(2, run_of, counts)
    return counts / total.gather(2, run_of).clamp_min(1), total.log()


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
