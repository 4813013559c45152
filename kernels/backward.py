"""The backward kernels: the weights are recomputed from the log-sum-exp, tile by tile, without atomics.

``grad_query`` walks the lists as the forward pass does; ``grad_key`` walks the transposed lists; ``grad_pool``
walks all queries for every pooled key. The logits are scaled in float32: keys scaled in half precision would
give weights that do not belong to the log-sum-exp.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .steps import (
    LOG2E,
    NONE,
    any_seen,
    batch_and_head,
    first_row,
    kept_keys,
    key_logits,
    load_rows,
    own_tile,
    pool_bias,
    pool_logits,
    raster,
    rows_of,
    set_of,
    slots,
    store_rows,
    tile_bits,
    turns,
    visit,
)


@triton.jit
def deltas(out, grad, grad_lse, delta, heads, tokens, TILE: tl.constexpr):
    """Program (i, j): sum(grad · out) - grad_lse of M rows of batch row and head j; all in raster order."""
    batch, head = batch_and_head(heads)
    rows = tl.program_id(0).to(tl.int64) * TILE.M + tl.arange(0, TILE.M)
    inside = rows < tokens
    o = load_rows(first_row(out, batch, head, TILE), out.token, 0, rows, inside, TILE).to(tl.float32)
    g = load_rows(first_row(grad, batch, head, TILE), grad.token, 0, rows, inside, TILE).to(tl.float32)
    at = (batch * heads + head) * tokens + rows
    tl.store(delta + at, tl.sum(o * g, 1) - tl.load(grad_lse + at, mask=inside, other=0.0), mask=inside)


@triton.jit
def query_rows(query, grad, lse, delta, start, places, inside, TILE: tl.constexpr):
    """Queries, the gradients of their outputs, base-2 LSE (+inf where there is no token) and delta.

    ``query`` and ``grad`` are (pointer, stride); all pointers are at the first row of a batch row and head.
    """
    q = load_rows(query[0], query[1], start, places, inside, TILE)
    g = load_rows(grad[0], grad[1], start, places, inside, TILE)
    sums = tl.load(lse + start + places, mask=inside, other=float("inf")) * LOG2E
    return q, g, sums, tl.load(delta + start + places, mask=inside, other=0.0)


@triton.jit
def query_step(acc, rows, k, v, logits, TILE: tl.constexpr):
    """Add what keys ``k`` and values ``v`` contribute to the gradient of the queries, but for the scale."""
    _, grad, lse, delta = rows
    weights = tl.exp2(logits - lse[:, None])
    slope = tl.dot(grad, tl.trans(v), input_precision=TILE.PRECISION)
    slope = weights * (slope - delta[:, None])
    return tl.dot(slope.to(k.dtype), k, acc, input_precision=TILE.PRECISION)


@triton.jit
def walk_keys(acc, rows, key, value, visits, lists, at, row, lines, kept, step, TILE: tl.constexpr):
    """The gradient of a tile of queries from the key blocks of one list row."""
    first, last = turns(lists, at, row, TILE.SIZE // TILE.N)
    ahead = visit(visits, lists, at, first, last, TILE.N, TILE.SIZE)
    for turn in range(first, last):
        start, length, tile = ahead
        ahead = visit(visits, lists, at, turn + 1, last, TILE.N, TILE.SIZE)
        places, inside = slots(turn, length, TILE.N, TILE.SIZE)
        k = load_rows(key[0], key[1], start, places, inside, TILE)
        v = load_rows(value[0], value[1], start, places, inside, TILE)
        logits = key_logits(rows[0], k, visits, lists, tile, lines, places, start, inside, kept, step, TILE)
        acc = query_step(acc, rows, k, v, logits, TILE)
    return acc


@triton.jit
def pool_keys_step(acc, rows, pool, key, value, bias, seen, places, there, step, TILE: tl.constexpr):
    """Add what N pooled keys contribute to the gradient of a tile of queries."""
    k = load_rows(key, pool.key.token, 0, places, there, TILE)
    v = load_rows(value, pool.value.token, 0, places, there, TILE)
    logits = tl.dot(rows[0], tl.trans(k), input_precision=TILE.PRECISION) * step
    logits += pool_logits(pool, bias, seen, places, there)[None, :]
    return query_step(acc, rows, k, v, logits, TILE)


@triton.jit
def walk_pool_keys(acc, rows, pool, batch, head, bias, seen, step, TILE: tl.constexpr):
    """The gradient of a tile of queries from the pooled keys."""
    key, value = first_row(pool.key, batch, head, TILE), first_row(pool.value, batch, head, TILE)
    for first in range(0, pool.number, TILE.N):
        places = first + tl.arange(0, TILE.N)
        there = places < pool.number
        if TILE.SPARSE:
            if any_seen(pool, seen, places, there):
                acc = pool_keys_step(acc, rows, pool, key, value, bias, seen, places, there, step, TILE)
        else:
            acc = pool_keys_step(acc, rows, pool, key, value, bias, seen, places, there, step, TILE)
    return acc


@triton.jit
def grad_query(
    query, key, value, grad, lse, delta, out, order, visits, key_mask, pool, scale, heads, tokens, TILE: tl.constexpr
):
    """Program (i, j): the gradient of query tile i of batch row and head j.

    Inputs are in kernel order, the gradient is in raster order.
    """
    batch, head = batch_and_head(heads)
    at = set_of(visits.sets, batch, head, heads)
    row, lines, start, inside = own_tile(visits, at, TILE.M, TILE.SIZE)
    base = (batch * heads + head) * tokens
    queries, grads = rows_of(query, batch, head, TILE), rows_of(grad, batch, head, TILE)
    rows = query_rows(queries, grads, lse + base, delta + base, start, lines, inside, TILE)
    keys, values = rows_of(key, batch, head, TILE), rows_of(value, batch, head, TILE)
    kept = kept_keys(key_mask, visits.sets, batch, at, visits.other.tokens)
    step = scale * LOG2E
    acc = tl.full([TILE.M, TILE.WIDTH], 0, tl.float32)
    acc = walk_keys(acc, rows, keys, values, visits, visits.full, at, row, lines, kept, step, TILE)
    if visits.partial is not None:
        acc = walk_keys(acc, rows, keys, values, visits, visits.partial, at, row, lines, kept, step, TILE)
    if pool is not None:
        seen = pool.seen + (at * visits.own.number + row) * pool.words
        acc = walk_pool_keys(acc, rows, pool, batch, head, pool_bias(pool, visits.sets, batch, at), seen, step, TILE)
    position = raster(order, at * tokens + start + lines, start + lines, inside)
    store_rows(first_row(out, batch, head, TILE), out.token, position, acc * scale, inside, TILE)


@triton.jit
def key_step(state, k, v, rows, logits, TILE: tl.constexpr):
    """Add what queries contribute to the gradients of keys (but for the scale) and values.

    ``logits`` are turned: [keys, queries], base 2.
    """
    dk, dv = state
    q, grad, lse, delta = rows
    weights = tl.exp2(logits - lse[None, :])
    dv = tl.dot(weights.to(grad.dtype), grad, dv, input_precision=TILE.PRECISION)
    slope = tl.dot(v, tl.trans(grad), input_precision=TILE.PRECISION)
    slope = weights * (slope - delta[None, :])
    return tl.dot(slope.to(q.dtype), q, dk, input_precision=TILE.PRECISION), dv


@triton.jit
def walk_queries(state, k, v, query, grad, lse, delta, visits, lists, at, row, lines, kept, step, TILE: tl.constexpr):
    """The gradients of a tile of keys from the query blocks of one transposed list row."""
    first, last = turns(lists, at, row, TILE.SIZE // TILE.M)
    ahead = visit(visits, lists, at, first, last, TILE.M, TILE.SIZE)
    for turn in range(first, last):
        start, length, tile = ahead
        ahead = visit(visits, lists, at, turn + 1, last, TILE.M, TILE.SIZE)
        places, inside = slots(turn, length, TILE.M, TILE.SIZE)
        rows = query_rows(query, grad, lse, delta, start, places, inside, TILE)
        logits = tl.dot(k, tl.trans(rows[0]), input_precision=TILE.PRECISION) * step
        if kept is not None:
            logits = tl.where(kept[:, None], logits, NONE)
        if lists.tile is not None:
            logits = tl.where(tile_bits(visits, tile, places, lines, TILE.N, True, TILE), logits, NONE)
        state = key_step(state, k, v, rows, logits, TILE)
    return state


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
    TILE: tl.constexpr,
):
    """Program (i, j): the gradients of key tile i of batch row and head j; ``visits`` are transposed.

    Inputs are in kernel order, the gradients are in raster order.
    """
    batch, head = batch_and_head(heads)
    at = set_of(visits.sets, batch, head, heads)
    row, lines, start, inside = own_tile(visits, at, TILE.N, TILE.SIZE)
    k = load_rows(first_row(key, batch, head, TILE), key.token, start, lines, inside, TILE)
    v = load_rows(first_row(value, batch, head, TILE), value.token, start, lines, inside, TILE)
    queries, grads = rows_of(query, batch, head, TILE), rows_of(grad, batch, head, TILE)
    base = (batch * heads + head) * tokens
    sums, d = lse + base, delta + base
    kept = kept_keys(key_mask, visits.sets, batch, at, visits.own.tokens)
    if key_mask is not None:
        kept = tl.load(kept + start + lines, mask=inside, other=0) != 0
    step = scale * LOG2E
    state = (tl.full([TILE.N, TILE.WIDTH], 0, tl.float32), tl.full([TILE.N, TILE.WIDTH], 0, tl.float32))
    state = walk_queries(state, k, v, queries, grads, sums, d, visits, visits.full, at, row, lines, kept, step, TILE)
    if visits.partial is not None:
        lists = visits.partial
        state = walk_queries(state, k, v, queries, grads, sums, d, visits, lists, at, row, lines, kept, step, TILE)
    dk, dv = state
    position = raster(order, at * visits.own.tokens + start + lines, start + lines, inside)
    store_rows(first_row(out_key, batch, head, TILE), out_key.token, position, dk * scale, inside, TILE)
    store_rows(first_row(out_value, batch, head, TILE), out_value.token, position, dv, inside, TILE)


@triton.jit
def pool_queries_step(
    state, k, v, queries, grads, lse, delta, visits, pool, bias, block, lines, places, there, step, TILE: tl.constexpr
):
    """Add what M queries of a block contribute to the gradients of N pooled keys and values."""
    start = tl.load(visits.own.starts + block).to(tl.int64)
    inside = lines < tl.load(visits.own.lengths + block)
    rows = query_rows(queries, grads, lse, delta, start, lines, inside, TILE)
    logits = tl.dot(k, tl.trans(rows[0]), input_precision=TILE.PRECISION) * step
    logits += pool_logits(pool, bias, pool.seen + block * pool.words, places, there)[:, None]
    return key_step(state, k, v, rows, logits, TILE)


@triton.jit
def grad_pool(query, grad, lse, delta, out_key, out_value, visits, pool, scale, heads, tokens, TILE: tl.constexpr):
    """Program (i, j): the gradients of N pooled keys and values of batch row and head j, from all queries."""
    places = tl.program_id(0) * TILE.N + tl.arange(0, TILE.N)
    batch, head = batch_and_head(heads)
    at = set_of(visits.sets, batch, head, heads)
    there = places < pool.number
    k = load_rows(first_row(pool.key, batch, head, TILE), pool.key.token, 0, places, there, TILE)
    v = load_rows(first_row(pool.value, batch, head, TILE), pool.value.token, 0, places, there, TILE)
    queries, grads = rows_of(query, batch, head, TILE), rows_of(grad, batch, head, TILE)
    base, step = (batch * heads + head) * tokens, scale * LOG2E
    sums, d, bias = lse + base, delta + base, pool_bias(pool, visits.sets, batch, at)
    state = (tl.full([TILE.N, TILE.WIDTH], 0, tl.float32), tl.full([TILE.N, TILE.WIDTH], 0, tl.float32))
    for turn in range(visits.own.number * (TILE.SIZE // TILE.M)):
        block = at * visits.own.number + turn // (TILE.SIZE // TILE.M)
        lines = turn % (TILE.SIZE // TILE.M) * TILE.M + tl.arange(0, TILE.M)
        if TILE.SPARSE:
            if any_seen(pool, pool.seen + block * pool.words, places, there):
                state = pool_queries_step(
                    state, k, v, queries, grads, sums, d, visits, pool, bias, block, lines, places, there, step, TILE
                )
        else:
            state = pool_queries_step(
                state, k, v, queries, grads, sums, d, visits, pool, bias, block, lines, places, there, step, TILE
            )
    dk, dv = state
    store_rows(first_row(out_key, batch, head, TILE), out_key.token, places.to(tl.int64), dk * scale, there, TILE)
    store_rows(first_row(out_value, batch, head, TILE), out_value.token, places.to(tl.int64), dv, there, TILE)
