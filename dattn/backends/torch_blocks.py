"""The torch backend: block lists walked with gathered keys, forward and backward, on any device.

Query blocks whose lists agree share a call; what a row sees in several calls is merged by log-sum-exp, so
nothing is as large as tokens x tokens. On a CPU the calls are PyTorch's own flash attention, in float32 where the
inputs are shorter. The backward pass recomputes the weights from the log-sum-exp, call by call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dattn.backends.plan import Piece, Plan, plan_for, same_groups
from dattn.backends.pooling import pool_runs, unpool_runs
from dattn.backends.problem import Problem, empty_like_model
from dattn.backends.torch_weights import block_weights as block_weights  # the third function of a backend
from dattn.block_mask import BlockMask
from dattn.heads import head_groups

GATHERED = 1 << 21  # numbers gathered (forward) or weights held (backward) at a time: a few MB, near the cache


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """See ``Backend.forward``."""
    wide = torch.promote_types(problem.query.dtype, torch.float32)
    output = empty_like_model(problem.value, dtype=wide)
    lse = empty_like_model(problem.query[..., 0], dtype=wide)
    for part in _parts(problem):
        with part.writing(output, lse) as targets:
            _walk(part, problem, part.inputs(*problem[:3]), *targets)
    return output.to(problem.query.dtype), lse


def backward(
    problem: Problem, output: Tensor, lse: Tensor, grad_output: Tensor, grad_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``Backend.backward``."""
    delta = (grad_output.to(lse.dtype) * output).sum(-1) - grad_lse
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)  # rows that see nothing: weights of 0
    grads = [empty_like_model(t, dtype=lse.dtype).zero_() for t in problem[:3]]
    for part in _parts(problem):
        with part.writing(*grads) as targets:
            _walk_back(part, problem, part.inputs(*problem[:3], grad_output, lse, delta), targets)
    dq, dk, dv = (grad.to(problem.query.dtype) for grad in grads)
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
    """A batch row and heads that share one set of lists; their tensors are [tokens, heads, …], as models hold them.

    Nothing is transposed on the way in or out.
    """

    row: int
    heads: slice | list[int]
    plan: Plan
    key_mask: Tensor | None

    def inputs(self, *tensors: Tensor) -> list[Tensor]:
        """This part of every tensor [batch, heads, tokens, …], in float32 at least, contiguous."""
        wide = torch.promote_types(tensors[0].dtype, torch.float32)
        return [t[self.row, self.heads].transpose(0, 1).to(wide).contiguous() for t in tensors]

    @property
    def kept(self) -> Tensor | None:
        """The key mask as bool [1, tokens], or None."""
        return None if self.key_mask is None else self.key_mask[None]

    @contextmanager
    def writing(self, *tensors: Tensor) -> Iterator[list[Tensor]]:
        """Contiguous tensors of this part, whose content ends up in ``tensors``."""
        views = [t[self.row, self.heads].transpose(0, 1) for t in tensors]
        own = [view.contiguous() for view in views]
        yield own
        for tensor, view, part in zip(tensors, views, own, strict=True):
            if isinstance(self.heads, list) or part.data_ptr() != view.data_ptr():
                tensor[self.row, self.heads] = part.transpose(0, 1)


def _parts(problem: Problem) -> Iterator[_Part]:
    """All parts: row by row of the batch, and by groups of heads, those with the same lists together."""
    batch, heads = problem.query.shape[:2]
    slices = head_groups(heads, problem.mask.groups)
    for row in range(batch):
        kept = None if problem.key_mask is None else problem.key_mask[row]
        for groups in same_groups(problem.mask, row):
            own: slice | list[int] = slices[groups[0]]  # a slice copies nothing
            if len(groups) > 1:
                own = [head for group in groups for head in range(heads)[slices[group]]]
            yield _Part(row, own, plan_for(problem.mask, row, groups[0]), kept)


class _Source(NamedTuple):
    """Keys and values [count, heads, head_dim] that calls draw from; pooled ones have ln n [count] too."""

    key: Tensor
    value: Tensor
    log_count: Tensor | None = None


def _sources(part: _Part, key: Tensor, value: Tensor) -> list[_Source]:
    """The keys and values themselves, and the pooled ones of every pool of the mask."""
    found = [_Source(key, value)]
    for runs in part.plan.runs:
        *means, log_count = pool_runs(key.transpose(0, 1)[None], value.transpose(0, 1)[None], runs, part.kept)
        keys, values = (mean[0].flatten(1, 2).transpose(0, 1).contiguous() for mean in means)
        found.append(_Source(keys, values, log_count.flatten()))
    return found


def _number(piece: Piece) -> int:
    """Which of the sources a piece draws from."""
    return 1 + piece.pool if piece.kind == "means" else 0


def _walk(part: _Part, problem: Problem, inputs: Sequence[Tensor], output: Tensor, lse: Tensor) -> None:
    """One part's calls, piece by piece, into ``output`` and ``lse``."""
    query, key, value = inputs
    if not part.plan.complete:
        output.zero_(), lse.fill_(-torch.inf)
    sources, space = _sources(part, key, value), _Workspace()
    calls = _Calls(part.plan, problem.mask, part.key_mask, sources, query.dtype)
    for piece in part.plan.pieces:
        k, v, _ = sources[_number(piece)]
        for heads, rows, columns, bias in calls.of(piece, query.shape[1], 2 * query.shape[2]):
            at_rows, at_columns = (_positions(index, heads, query.shape[1]) for index in (rows, columns))
            q = space.gather("q", query, at_rows)
            k_, v_ = space.gather("k", k, at_columns), space.gather("v", v, at_columns)
            out, sums = _softmax(q, k_, v_, bias, problem.scale)
            _store(output[:, heads], lse[:, heads], rows, out, sums, fresh=piece.turn == 0)


def _walk_back(part: _Part, problem: Problem, inputs: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
    """Add one part's gradients to those of query, key and value: every call adds what it contributes."""
    query, key, value, grad_output, lse, delta = inputs
    sources = _sources(part, key, value)
    pooled = [(torch.zeros_like(source.key), torch.zeros_like(source.value)) for source in sources[1:]]
    targets = [(grads[1], grads[2]), *pooled]
    calls = _Calls(part.plan, problem.mask, part.key_mask, sources, query.dtype)
    for piece in part.plan.pieces:
        (k, v, _), (dk, dv) = sources[_number(piece)], targets[_number(piece)]
        length = piece.queries.shape[1] * problem.mask.block_size
        for heads, rows, columns, bias in calls.of(piece, query.shape[1], length):
            at_rows, at_columns = (_positions(index, heads, query.shape[1]) for index in (rows, columns))
            q, d_out, sums, less = (_gather(t, at_rows) for t in (query, grad_output, lse, delta))
            k_, v_ = _gather(k, at_columns), _gather(v, at_columns)
            logits = (q @ k_.mT).mul_(problem.scale)
            logits = logits if bias is None else logits.add_(bias)
            weights = logits.sub_(sums[..., None]).exp_()
            _add(dv, at_columns, weights.mT @ d_out)
            d_logits = (d_out @ v_.mT).sub_(less[..., None]).mul_(weights).mul_(problem.scale)
            _add(grads[0], at_rows, d_logits @ k_)
            _add(dk, at_columns, d_logits.mT @ q)
    for runs, of_pool in zip(part.plan.runs, pooled, strict=True):
        for total, grad in zip(grads[1:], of_pool, strict=True):
            spread = grad.transpose(0, 1)[None].unflatten(2, runs.shape[:2])
            total += unpool_runs(spread, runs, part.kept, len(total))[0].transpose(0, 1)


@dataclass(frozen=True, eq=False)
class _Calls:
    """The calls of a plan as index tensors, in chunks that bound the memory of each."""

    plan: Plan
    mask: BlockMask
    key_mask: Tensor | None
    sources: list[_Source]
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
        if piece.kind != "means":
            return _real(self.plan.keys[blocks])
        runs = self.plan.runs[piece.pool].shape[1]
        return (blocks[..., None] * runs + torch.arange(runs, device=blocks.device)).flatten(1)

    def _bias(self, piece: Piece, columns: Tensor, tiles: Tensor | None) -> Tensor | None:
        """[calls or 1, 1, rows or 1, columns] added to the logits: 0 and -inf, or ln n of pooled keys."""
        log_count = self.sources[_number(piece)].log_count
        if log_count is not None:
            return log_count[columns][:, None, None]
        if self.key_mask is None or self.key_mask[columns].all():
            return tiles
        padded = _minus_infinity(~self.key_mask[columns][:, None, None], self.dtype)
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


def _positions(index: Tensor, heads: slice, count: int) -> Tensor:
    """Where the tokens ``index`` [calls, n] of some heads stand in a flat [tokens · count, …]: [calls, heads, n]."""
    return index[:, None] * count + torch.arange(heads.start, min(heads.stop, count), device=index.device)[:, None]


def _gather(tensor: Tensor, positions: Tensor) -> Tensor:
    """[calls, heads, n, …] of ``tensor`` [tokens, heads, …]; heads apart, as the products are fastest."""
    return tensor.flatten(0, 1).index_select(0, positions.flatten()).unflatten(0, positions.shape)


def _add(target: Tensor, positions: Tensor, update: Tensor) -> None:
    """Add ``update`` [calls, heads, n, head_dim] to the contiguous ``target`` [tokens, heads, head_dim]."""
    target.view(-1, target.shape[-1]).index_add_(0, positions.flatten(), update.flatten(0, 2))


class _Workspace:
    """Buffers that are kept from call to call: fresh memory for gathered keys would cost more than the copy."""

    def __init__(self) -> None:
        self._flat: dict[str, Tensor] = {}

    def gather(self, name: str, tensor: Tensor, positions: Tensor) -> Tensor:
        """As ``_gather``, for tensors [tokens, heads, head_dim]."""
        width = tensor.shape[-1]
        count = positions.numel() * width
        if name not in self._flat or self._flat[name].numel() < count:
            self._flat[name] = tensor.new_empty(count)
        out = self._flat[name][:count].view(-1, width)
        torch.index_select(tensor.view(-1, width), 0, positions.flatten(), out=out)
        return out.view(*positions.shape, width)


def _softmax(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of [calls, heads, rows, head_dim] with its LSE; rows that see nothing give 0 and -inf."""
    blind = None if bias is None else bias.amax(-1) == -torch.inf
    if q.device.type == "cpu" and v.shape[-1] == q.shape[-1]:
        full = None if bias is None else bias.expand(q.shape[0], -1, q.shape[2], -1)
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
    out, sums = (t.transpose(1, 2).flatten(0, 1) for t in (out, sums))
    if not fresh:
        before = lse.index_select(0, index)
        total = torch.logaddexp(before, sums)
        share = (sums - total.masked_fill(total == -torch.inf, 0)).exp()[..., None]
        out = torch.lerp(output.index_select(0, index), out, share)
        sums = total
    output.index_copy_(0, index, out)
    lse.index_copy_(0, index, sums)
