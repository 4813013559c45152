"""The backward kernels: the weights are recomputed from the log-sum-exp, tile by tile, without atomics.

``grad_query`` walks the lists as the forward pass does; ``grad_key`` walks the transposed lists; ``grad_pool``
walks all queries for every pooled key. The logits are scaled in float32: keys scaled in half precision would
give weights that do not belong to the log-sum-exp.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .steps import LOG2E, NONE, first_row, load_rows, raster, set_of, store_rows, word_bits


@triton.jit
def deltas(
    out,
    grad,
    grad_lse,
    delta,
    heads,
    tokens,
    M: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Program (i, j): sum(grad · out) - grad_lse of M rows of batch row and head j; all in raster order."""
    batch, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    rows = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    inside = rows < tokens
    o = load_rows(first_row(out, batch, head), out.token, 0, rows, inside, DIM, WIDTH).to(tl.float32)
    g = load_rows(first_row(grad, batch, head), grad.token, 0, rows, inside, DIM, WIDTH).to(tl.float32)
    at = (batch * heads + head) * tokens + rows
    tl.store(delta + at, tl.sum(o * g, 1) - tl.load(grad_lse + at, mask=inside, other=0.0), mask=inside)


@triton.jit
def query_step(acc, q, grad, lse, delta, k, v, logits, PRECISION: tl.constexpr):
    """Add what keys ``k`` and values ``v`` contribute to the gradient of the queries, but for the scale."""
    weights = tl.exp2(logits - lse[:, None])
    slope = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
    slope = weights * (slope - delta[:, None])
    return tl.dot(slope.to(k.dtype), k, acc, input_precision=PRECISION)


@triton.jit
def walk_keys(
    acc,
    q,
    grad,
    lse,
    delta,
    key,
    value,
    visits,
    lists,
    at,
    row,
    lines,
    kept,
    step,
    SIZE: tl.constexpr,
    N: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradient of a tile of queries from the key blocks of one list row."""
    first = tl.load(lists.offsets + at * (lists.rows + 1) + row)
    last = tl.load(lists.offsets + at * (lists.rows + 1) + row + 1)
    for turn in range(first * (SIZE // N), last * (SIZE // N)):
        entry = at * lists.entries + turn // (SIZE // N)
        places = turn % (SIZE // N) * N + tl.arange(0, N)
        block = at * visits.other.count + tl.load(lists.index + entry)
        start = tl.load(visits.other.starts + block).to(tl.int64)
        inside = places < tl.load(visits.other.lengths + block)
        k = load_rows(key[0], key[1], start, places, inside, DIM, WIDTH)
        v = load_rows(value[0], value[1], start, places, inside, DIM, WIDTH)
        logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * step
        if kept is not None:
            logits = tl.where(tl.load(kept + start + places, mask=inside, other=0)[None, :] != 0, logits, NONE)
        if lists.tile is not None:
            words = visits.tiles + (tl.load(lists.tile + entry).to(tl.int64) * SIZE + lines) * ((SIZE + 31) // 32)
            logits = tl.where(word_bits(words, places, N, False), logits, NONE)
        # keys past a ragged block's end are zeros and add nothing
        acc = query_step(acc, q, grad, lse, delta, k, v, logits, PRECISION)
    return acc


@triton.jit
def grad_query(
    query,
    key,
    value,
    grad,
    lse,
    delta,
    out,
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
    PRECISION: tl.constexpr,
):
    """Program (i, j): the gradient of query tile i of batch row and head j.

    Inputs are in kernel order, the gradient is in raster order.
    """
    row = tl.program_id(0) // (SIZE // M)
    lines = tl.program_id(0) % (SIZE // M) * M + tl.arange(0, M)
    batch, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    at = set_of(visits, batch, head, heads)
    start = tl.load(visits.own.starts + at * visits.own.count + row).to(tl.int64)
    inside = lines < tl.load(visits.own.lengths + at * visits.own.count + row)
    q = load_rows(first_row(query, batch, head), query.token, start, lines, inside, DIM, WIDTH)
    g = load_rows(first_row(grad, batch, head), grad.token, start, lines, inside, DIM, WIDTH)
    rows = (batch * heads + head) * tokens + start + lines
    sums = tl.load(lse + rows, mask=inside, other=float("inf")) * LOG2E
    d = tl.load(delta + rows, mask=inside, other=0.0)
    keys, values = (first_row(key, batch, head), key.token), (first_row(value, batch, head), value.token)
    kept = key_mask
    if key_mask is not None:
        kept = key_mask + (batch * visits.groups + at % visits.groups) * tokens
    step = scale * LOG2E
    acc = tl.zeros([M, WIDTH], tl.float32)
    acc = walk_keys(
        acc, q, g, sums, d, keys, values, visits, visits.full, at, row, lines, kept, step,
        SIZE, N, DIM, WIDTH, PRECISION,
    )  # fmt: skip
    if visits.partial is not None:
        acc = walk_keys(
            acc, q, g, sums, d, keys, values, visits, visits.partial, at, row, lines, kept, step,
            SIZE, N, DIM, WIDTH, PRECISION,
        )  # fmt: skip
    if pool is not None:
        seen = pool.seen + (at * visits.own.count + row) * pool.words
        pk, pv = first_row(pool.key, batch, head), first_row(pool.value, batch, head)
        bias = pool.bias + (batch % pool.biases * visits.groups + at % visits.groups) * pool.count
        for first in range(0, pool.count, N):
            places = first + tl.arange(0, N)
            there = places < pool.count
            k = load_rows(pk, pool.key.token, 0, places, there, DIM, WIDTH)
            v = load_rows(pv, pool.value.token, 0, places, there, DIM, WIDTH)
            bits = tl.load(seen + places // 32, mask=there, other=0) >> (places % 32) & 1
            added = tl.where(bits != 0, tl.load(bias + places, mask=there, other=0.0) * LOG2E, NONE)
            logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * step + added[None, :]
            acc = query_step(acc, q, g, sums, d, k, v, logits, PRECISION)
    position = raster(order, at * tokens + start + lines, start + lines, inside)
    store_rows(first_row(out, batch, head), out.token, position, acc * scale, inside, DIM, WIDTH)


@triton.jit
def key_step(state, k, v, q, grad, lse, delta, logits, PRECISION: tl.constexpr):
    """Add what queries ``q`` contribute to the gradients of keys (but for the scale) and values.

    ``logits`` are turned: [keys, queries], base 2.
    """
    dk, dv = state
    weights = tl.exp2(logits - lse[None, :])
    dv = tl.dot(weights.to(grad.dtype), grad, dv, input_precision=PRECISION)
    slope = tl.dot(v, tl.trans(grad), input_precision=PRECISION)
    slope = weights * (slope - delta[None, :])
    return tl.dot(slope.to(q.dtype), q, dk, input_precision=PRECISION), dv


@triton.jit
def walk_queries(
    state,
    k,
    v,
    query,
    grad,
    lse,
    delta,
    visits,
    lists,
    at,
    row,
    lines,
    kept,
    step,
    SIZE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradients of a tile of keys from the query blocks of one transposed list row."""
    dk, dv = state
    first = tl.load(lists.offsets + at * (lists.rows + 1) + row)
    last = tl.load(lists.offsets + at * (lists.rows + 1) + row + 1)
    for turn in range(first * (SIZE // M), last * (SIZE // M)):
        entry = at * lists.entries + turn // (SIZE // M)
        places = turn % (SIZE // M) * M + tl.arange(0, M)
        block = at * visits.other.count + tl.load(lists.index + entry)
        start = tl.load(visits.other.starts + block).to(tl.int64)
        inside = places < tl.load(visits.other.lengths + block)
        q = load_rows(query[0], query[1], start, places, inside, DIM, WIDTH)
        g = load_rows(grad[0], grad[1], start, places, inside, DIM, WIDTH)
        sums = tl.load(lse + start + places, mask=inside, other=float("inf")) * LOG2E
        d = tl.load(delta + start + places, mask=inside, other=0.0)
        logits = tl.dot(k, tl.trans(q), input_precision=PRECISION) * step
        if kept is not None:
            logits = tl.where(kept[:, None], logits, NONE)
        if lists.tile is not None:
            words = visits.tiles + (tl.load(lists.tile + entry).to(tl.int64) * SIZE + places) * ((SIZE + 31) // 32)
            logits = tl.where(word_bits(words, lines, N, True), logits, NONE)
        dk, dv = key_step((dk, dv), k, v, q, g, sums, d, logits, PRECISION)
    return dk, dv


@triton.jit
def grad_key(
    query,
    key,
    value,
    grad,
    lse,
    delta,
    out_key,
    out_value,
    order,
    visits,
    key_mask,
    scale,
    heads,
    tokens,
    SIZE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (i, j): the gradients of key tile i of batch row and head j; ``visits`` are transposed.

    Inputs are in kernel order, the gradients are in raster order.
    """
    row = tl.program_id(0) // (SIZE // N)
    lines = tl.program_id(0) % (SIZE // N) * N + tl.arange(0, N)
    batch, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    at = set_of(visits, batch, head, heads)
    start = tl.load(visits.own.starts + at * visits.own.count + row).to(tl.int64)
    inside = lines < tl.load(visits.own.lengths + at * visits.own.count + row)
    k = load_rows(first_row(key, batch, head), key.token, start, lines, inside, DIM, WIDTH)
    v = load_rows(first_row(value, batch, head), value.token, start, lines, inside, DIM, WIDTH)
    queries, grads = (first_row(query, batch, head), query.token), (first_row(grad, batch, head), grad.token)
    rows = (batch * heads + head) * tokens
    kept = key_mask
    if key_mask is not None:
        kept = tl.load(key_mask + (batch * visits.groups + at % visits.groups) * tokens + start + lines, inside, 0) != 0
    state = (tl.zeros([N, WIDTH], tl.float32), tl.zeros([N, WIDTH], tl.float32))
    state = walk_queries(
        state, k, v, queries, grads, lse + rows, delta + rows, visits, visits.full, at, row, lines, kept,
        scale * LOG2E, SIZE, M, N, DIM, WIDTH, PRECISION,
    )  # fmt: skip
    if visits.partial is not None:
        state = walk_queries(
            state, k, v, queries, grads, lse + rows, delta + rows, visits, visits.partial, at, row, lines, kept,
            scale * LOG2E, SIZE, M, N, DIM, WIDTH, PRECISION,
        )  # fmt: skip
    dk, dv = state
    position = raster(order, at * tokens + start + lines, start + lines, inside)
    store_rows(first_row(out_key, batch, head), out_key.token, position, dk * scale, inside, DIM, WIDTH)
    store_rows(first_row(out_value, batch, head), out_value.token, position, dv, inside, DIM, WIDTH)


@triton.jit
def grad_pool(
    query,
    grad,
    lse,
    delta,
    out_key,
    out_value,
    queries,
    pool,
    batches,
    groups,
    scale,
    heads,
    tokens,
    SIZE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (i, j): the gradients of N pooled keys and values of batch row and head j, from all queries."""
    places = tl.program_id(0) * N + tl.arange(0, N)
    batch, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    at = (batch % batches) * groups + head * groups // heads
    there = places < pool.count
    k = load_rows(first_row(pool.key, batch, head), pool.key.token, 0, places, there, DIM, WIDTH)
    v = load_rows(first_row(pool.value, batch, head), pool.value.token, 0, places, there, DIM, WIDTH)
    bias = pool.bias + (batch % pool.biases * groups + at % groups) * pool.count
    added = tl.load(bias + places, mask=there, other=0.0) * LOG2E
    first_query, first_grad = first_row(query, batch, head), first_row(grad, batch, head)
    rows = (batch * heads + head) * tokens
    dk, dv = tl.zeros([N, WIDTH], tl.float32), tl.zeros([N, WIDTH], tl.float32)
    for turn in range(queries.count * (SIZE // M)):
        block = at * queries.count + turn // (SIZE // M)
        lines = turn % (SIZE // M) * M + tl.arange(0, M)
        start = tl.load(queries.starts + block).to(tl.int64)
        inside = lines < tl.load(queries.lengths + block)
        q = load_rows(first_query, query.token, start, lines, inside, DIM, WIDTH)
        g = load_rows(first_grad, grad.token, start, lines, inside, DIM, WIDTH)
        sums = tl.load(lse + rows + start + lines, mask=inside, other=float("inf")) * LOG2E
        d = tl.load(delta + rows + start + lines, mask=inside, other=0.0)
        bits = tl.load(pool.seen + block * pool.words + places // 32, mask=there, other=0) >> (places % 32) & 1
        logits = tl.dot(k, tl.trans(q), input_precision=PRECISION) * (scale * LOG2E)
        logits += tl.where(bits != 0, added, NONE)[:, None]
        dk, dv = key_step((dk, dv), k, v, q, g, sums, d, logits, PRECISION)
    store_rows(first_row(out_key, batch, head), out_key.token, places.to(tl.int64), dk * scale, there, DIM, WIDTH)
    store_rows(first_row(out_value, batch, head), out_value.token, places.to(tl.int64), dv, there, DIM, WIDTH)
