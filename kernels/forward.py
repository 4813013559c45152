"""The forward kernel: a tile of queries walks its full blocks, its partial blocks and the pooled keys.

One pass with a running softmax (FlashAttention-2, Dao 2023, arXiv 2307.08691), over lists instead of all keys.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .steps import LN2, LOG2E, NONE, first_row, load_rows, raster, running_softmax, set_of, store_rows, word_bits


@triton.jit
def walk(
    state,
    query,
    key,
    value,
    visits,
    lists,
    at,
    row,
    lines,
    kept,
    scale,
    SIZE: tl.constexpr,
    N: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    RAGGED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attend to the key blocks of one list row, N keys at a time; ``key`` and ``value`` are (pointer, stride)."""
    acc, top, total = state
    first = tl.load(lists.offsets + at * (lists.rows + 1) + row)
    last = tl.load(lists.offsets + at * (lists.rows + 1) + row + 1)
    for turn in range(first * (SIZE // N), last * (SIZE // N)):
        entry = at * lists.entries + turn // (SIZE // N)
        places = turn % (SIZE // N) * N + tl.arange(0, N)
        block = at * visits.other.count + tl.load(lists.index + entry)
        start = tl.load(visits.other.starts + block).to(tl.int64)
        inside = places < tl.load(visits.other.lengths + block)
        k = load_rows(key[0], key[1], start, places, inside, DIM, WIDTH)
        logits = tl.dot(query, tl.trans(k), input_precision=PRECISION) * scale
        if RAGGED:
            logits = tl.where(inside[None, :], logits, NONE)
        if kept is not None:
            logits = tl.where(tl.load(kept + start + places, mask=inside, other=0)[None, :] != 0, logits, NONE)
        if lists.tile is not None:
            words = visits.tiles + (tl.load(lists.tile + entry).to(tl.int64) * SIZE + lines) * ((SIZE + 31) // 32)
            logits = tl.where(word_bits(words, places, N, False), logits, NONE)
        v = load_rows(value[0], value[1], start, places, inside, DIM, WIDTH)
        acc, top, total = running_softmax(acc, top, total, logits, v, PRECISION)
    return acc, top, total


@triton.jit
def walk_pool(
    state,
    query,
    pool,
    batch,
    head,
    bias,
    seen,
    scale,
    N: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attend to the pooled keys; ``bias`` and ``seen`` point at what is added and at the bits of this query block."""
    acc, top, total = state
    key, value = first_row(pool.key, batch, head), first_row(pool.value, batch, head)
    for first in range(0, pool.count, N):
        places = first + tl.arange(0, N)
        inside = places < pool.count
        k = load_rows(key, pool.key.token, 0, places, inside, DIM, WIDTH)
        bits = tl.load(seen + places // 32, mask=inside, other=0) >> (places % 32) & 1
        added = tl.where(bits != 0, tl.load(bias + places, mask=inside, other=0.0) * LOG2E, NONE)
        logits = tl.dot(query, tl.trans(k), input_precision=PRECISION) * scale + added[None, :]
        v = load_rows(value, pool.value.token, 0, places, inside, DIM, WIDTH)
        acc, top, total = running_softmax(acc, top, total, logits, v, PRECISION)
    return acc, top, total


@triton.jit
def forward(
    query,
    key,
    value,
    out,
    lse,
    order,
    visits,
    key_mask,
    pool,
    scale,
    heads,
    tokens,
    SIZE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    RAGGED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (i, j): query tile i of batch row and head j. Inputs in kernel order, outputs in raster order."""
    row = tl.program_id(0) // (SIZE // M)
    lines = tl.program_id(0) % (SIZE // M) * M + tl.arange(0, M)
    batch, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    at = set_of(visits, batch, head, heads)
    start = tl.load(visits.own.starts + at * visits.own.count + row).to(tl.int64)
    inside = lines < tl.load(visits.own.lengths + at * visits.own.count + row)
    q = load_rows(first_row(query, batch, head), query.token, start, lines, inside, DIM, WIDTH)
    keys, values = (first_row(key, batch, head), key.token), (first_row(value, batch, head), value.token)
    kept = key_mask
    if key_mask is not None:
        kept = key_mask + (batch * visits.groups + at % visits.groups) * tokens
    step = scale * LOG2E
    state = (tl.zeros([M, WIDTH], tl.float32), tl.full([M], NONE, tl.float32), tl.zeros([M], tl.float32))
    state = walk(
        state, q, keys, values, visits, visits.full, at, row, lines, kept, step,
        SIZE, N, DIM, WIDTH, RAGGED, PRECISION,
    )  # fmt: skip
    if visits.partial is not None:
        state = walk(
            state, q, keys, values, visits, visits.partial, at, row, lines, kept, step,
            SIZE, N, DIM, WIDTH, RAGGED, PRECISION,
        )  # fmt: skip
    if pool is not None:
        seen = pool.seen + (at * visits.own.count + row) * pool.words
        bias = pool.bias + (batch % pool.biases * visits.groups + at % visits.groups) * pool.count
        state = walk_pool(state, q, pool, batch, head, bias, seen, step, N, DIM, WIDTH, PRECISION)
    acc, top, total = state
    position = raster(order, at * tokens + start + lines, start + lines, inside)
    blind = top == NONE
    values_out = acc / tl.where(blind, 1.0, total)[:, None]
    store_rows(first_row(out, batch, head), out.token, position, values_out, inside, DIM, WIDTH)
    sums = tl.where(blind, NONE, (top + tl.log2(tl.where(blind, 1.0, total))) * LN2)
    tl.store(lse + (batch * heads + head) * tokens + position, sums, mask=inside)
