"""The Triton backend: block lists walked by our own kernels on a GPU, forward and backward.

Keys and values are brought into kernel order first; everything else that the forward pass reads or writes, and the
gradients, stay in raster order. Under ``TRITON_INTERPRET=1`` it runs on a CPU, for tests.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from dattn.backends.problem import Problem
from dattn.backends.triton_lists import TritonLists, lists_of
from dattn.heads import head_groups
from dattn.kernels import block_weights as kernel
from dattn.kernels.arguments import Heads, Pool, Walk
from dattn.kernels.launch import block_sparse, block_sparse_gradients, delta_of
from dattn.kernels.pool import add_gradient, means
from dattn.kernels.reorder import in_order


class Prepared(NamedTuple):
    """What both passes start from.

    Attributes:
        key, value: [batch, heads, tokens, head_dim] in kernel order.
        walk: who visits whom, and how.
        weights: float32 [batch, groups, tokens] for each pool, every key's weight in the mean of its run, in kernel
            order.
    """

    key: Tensor
    value: Tensor
    walk: Walk
    weights: list[Tensor]


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """See ``Backend.forward``."""
    width = problem.value.shape[-1]
    problem = _of_one_width(problem)
    ready = _prepared(lists_of(problem.mask), problem, backward=False)
    output, lse = block_sparse(problem.query, ready.key, ready.value, ready.walk)
    return output[..., :width], lse


def backward(
    problem: Problem, output: Tensor, lse: Tensor, grad_output: Tensor, grad_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``Backend.backward``."""
    delta = delta_of(output, grad_output, grad_lse)
    even = _of_one_width(problem)
    dq, dk, dv = _gradients(even, lse, delta, _widened(grad_output, even.value.shape[-1]))
    width, value_width = problem.query.shape[-1], problem.value.shape[-1]
    return dq[..., :width], dk[..., :width], dv[..., :value_width]


def block_weights(problem: Problem, lse: Tensor) -> tuple[Tensor, Tensor]:
    """See ``Backend.block_weights``."""
    lists, size = lists_of(problem.mask), problem.mask.block_size
    query, key = (
        _reorder(side, order, lists) for side, order in zip((problem.query, problem.key), lists.orders, strict=True)
    )
    sums = lse.masked_fill(lse == -torch.inf, torch.inf).float()
    sums = _reorder(sums[..., None], lists.orders[0], lists)[..., 0].contiguous()
    visits, kept = lists.visits, _key_mask(lists, problem)
    entries = kernel.weights_of_blocks(query, key, sums, visits, visits.full, kept, size, lists.ragged, problem.scale)
    largest, total = (_written_out(part, lists, problem.mask.num_blocks) for part in entries)
    return largest, total


def _written_out(entries: Tensor, lists: TritonLists, blocks: tuple[int, int]) -> Tensor:
    """[batch, heads, query blocks, key blocks] of what there is for each entry of the full lists; 0 elsewhere."""
    (batch, heads), (batches, groups) = entries.shape[:2], lists.visits.sets
    out, visited = entries.new_zeros(batch, heads, *blocks), lists.visits.full
    for row, (group, own) in product(range(batch), enumerate(head_groups(heads, groups))):
        offsets = visited.offsets[row % batches * groups + group].long()
        rows = torch.arange(blocks[0], device=entries.device).repeat_interleave(offsets.diff())
        columns = visited.blocks[row % batches * groups + group, : len(rows)].long()
        out[row, own, rows, columns] = entries[row, own, : len(rows)]
    return out


def _gradients(problem: Problem, lse: Tensor, delta: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of query, key and value, all of one width, from the output's ``grad``."""
    lists = lists_of(problem.mask)
    ready = _prepared(lists, problem, backward=True)
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)  # rows that see nothing: weights of 0
    query, grad = (_reorder(t, lists.orders[0], lists) for t in (problem.query, grad))
    sums, delta = (_reorder(t[..., None], lists.orders[0], lists)[..., 0] for t in (lse, delta))
    dq, dk, dv, *pooled = block_sparse_gradients(query, ready.key, ready.value, grad, sums, delta, ready.walk)
    if lists.repeats:
        dk, dv = (_collected(t, lists, problem.key) for t in (dk, dv))
    blocks, sets, size = lists.visits.other, lists.visits.sets, problem.mask.block_size
    for total, grad_pooled in zip((dk, dv), pooled, strict=False):  # there may be none
        parts = grad_pooled.split([pool.number for pool in lists.pools], 2)
        for pool, part, weight in zip(lists.pools, parts, ready.weights, strict=True):
            add_gradient(total, part, weight, lists.orders[1], blocks, sets, size, pool.run)
    return dq, dk, dv


def _of_one_width(problem: Problem) -> Problem:
    """The same with heads as wide as the widest, which is what the kernels take: zeros change no product."""
    wide = max(problem.query.shape[-1], problem.value.shape[-1])
    query, key, value = (_widened(t, wide) for t in (problem.query, problem.key, problem.value))
    return problem._replace(query=query, key=key, value=value)


def _widened(tensor: Tensor, width: int) -> Tensor:
    return tensor if tensor.shape[-1] == width else pad(tensor, (0, width - tensor.shape[-1]))


def _prepared(lists: TritonLists, problem: Problem, backward: bool) -> Prepared:
    head_groups(problem.query.shape[1], lists.visits.sets.groups)  # refuses more groups than heads
    key, value = (_reorder(t, lists.orders[1], lists) for t in (problem.key, problem.value))
    kept, size = _key_mask(lists, problem), problem.mask.block_size
    turned = lists.turned if backward else None
    sparse = bool(problem.mask.levels)
    orders = (lists.orders[0], None) if lists.repeats else lists.orders
    walk = Walk(lists.visits, turned, orders, kept, None, size, lists.ragged, sparse, problem.scale)
    if lists.seen is None or lists.bits is None:
        return Prepared(key, value, walk, [])
    weights, log_counts = zip(*(pool.weights(kept, len(key)) for pool in lists.pools), strict=True)
    blocks, sets, log_count = lists.visits.other, lists.visits.sets, torch.cat(log_counts, -1)
    pooled = [
        [means(t, weight, blocks, sets, size, pool.run) for pool, weight in zip(lists.pools, weights, strict=True)]
        for t in (key, value)
    ]
    keys, values = (Heads.of(parts[0] if len(parts) == 1 else torch.cat(parts, 2)) for parts in pooled)
    pool = Pool(
        keys, values, log_count, len(log_count), lists.seen, lists.seen.shape[-1], lists.bits, keys.data.shape[2]
    )
    return Prepared(key, value, walk._replace(pool=pool), list(weights))


def _reorder(tensor: Tensor, order: Tensor | None, lists: TritonLists) -> Tensor:
    """[batch, heads, tokens, …] in kernel order; the tensor itself where the order is the identity."""
    return tensor if order is None else in_order(tensor, order, lists.visits.sets)


def _collected(grad: Tensor, lists: TritonLists, like: Tensor) -> Tensor:
    """Gradients like ``like`` of keys or values in kernel order, those of a token's several places together."""
    (batch, heads, tokens, dim), order = like.shape, lists.orders[1]
    assert order is not None  # keys are listed several times
    set_of = lists.visits.sets
    groups = torch.arange(heads, device=like.device) * set_of.groups // heads
    at = order.view(set_of.batches, set_of.groups, -1)[:, groups].expand(batch, -1, -1).long()
    ends = lists.visits.other.lengths.sum(-1).view(set_of.batches, set_of.groups)[:, groups, None]
    places = torch.arange(at.shape[-1], device=like.device)
    at = at.where(places < ends, tokens + places % tokens)  # behind the last block nothing was written: to no token
    out = torch.empty_like(like)
    for row, head in product(range(batch), range(heads)):  # one by one: in float32 all together would be large
        total = torch.zeros(2 * tokens, dim, device=like.device)
        total.index_put_((at[row, head],), grad[row, head].float(), accumulate=True)  # in one order, on any device
        out[row, head] = total[:tokens]
    return out


def _key_mask(lists: TritonLists, problem: Problem) -> Tensor | None:
    """uint8 [batch, groups, tokens] in kernel order."""
    if problem.key_mask is None:
        return None
    groups, order = lists.visits.sets.groups, lists.orders[1]
    kept = problem.key_mask[:, None].expand(-1, groups, -1)
    if order is not None:
        kept = kept.gather(2, order.view(-1, groups, order.shape[-1]).expand(len(kept), -1, -1).long())
    return kept.contiguous().view(torch.uint8)
