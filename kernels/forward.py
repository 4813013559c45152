"""The forward kernel: a tile of queries walks its full blocks, its partial blocks and the pooled keys.

One pass with a running softmax (FlashAttention-2, Dao 2023, arXiv 2307.08691), over lists instead of all keys.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .steps import (
    LN2,
    LOG2E,
    NONE,
    any_seen,
    batch_and_head,
    first_row,
    kept_keys,
    key_logits,
    load_ordered,
    load_rows,
    own_tile,
    pool_bias,
    pool_logits,
    raster,
    rows_of,
    running_softmax,
    set_of,
    slots,
    store_rows,
    turns,
    visit,
)


@triton.jit
def load_keys(rows, described, batch, head, start, places, inside, TILE: tl.constexpr):
    """[N, WIDTH]: the rows of a turn. Through a descriptor, slots without a token hold the tokens that come next."""
    if described is None:
        values = load_rows(rows[0], rows[1], start, places, inside, TILE)
    else:
        first = (start + tl.min(places, 0)).to(tl.int32)
        tile = described.load([batch.to(tl.int32), head.to(tl.int32), first, 0])
        values = tl.reshape(tile, [TILE.N, TILE.WIDTH])
    return values


@triton.jit
def walk(
    state, query, key, value, described, batch, head, visits, lists, at, row, lines, kept, step, TILE: tl.constexpr
):  # fmt: skip
    """Attend to the key blocks of one list row, N keys at a time; ``key`` and ``value`` are (pointer, stride)."""
    first, last = turns(lists, at, row, TILE.SIZE // TILE.N)
    ahead = visit(visits, lists, at, first, last, TILE.N, TILE.SIZE)
    for turn in tl.range(first, last, warp_specialize=TILE.SPECIALIZED):
        start, length, tile = ahead
        ahead = visit(visits, lists, at, turn + 1, last, TILE.N, TILE.SIZE)
        places, inside = slots(turn, length, TILE.N, TILE.SIZE)
        k = load_keys(key, described[0], batch, head, start, places, inside, TILE)
        logits = key_logits(query, k, visits, lists, tile, lines, places, start, inside, kept, step, TILE)
        v = load_keys(value, described[1], batch, head, start, places, inside, TILE)
        state = running_softmax(state, logits, v, TILE)
    return state


@triton.jit
def pool_step(state, query, pool, key, value, bias, seen, places, there, step, TILE: tl.constexpr):
    """Attend to N pooled keys."""
    k = load_rows(key, pool.key.token, 0, places, there, TILE)
    logits = tl.dot(query, tl.trans(k), input_precision=TILE.PRECISION) * step
    logits += pool_logits(pool, bias, seen, places, there)[None, :]
    v = load_rows(value, pool.value.token, 0, places, there, TILE)
    return running_softmax(state, logits, v, TILE)


@triton.jit
def walk_pool(state, query, pool, batch, head, bias, seen, step, TILE: tl.constexpr):
    """Attend to the pooled keys; ``bias`` and ``seen`` point at what is added and at the bits of this query block."""
    key, value = first_row(pool.key, batch, head, TILE), first_row(pool.value, batch, head, TILE)
    for first in range(0, pool.number, TILE.N):
        places = first + tl.arange(0, TILE.N)
        there = places < pool.number
        if TILE.SPARSE:
            if any_seen(pool, seen, places, there):
                state = pool_step(state, query, pool, key, value, bias, seen, places, there, step, TILE)
        else:
            state = pool_step(state, query, pool, key, value, bias, seen, places, there, step, TILE)
    return state


@triton.jit
def forward(
    query,
    key,
    value,
    out,
    key_tiles,
    value_tiles,
    lse,
    order,
    visits,
    key_mask,
    pool,
    scale,
    heads,
    tokens,
    TILE: tl.constexpr,
):
    """Program (i, j): query tile i of batch row and head j. Keys and values are in kernel order, all else in raster.

    ``key_tiles`` and ``value_tiles`` are descriptors of keys and values, or None.
    """
    batch, head = batch_and_head(heads)
    at = set_of(visits.sets, batch, head, heads)
    row, lines, start, inside = own_tile(visits, at, TILE.M, TILE.SIZE)
    q = load_ordered(first_row(query, batch, head, TILE), query.token, order, at * tokens, start, lines, inside, TILE)
    keys, values = rows_of(key, batch, head, TILE), rows_of(value, batch, head, TILE)
    kept = kept_keys(key_mask, visits.sets, batch, at, visits.other.tokens)
    step = scale * LOG2E
    state = (
        tl.full([TILE.M, TILE.WIDTH], 0, tl.float32),
        tl.full([TILE.M], NONE, tl.float32),
        tl.full([TILE.M], 0, tl.float32),
    )
    described = (key_tiles, value_tiles)
    state = walk(
        state, q, keys, values, described, batch, head, visits, visits.full, at, row, lines, kept, step, TILE
    )  # fmt: skip
    if visits.partial is not None:
        state = walk(
            state, q, keys, values, described, batch, head, visits, visits.partial, at, row, lines, kept, step, TILE
        )  # fmt: skip
    if pool is not None:
        seen = pool.seen + (at * visits.own.number + row) * pool.words
        state = walk_pool(state, q, pool, batch, head, pool_bias(pool, visits.sets, batch, at), seen, step, TILE)
    acc, top, total = state
    blind = top == NONE
    total = tl.where(blind, 1.0, total)
    position = raster(order, at * tokens + start + lines, start + lines, inside)
    store_rows(first_row(out, batch, head, TILE), out.token, position, acc / total[:, None], inside, TILE)
    sums = tl.where(blind, NONE, (top + tl.log2(total)) * LN2)
    tl.store(lse + (batch * heads + head) * tokens + position, sums, mask=inside)
