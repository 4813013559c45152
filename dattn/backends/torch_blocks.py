"""The torch backend: block lists walked with gathered keys, forward and backward, on any device.

Query blocks whose lists agree share a call; what a row sees in several calls is merged by log-sum-exp, so
nothing is as large as tokens x tokens. On a CPU the calls are PyTorch's own flash attention, in float32 where the
inputs are shorter. The backward pass recomputes the weights from the log-sum-exp, call by call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dattn.backends.plan import Piece, Plan, plan_for
from dattn.backends.pooling import pool_runs, unpool_runs
from dattn.backends.problem import Problem
from dattn.block_mask import BlockMask
from dattn.heads import head_groups

GATHERED = 1 << 21  # numbers gathered (forward) or weights held (backward) at a time: a few MB, near the cache


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """See ``Backend.forward``."""
    query, key, value, mask, scale, key_mask = problem
    wide = torch.promote_types(query.dtype, torch.float32)
    output, lse = value.new_empty(value.shape, dtype=wide), query.new_empty(query.shape[:3], dtype=wide)
    for part in _parts(mask, query, key_mask):
        _walk(part, mask, scale, *part.inputs(query, key, value), part.view(output), part.view(lse))
    return output.to(query.dtype), lse


def backward(
    problem: Problem, output: Tensor, lse: Tensor, grad_output: Tensor, grad_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``Backend.backward``."""
    query, key, value, mask, scale, key_mask = problem
    delta = (grad_output.to(lse.dtype) * output).sum(-1) - grad_lse
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)  # rows that see nothing: weights of 0
    grads = tuple(torch.zeros(t.shape, dtype=lse.dtype, device=t.device) for t in (query, key, value))
    for part in _parts(mask, query, key_mask):
        inputs = part.inputs(query, key, value, grad_output)
        _walk_back(part, mask, scale, inputs, part.view(delta), part.view(lse), [part.view(g) for g in grads])
    dq, dk, dv = (grad.to(query.dtype) for grad in grads)
    return dq, dk, dv


def dense(query: Tensor, key: Tensor, value: Tensor, scale: float, key_mask: Tensor | None) -> Tensor:
    """PyTorch's own attention, for a mask that skips nothing."""
    if key_mask is None:
        return scaled_dot_product_attention(query, key, value, scale=scale)
    blind = ~key_mask.any(-1)[:, None, None, None]
    seen = key_mask[:, None, None] | blind  # a row that sees nothing would be NaN on some devices
    return scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale).masked_fill(blind, 0)


@dataclass(frozen=True, eq=False)
class _Part:
    """Batch rows and heads that share one set of lists; their tensors are [rows · heads, tokens, …]."""

    rows: slice
    heads: slice
    plan: Plan
    key_mask: Tensor | None

    def view(self, tensor: Tensor) -> Tensor:
        """This part of a contiguous tensor, to be written to."""
        return tensor[self.rows, self.heads].view(-1, *tensor.shape[2:])

    def inputs(self, *tensors: Tensor) -> list[Tensor]:
        """This part of every tensor, in float32 at least.

        Models hand over transposed heads, and index_select would copy all of such an input for every call.
        """
        wide = torch.promote_types(tensors[0].dtype, torch.float32)
        return [t[self.rows, self.heads].to(wide).flatten(0, 1).contiguous() for t in tensors]


def _parts(mask: BlockMask, query: Tensor, key_mask: Tensor | None) -> Iterator[_Part]:
    """All parts; batch rows take turns where they differ in what they see, or heads do."""
    batch, heads = query.shape[:2]
    together = key_mask is None and mask.full.offsets.shape[0] == mask.groups == 1
    for rows in [slice(0, batch)] if together else [slice(i, i + 1) for i in range(batch)]:
        kept = None if key_mask is None else key_mask[rows]
        for group, of_group in enumerate(head_groups(heads, mask.groups)):
            yield _Part(rows, of_group, plan_for(mask, rows.start, group), kept)


def _pool(part: _Part, key: Tensor, value: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Pooled keys and values [rows · heads, count, head_dim] and ln n [1, count]; None without a tail."""
    if part.plan.runs is None:
        return None, None, None
    *means, log_count = pool_runs(key[None], value[None], part.plan.runs, part.key_mask)
    pooled_key, pooled_value = (mean[0].flatten(1, 2) for mean in means)
    return pooled_key, pooled_value, log_count.flatten(1)


def _walk(
    part: _Part,
    mask: BlockMask,
    scale: float,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
) -> None:
    """One part's calls, piece by piece, into ``output`` and ``lse``."""
    if not part.plan.complete:
        output.zero_(), lse.fill_(-torch.inf)
    pooled_key, pooled_value, log_count = _pool(part, key, value)
    calls = _Calls(part.plan, mask, part.key_mask, log_count, query.dtype)
    space = _Workspace()
    for piece in part.plan.pieces:
        k, v = (pooled_key, pooled_value) if piece.kind == "tail" else (key, value)
        for heads, rows, columns, bias in calls.of(piece, query.shape[0], 2 * query.shape[-1]):
            q, k_, v_ = (
                space.gather(name, t[heads], index)
                for name, t, index in (("q", query, rows), ("k", k, columns), ("v", v, columns))
            )
            out, sums = _softmax(q, k_, v_, bias, scale)
            _store(output[heads], lse[heads], rows, out, sums, fresh=piece.turn == 0)


def _walk_back(
    part: _Part,
    mask: BlockMask,
    scale: float,
    inputs: Sequence[Tensor],
    delta: Tensor,
    lse: Tensor,
    grads: Sequence[Tensor],
) -> None:
    """Add one part's gradients to those of query, key and value: every call adds what it contributes."""
    query, key, value, grad_output = inputs
    pooled_key, pooled_value, log_count = _pool(part, key, value)
    pooled_grads = [None if t is None else torch.zeros_like(t) for t in (pooled_key, pooled_value)]
    calls = _Calls(part.plan, mask, part.key_mask, log_count, query.dtype)
    sources: dict[bool, Any] = {
        False: (key, value, *grads[1:]),
        True: (pooled_key, pooled_value, *pooled_grads),
    }
    for piece in part.plan.pieces:
        k, v, dk, dv = sources[piece.kind == "tail"]
        length = piece.queries.shape[1] * mask.block_size
        for heads, rows, columns, bias in calls.of(piece, query.shape[0], length):
            q, d_out = _gather(query[heads], rows), _gather(grad_output[heads], rows)
            k_, v_ = _gather(k[heads], columns), _gather(v[heads], columns)
            logits = (q @ k_.mT).mul_(scale)
            logits = logits if bias is None else logits.add_(bias)
            weights = logits.sub_(lse[heads][:, rows, None]).exp_()
            _add(dv[heads], columns, weights.mT @ d_out)
            d_logits = (d_out @ v_.mT).sub_(delta[heads][:, rows, None]).mul_(weights).mul_(scale)
            _add(grads[0][heads], rows, d_logits @ k_)
            _add(dk[heads], columns, d_logits.mT @ q)
    for total, pooled in zip(grads[1:], pooled_grads, strict=True):
        if pooled is not None and part.plan.runs is not None:
            spread = pooled[None].unflatten(2, part.plan.runs.shape[:2])
            total += unpool_runs(spread, part.plan.runs, part.key_mask, total.shape[1])[0]


@dataclass(frozen=True, eq=False)
class _Calls:
    """The calls of a plan as index tensors, in chunks that bound the memory of each."""

    plan: Plan
    mask: BlockMask
    key_mask: Tensor | None
    log_count: Tensor | None
    dtype: torch.dtype

    def of(self, piece: Piece, heads: int, width: int) -> Iterator[tuple[slice, Tensor, Tensor, Tensor | None]]:
        """Yields heads, query positions [calls, rows], key positions [calls, columns] and the bias or None.

        ``width`` numbers are held per key; a chunk holds ``GATHERED`` at most where a single call does.
        """
        keys = self._positions(piece, piece.keys[:1]).shape[1]
        per_head = max(1, GATHERED // (keys * width))
        step, head_step = max(1, per_head // heads), min(heads, per_head)
        tiles = self._tiles(piece)
        for first in range(0, len(piece.keys), step):
            at = slice(first, first + step)
            rows = _real(self.plan.queries[piece.queries[at]])
            columns = self._positions(piece, piece.keys[at])
            bias = self._bias(piece, columns, tiles)
            for head in range(0, heads, head_step):
                yield slice(head, head + head_step), rows, columns, bias

    def _positions(self, piece: Piece, blocks: Tensor) -> Tensor:
        if piece.kind != "tail":
            return _real(self.plan.keys[blocks])
        assert self.plan.runs is not None
        runs = self.plan.runs.shape[1]
        return (blocks[..., None] * runs + torch.arange(runs, device=blocks.device)).flatten(1)

    def _bias(self, piece: Piece, columns: Tensor, tiles: Tensor | None) -> Tensor | None:
        """[1, calls or 1, rows or 1, columns] added to the logits: 0 and -inf, or ln n of pooled keys."""
        if piece.kind == "tail":
            assert self.log_count is not None
            return self.log_count[:1, columns][:, :, None]
        if self.key_mask is None or self.key_mask[0, columns].all():
            return tiles
        padded = _minus_infinity(~self.key_mask[0, columns][None, :, None], self.dtype)
        return padded if tiles is None else tiles + padded

    def _tiles(self, piece: Piece) -> Tensor | None:
        """[1, 1, rows, columns]: a piece's mask tiles side by side, empty slots left out; None without tiles."""
        if piece.tiles is None:
            return None
        rows, columns = (
            (slots[blocks[0]] >= 0).flatten()
            for slots, blocks in ((self.plan.queries, piece.queries), (self.plan.keys, piece.keys))
        )
        tiles = self._table()[piece.tiles].transpose(1, 2).flatten(2).flatten(0, 1)
        return (tiles if rows.all() and columns.all() else tiles[rows][:, columns])[None, None]

    def _table(self) -> Tensor:
        """[distinct, block_size, block_size] of 0 and -inf, kept with the mask."""
        if self.dtype not in self.mask.derived:
            self.mask.derived[self.dtype] = _minus_infinity(~self.mask.unpacked_tiles(), self.dtype)
        return self.mask.derived[self.dtype]


def _minus_infinity(where: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(where, dtype=dtype).masked_fill_(where, -torch.inf)


def _real(slots: Tensor) -> Tensor:
    """[calls, blocks, block_size] slots -> [calls, tokens], empty slots left out (as many in every call)."""
    real = slots >= 0
    return slots.flatten(1) if real.all() else slots[real].view(len(slots), -1)


def _gather(tensor: Tensor, index: Tensor) -> Tensor:
    return tensor.index_select(1, index.flatten()).unflatten(1, index.shape)


def _add(target: Tensor, index: Tensor, update: Tensor) -> None:
    target.index_add_(1, index.flatten(), update.flatten(1, 2))


class _Workspace:
    """Buffers that are kept from call to call: fresh memory for gathered keys would cost more than the copy."""

    def __init__(self) -> None:
        self._flat: dict[str, Tensor] = {}

    def gather(self, name: str, tensor: Tensor, index: Tensor) -> Tensor:
        """``tensor`` [heads, tokens, head_dim] at ``index`` [calls, n]: [heads, calls, n, head_dim]."""
        shape = (tensor.shape[0], index.numel(), tensor.shape[-1])
        count = shape[0] * shape[1] * shape[2]
        if name not in self._flat or self._flat[name].numel() < count:
            self._flat[name] = tensor.new_empty(count)
        out = self._flat[name][:count].view(shape)
        torch.index_select(tensor, 1, index.flatten(), out=out)
        return out.unflatten(1, index.shape)


def _softmax(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of [heads, calls, rows, head_dim] with its LSE; rows that see nothing give 0 and -inf."""
    blind = None if bias is None else bias.amax(-1) == -torch.inf
    if q.device.type == "cpu" and v.shape[-1] == q.shape[-1]:
        full = None if bias is None else bias.expand(-1, q.shape[1], q.shape[2], -1)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=full, scale=scale)
    else:
        logits = (q @ k.mT) * scale
        logits = logits if bias is None else logits + bias
        if blind is not None:
            logits = logits.masked_fill(blind[..., None], 0)
        out, lse = logits.softmax(-1) @ v, logits.logsumexp(-1)
    if blind is None or not blind.any():
        return out, lse
    return out.masked_fill(blind[..., None], 0), lse.masked_fill(blind, -torch.inf)


def _store(output: Tensor, lse: Tensor, rows: Tensor, out: Tensor, sums: Tensor, fresh: bool) -> None:
    """Write a call's result, or merge it with what its rows have seen before."""
    index = rows.flatten()
    out, sums = out.flatten(1, 2), sums.flatten(1, 2)
    if not fresh:
        before = lse.index_select(1, index)
        total = torch.logaddexp(before, sums)
        share = (sums - total.masked_fill(total == -torch.inf, 0)).exp()[..., None]
        out = torch.lerp(output.index_select(1, index), out, share)
        sums = total
    output.index_copy_(1, index, out)
    lse.index_copy_(1, index, sums)
