"""Antidiagonal scores of blocks (XAttention, Xu et al. 2025, arXiv 2503.16428), for any block lengths.

A stride of S cuts every block into groups of S consecutive tokens. The logit of query group a and key group c is
the sum over the antidiagonal of their S x S pairs, q[S·a + S - 1 - r] · k[S·c + r], over the square root of the
head dim and S. Rows of groups are softmaxed; the score of two blocks is the sum over their groups. Tokens that are
not there add nothing, groups without any take no part.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import Blocks, Heads, Sets
from .config import Config
from .options import launcher, options
from .steps import LN2, LOG2E, NONE, batch_and_head, first_row, in_eights, kept_keys, set_of

HALF, FLOAT32 = Config(128, 128, 8, 3), Config(32, 32, 4, 1)
DEPTH = 64  # of the head dim at a time
CHUNK = 1 << 26  # (query group, key block) pairs held at a time


@triton.jit
def members(blocks, at, groups, offset, kept, STRIDE: tl.constexpr, SIZE: tl.constexpr):
    """Where token ``offset`` of every group is in kernel order, and whether it is there and counts."""
    block, place = groups // (SIZE // STRIDE), groups % (SIZE // STRIDE) * STRIDE + offset
    known = block < blocks.number
    there = place < tl.load(blocks.lengths + at * blocks.number + block, mask=known, other=0)
    rows = tl.load(blocks.starts + at * blocks.number + block, mask=known, other=0).to(tl.int64) + place
    if kept is not None:
        there = there & (tl.load(kept + rows, mask=there, other=0) != 0)
    return rows, there


@triton.jit
def block_sums(logits, COLUMNS: tl.constexpr, TILE: tl.constexpr):
    """The natural-log LSE [M, N / COLUMNS] over each COLUMNS consecutive base-2 logits [M, N]."""
    parts = tl.reshape(logits, [TILE.M, TILE.N // COLUMNS, COLUMNS])
    top = tl.max(parts, 2)
    blind = top == NONE
    shift = tl.where(blind, 0.0, top)
    total = tl.where(blind, 1.0, tl.sum(tl.exp2(parts - shift[:, :, None]), 2))
    return tl.where(blind, NONE, (shift + tl.log2(total)) * LN2)


@triton.jit
def antidiagonal(
    query, key, out, own, other, sets, kept, scale, first, last, heads, tokens,
    STRIDE: tl.constexpr, DEPTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Program (i, j, l): the LSE over key blocks, for M query groups from ``first`` on and N key groups.

    ``out`` is float32 [batch · heads, last - first, key blocks]; ``first`` and ``last`` are query groups.
    """
    batch, head = batch_and_head(heads)
    at = set_of(sets, batch, head, heads)
    kept = kept_keys(kept, sets, batch, at, tokens)
    rows = first + tl.program_id(0) * TILE.M + tl.arange(0, TILE.M)
    columns = tl.program_id(2) * TILE.N + tl.arange(0, TILE.N)
    logits = tl.full([TILE.M, TILE.N], 0, tl.float32)
    row_seen, column_seen = tl.full([TILE.M], 0, tl.int32), tl.full([TILE.N], 0, tl.int32)
    for turn in range(STRIDE * (TILE.WIDTH // DEPTH)):
        offset = turn // (TILE.WIDTH // DEPTH)
        d = turn % (TILE.WIDTH // DEPTH) * DEPTH + tl.arange(0, DEPTH)
        q_rows, q_there = members(own, at, rows, STRIDE - 1 - offset, None, STRIDE, TILE.SIZE)
        k_rows, k_there = members(other, at, columns, offset, kept, STRIDE, TILE.SIZE)
        row_seen += q_there.to(tl.int32)
        column_seen += k_there.to(tl.int32)
        q_mask, k_mask = q_there[:, None] & (d < TILE.DIM)[None, :], k_there[:, None] & (d < TILE.DIM)[None, :]
        q = first_row(query, batch, head, TILE) + q_rows[:, None] * in_eights(query.token, TILE) + d[None, :]
        q = tl.load(q, mask=q_mask, other=0.0)
        k = first_row(key, batch, head, TILE) + k_rows[:, None] * in_eights(key.token, TILE) + d[None, :]
        k = tl.load(k, mask=k_mask, other=0.0)
        logits = tl.dot(q, tl.trans(k), logits, input_precision=TILE.PRECISION)
    logits = tl.where((row_seen > 0)[:, None] & (column_seen > 0)[None, :], logits * (scale * LOG2E), NONE)
    width: tl.constexpr = TILE.SIZE // STRIDE
    sums = block_sums(logits, width, TILE)
    blocks = tl.program_id(2) * (TILE.N // width) + tl.arange(0, TILE.N // width)
    lines = (tl.program_id(1).to(tl.int64) * (last - first) + rows - first) * other.number
    inside = (rows < last)[:, None] & (blocks < other.number)[None, :]
    tl.store(out + lines[:, None] + blocks[None, :], sums, mask=inside)


@launcher
def antidiagonal_scores(
    query: Tensor,
    key: Tensor,
    own: Blocks,
    other: Blocks,
    sets: Sets,
    key_mask: Tensor | None,
    size: int,
    stride: int,
    factor: float = 1.0,
) -> Tensor:
    """How much the queries of every block attend to the keys of every block, estimated.

    Args:
        query, key: [batch, heads, tokens, head_dim] in kernel order.
        own, other: the blocks of queries and of keys, of ``size`` slots; ``stride`` is a power of two up to it.
        key_mask: uint8 [batch, groups, tokens] in kernel order, 0 for keys that nobody sees; or None.
        factor: logits are multiplied by it.

    Returns:
        float32 [batch, heads, query blocks, key blocks]; a row sums to the number of its groups with a token.
    """
    batch, heads, tokens, dim = query.shape
    per_block = size // stride
    config = FLOAT32 if query.dtype == torch.float32 else HALF
    config = config._replace(N=max(config.N, per_block))
    settings = options(config, query, size)
    depth = min(DEPTH, settings["TILE"].WIDTH)
    scale = factor * dim**-0.5 / stride
    scores = query.new_empty(batch, heads, own.number, other.number, dtype=torch.float32)
    step = max(1, CHUNK // (batch * heads * other.number * per_block))
    for start in range(0, own.number, step):
        end = min(start + step, own.number)
        first, last = start * per_block, end * per_block
        sums = query.new_empty(batch, heads, last - first, other.number, dtype=torch.float32)
        antidiagonal[
            (triton.cdiv(last - first, config.M), batch * heads, triton.cdiv(other.number * per_block, config.N))
        ](
            Heads.of(query), Heads.of(key), sums, own, other, sets, key_mask, scale, first, last, heads,
            tokens, STRIDE=stride, DEPTH=depth, **settings,
        )  # fmt: skip
        scores[:, :, start:end] = _weights(sums).unflatten(2, (-1, per_block)).sum(3)
    return scores


def _weights(sums: Tensor) -> Tensor:
    """Shares of every key block from its LSE; 0 in rows that see nothing or have no token."""
    total = sums.logsumexp(-1, keepdim=True)
    return (sums - total.masked_fill(total == -torch.inf, 0)).exp()
