"""The reference backend: one dense softmax, naive, in float32 or, where the inputs are, float64. Small grids only."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from dattn.backends.pooling import pool_runs, run_slots
from dattn.backends.problem import Problem
from dattn.block_mask import BlockMask
from dattn.heads import head_groups


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Softmax over all keys that the mask allows and the pooled keys of blocks seen through them."""
    mask = problem.mask
    dense = mask.to_dense().expand(len(mask.full.offsets), mask.groups, -1, -1)
    results = [_sample(problem, dense, row) for row in range(len(problem.query))]
    outputs, lses = zip(*results, strict=True)
    return torch.cat(outputs).to(problem.query.dtype), torch.cat(lses)


def _sample(problem: Problem, allowed: Tensor, row: int) -> tuple[Tensor, Tensor]:
    """Output and LSE [1, heads, …] of one sample; ``allowed`` is bool [batch or 1, groups, tokens, tokens]."""
    mask, at = problem.mask, min(row, len(problem.mask.full.offsets) - 1)
    wide = torch.promote_types(problem.query.dtype, torch.float32)
    query, key, value = (t[row : row + 1].to(wide) for t in problem[:3])
    key_mask = None if problem.key_mask is None else problem.key_mask[row : row + 1]
    outputs, lses = [], []
    for group, heads in enumerate(head_groups(query.shape[1], mask.groups)):
        q, k, v = (t[:, heads] for t in (query, key, value))
        logits = (q @ k.transpose(-1, -2)) * problem.scale
        seen = allowed[at, group] if key_mask is None else allowed[at, group] & key_mask[:, None, None]
        logits = logits.masked_fill(~seen, -torch.inf)
        if mask.pools:
            logits, v = _with_means(logits, q, k, v, mask, (at, group), problem.scale, key_mask)
        blind = (logits == -torch.inf).all(-1, keepdim=True)
        logits = logits.masked_fill(blind, 0)
        outputs.append(logits.softmax(-1).masked_fill(blind, 0) @ v)
        lses.append(logits.logsumexp(-1, keepdim=True).masked_fill(blind, -torch.inf)[..., 0])
    return torch.cat(outputs, 1), torch.cat(lses, 1)


def backward(
    problem: Problem, output: Tensor, lse: Tensor, grad_output: Tensor, grad_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What PyTorch's own differentiation of ``forward`` says."""
    with torch.enable_grad():
        query, key, value = (t.detach().requires_grad_() for t in problem[:3])
        results = forward(problem._replace(query=query, key=key, value=value))
        dq, dk, dv = torch.autograd.grad(results, (query, key, value), (grad_output, grad_lse))
    return dq, dk, dv


def block_weights(problem: Problem, lse: Tensor) -> tuple[Tensor, Tensor]:
    """See ``Backend.block_weights``."""
    mask, (batch, heads) = problem.mask, problem.query.shape[:2]
    seen = mask.to_dense().expand(batch, mask.groups, -1, -1)
    seen = seen if problem.key_mask is None else seen & problem.key_mask[:, None, None]
    logits = (problem.query.to(lse.dtype) @ problem.key.to(lse.dtype).mT) * problem.scale
    largest, total = (lse.new_zeros(batch, heads, *mask.num_blocks) for _ in range(2))
    for group, own in enumerate(head_groups(heads, mask.groups)):
        weights = (logits[:, own] - lse[:, own, :, None]).exp().masked_fill(~seen[:, group, None], 0)
        for row in range(batch):
            queries, keys = (
                [block[block >= 0] for block in side.slots(row, group, mask.block_size)]
                for side in (mask.query, mask.key)
            )
            for (i, q), (j, k) in product(enumerate(queries), enumerate(keys)):
                pair = weights[row][:, q][:, :, k].flatten(1)
                if pair.numel():
                    largest[row, own, i, j], total[row, own, i, j] = pair.amax(1), pair.sum(1)
    return largest, total


def _with_means(
    logits: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: BlockMask,
    at: tuple[int, int],
    scale: float,
    key_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Logits and values with one more column per run: its mean key with logit + ln n, where that is seen."""
    all_logits, all_values = [logits], [value]
    for run, of_pool in zip(mask.pools, _seen(mask, *at), strict=True):
        keys, values, log_count = pool_runs(key, value, run_slots(mask, *at, run), key_mask)
        columns = torch.einsum("bhqd,bhkrd->bhqkr", query, keys) * scale + log_count[:, None, None]
        seen = of_pool[None, None, ..., None] & (log_count > -torch.inf)[:, None, None]
        all_logits.append(columns.masked_fill(~seen, -torch.inf).flatten(-2))
        all_values.append(values.flatten(2, 3))
    return torch.cat(all_logits, -1), torch.cat(all_values, 2)


def _seen(mask: BlockMask, batch: int, group: int) -> Tensor:
    """bool [pools, tokens, key blocks]: the blocks that each query sees through the means of ``mask.pools``."""
    seen = mask.pooled_rows(batch, group, 0, mask.query.blocks)
    slots = mask.query.slots(batch, group, mask.block_size)
    out = seen.new_zeros(len(seen), mask.query.order.shape[-1] + 1, mask.key.blocks)
    out[:, slots] = seen[:, :, None].expand(-1, -1, slots.shape[1], -1)
    return out[:, :-1]
