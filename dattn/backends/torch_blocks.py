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
from dattn.backends.pooling import pool_runs
from dattn.block_mask import BlockMask
from dattn.heads import head_groups

GATHERED = 1 << 21  # numbers gathered (forward) or weights held (backward) at a time: a few MB, near the cache


def run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: BlockMask,
    *,
    scale: float,
    key_mask: Tensor | None,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """See ``Backend.run``; a mask that skips nothing goes to PyTorch's dense attention."""
    if mask.is_all and not return_lse:
        return _dense(query, key, value, scale, key_mask), None
    wide = torch.promote_types(query.dtype, torch.float32)
    q, k, v = (t.to(wide) for t in (query, key, value))
    outputs, lses = [], []
    for rows in range(query.shape[0]) if _by_row(mask, key_mask) else [slice(None)]:
        at = slice(rows, rows + 1) if isinstance(rows, int) else rows
        kept = None if key_mask is None else key_mask[at]
        parts = [
            _attend(q[at, heads], k[at, heads], v[at, heads], plan_for(mask, at.start or 0, group), mask, scale, kept)
            for group, heads in enumerate(head_groups(query.shape[1], mask.groups))
        ]
        outputs.append(_joined([p[0] for p in parts], 1))
        lses.append(_joined([p[1] for p in parts], 1))
    return _joined(outputs, 0).to(query.dtype), _joined(lses, 0) if return_lse else None


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _by_row(mask: BlockMask, key_mask: Tensor | None) -> bool:
    """Whether batch rows differ in what they see, and so take turns."""
    return key_mask is not None or mask.full.offsets.shape[0] > 1


def _dense(query: Tensor, key: Tensor, value: Tensor, scale: float, key_mask: Tensor | None) -> Tensor:
    if key_mask is None:
        return scaled_dot_product_attention(query, key, value, scale=scale)
    blind = ~key_mask.any(-1)[:, None, None, None]
    seen = key_mask[:, None, None] | blind  # a row that sees nothing would be NaN on some devices
    return scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale).masked_fill(blind, 0)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: Plan,
    mask: BlockMask,
    scale: float,
    key_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One set of lists: pool the tail, differentiably, then walk the pieces."""
    batch, heads = query.shape[:2]
    pooled: list[Any] = [None, None, None]
    if plan.runs is not None:
        *means, log_count = pool_runs(key, value, plan.runs, key_mask)
        pooled = [m.flatten(0, 1).flatten(1, 2) for m in means] + [log_count.flatten(1)]
    # Models hand over transposed heads, and index_select would copy all of such an input for every call.
    tensors = (t.flatten(0, 1).contiguous() for t in (query, key, value))
    output, lse = _Blocks.apply(*tensors, *pooled, plan, mask, scale, key_mask)
    return output.unflatten(0, (batch, heads)), lse.unflatten(0, (batch, heads))


class _Blocks(torch.autograd.Function):
    """The walk and its gradient; all tensors are [batch · heads, tokens, head_dim]."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        pooled_key: Tensor | None,
        pooled_value: Tensor | None,
        log_count: Tensor | None,
        plan: Plan,
        mask: BlockMask,
        scale: float,
        key_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        output, lse = value.new_empty(*query.shape[:2], value.shape[-1]), query.new_empty(query.shape[:2])
        if not plan.complete:
            output.zero_(), lse.fill_(-torch.inf)
        calls = _Calls(plan, mask, key_mask, log_count, query.dtype)
        space = _Workspace()
        sources: dict[bool, Any] = {False: (key, value), True: (pooled_key, pooled_value)}
        for piece in plan.pieces:
            k, v = sources[piece.kind == "tail"]
            for heads, rows, columns, bias in calls.of(piece, query.shape[0], 2 * query.shape[-1]):
                q, k_, v_ = (
                    space.gather(name, t[heads], index)
                    for name, t, index in (("q", query, rows), ("k", k, columns), ("v", v, columns))
                )
                out, sums = _softmax(q, k_, v_, bias, scale)
                _store(output[heads], lse[heads], rows, out, sums, fresh=piece.turn == 0)
        ctx.save_for_backward(query, key, value, pooled_key, pooled_value, output, lse)
        ctx.calls, ctx.scale = calls, scale
        return output, lse

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, output, lse = ctx.saved_tensors  # read once: gradient checkpointing allows no more
        with torch.autocast(output.device.type, enabled=False):
            delta = (grad_output * output).sum(-1) - grad_lse
            lse = lse.masked_fill(lse == -torch.inf, torch.inf)  # rows that see nothing: weights of 0
            grads = _gradients(ctx.calls, inputs, grad_output.contiguous(), delta, lse, ctx.scale)
        return *grads, None, None, None, None, None


def _gradients(
    calls: _Calls,
    inputs: Sequence[Any],
    grad_output: Tensor,
    delta: Tensor,
    lse: Tensor,
    scale: float,
) -> list[Any]:
    """Gradients of query, key, value and the pooled keys and values: every call adds what it contributes."""
    query = inputs[0]
    grads: list[Any] = [None if t is None else torch.zeros_like(t) for t in inputs]
    for piece in calls.plan.pieces:
        pair = slice(3, 5) if piece.kind == "tail" else slice(1, 3)
        (k, v), (dk, dv) = inputs[pair], grads[pair]
        length = piece.queries.shape[1] * calls.mask.block_size
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
    return grads


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
