"""Steps that the kernels share: where a program works, loading rows, walking lists, hiding pairs, the softmax."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
NONE = tl.constexpr(float("-inf"))


@triton.jit
def batch_and_head(heads):
    """The batch row and head of this program, int64: strides of large tensors overflow 32 bits."""
    return (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)


@triton.jit
def set_of(sets, batch, head, heads):
    """The set of lists that a batch row and head use."""
    return (batch % sets.batches) * sets.groups + head * sets.groups // heads


@triton.jit
def own_tile(visits, at, SPAN: tl.constexpr, SIZE: tl.constexpr):
    """This program's block, its SPAN slots in it, where the block starts, and which of the slots hold a token."""
    row = tl.program_id(0) // (SIZE // SPAN)
    lines = tl.program_id(0) % (SIZE // SPAN) * SPAN + tl.arange(0, SPAN)
    start = tl.load(visits.own.starts + at * visits.own.number + row).to(tl.int64)
    return row, lines, start, lines < tl.load(visits.own.lengths + at * visits.own.number + row)


@triton.jit
def turns(lists, at, row, SPLIT: tl.constexpr):
    """The half-open range of turns that visit a list row, SPLIT turns for each block."""
    first = lists.offsets + at * (lists.rows + 1) + row
    return tl.load(first) * SPLIT, tl.load(first + 1) * SPLIT


@triton.jit
def visit(visits, lists, at, turn, last, SPAN: tl.constexpr, SIZE: tl.constexpr):
    """The block that a turn visits: where it starts, the tokens that it holds, its tile; of turns before ``last``.

    Loops ask one turn ahead. What is asked inside of a turn stands between it and its rows: the compiler would spend
    stages of its pipeline on waiting for it.
    """
    entry, there = at * lists.entries + turn // (SIZE // SPAN), turn < last
    block = at * visits.other.number + tl.load(lists.blocks + entry, mask=there, other=0)
    start = tl.load(visits.other.starts + block, mask=there, other=0).to(tl.int64)
    tile = tl.full([], 0, tl.int32)
    if lists.tile is not None:
        tile = tl.load(lists.tile + entry, mask=there, other=0)
    return start, tl.load(visits.other.lengths + block, mask=there, other=0), tile


@triton.jit
def slots(turn, length, SPAN: tl.constexpr, SIZE: tl.constexpr):
    """The SPAN slots of its block that a turn visits, and which of them hold a token."""
    places = turn % (SIZE // SPAN) * SPAN + tl.arange(0, SPAN)
    return places, places < length


@triton.jit
def in_eights(stride, TILE: tl.constexpr):
    """The stride; where ``Heads.of`` made it a multiple of 8, the compiler sees that rows can be read in 16 bytes.

    That it is one of 16, as with most head dims, a launch sees by itself.
    """
    if TILE.DIM % 16 == 8:
        stride = stride // 8 * 8
    return stride


@triton.jit
def first_row(tensor, batch, head, TILE: tl.constexpr):
    """Pointer to the first row of one batch row and head."""
    return tensor.data + batch * in_eights(tensor.batch, TILE) + head * in_eights(tensor.head, TILE)


@triton.jit
def rows_of(tensor, batch, head, TILE: tl.constexpr):
    """The rows of one batch row and head: pointer to the first, and stride."""
    return first_row(tensor, batch, head, TILE), tensor.token


@triton.jit
def load_rows(rows, stride, start, places, inside, TILE: tl.constexpr):
    """[places, WIDTH]: rows ``start + places`` of DIM numbers, zeros past DIM and where not ``inside``."""
    d = tl.arange(0, TILE.WIDTH)
    there = inside[:, None] & (d < TILE.DIM)[None, :]
    stride = in_eights(stride, TILE)
    return tl.load(rows + start * stride + places[:, None] * stride + d[None, :], mask=there, other=0.0)


@triton.jit
def store_rows(rows, stride, places, values, inside, TILE: tl.constexpr):
    """The opposite: ``places`` int64, as they may be far apart."""
    d = tl.arange(0, TILE.WIDTH)
    there = inside[:, None] & (d < TILE.DIM)[None, :]
    at = rows + places[:, None] * in_eights(stride, TILE) + d[None, :]
    tl.store(at, values.to(rows.dtype.element_ty), mask=there)


@triton.jit
def raster(order, index, position, inside):
    """Raster positions of kernel positions: ``order[index]``, or the same where there is no order."""
    if order is not None:
        position = tl.load(order + index, mask=inside, other=0).to(tl.int64)
    return position


@triton.jit
def load_ordered(rows, stride, order, at, start, places, inside, TILE: tl.constexpr):
    """Rows of a tensor in raster order at kernel positions ``start + places``; ``order[at + position]`` is where."""
    if order is None:
        values = load_rows(rows, stride, start, places, inside, TILE)
    else:
        values = load_rows(rows, stride, 0, raster(order, at + start + places, places, inside), inside, TILE)
    return values


@triton.jit
def kept_keys(key_mask, sets, batch, at, places):
    """Pointer to the key mask of one batch row and head group, or None."""
    kept = key_mask
    if key_mask is not None:
        kept = key_mask + (batch * sets.groups + at % sets.groups) * places
    return kept


@triton.jit
def tile_bits(visits, tile, queries, keys, SPAN: tl.constexpr, TURNED: tl.constexpr, TILE: tl.constexpr):
    """bool [queries, keys], or [keys, queries] if TURNED: which slots see which in a block visited in part.

    ``keys`` are SPAN consecutive slots from a multiple of SPAN. Every query loads its few words once.
    """
    first = tl.min(keys, 0) // 32
    words = visits.tiles + (tile.to(tl.int64) * TILE.SIZE + queries) * ((TILE.SIZE + 31) // 32) + first
    query_dim: tl.constexpr = 0 if TURNED else 1
    key_dim: tl.constexpr = 1 - query_dim
    word_of = tl.expand_dims(keys // 32 - first, key_dim)
    bits = tl.expand_dims(tl.load(words), query_dim) + 0 * word_of
    for i in tl.static_range(1, (SPAN + 31) // 32):
        bits = tl.where(word_of == i, tl.expand_dims(tl.load(words + i), query_dim), bits)
    return ((bits >> tl.expand_dims(keys % 32, key_dim)) & 1) != 0


@triton.jit
def key_logits(query, k, visits, lists, tile, lines, places, start, inside, kept, step, TILE: tl.constexpr):
    """Base-2 logits [M, N] of a tile of queries and the keys of a turn, -inf where a pair is hidden."""
    logits = tl.dot(query, tl.trans(k), input_precision=TILE.PRECISION) * step
    if TILE.RAGGED:
        logits = tl.where(inside[None, :], logits, NONE)
    if kept is not None:
        logits = tl.where(tl.load(kept + start + places, mask=inside, other=0)[None, :] != 0, logits, NONE)
    if lists.tile is not None:
        logits = tl.where(tile_bits(visits, tile, lines, places, TILE.N, False, TILE), logits, NONE)
    return logits


@triton.jit
def pool_bias(pool, sets, batch, at):
    """Pointer to what is added to the logits of the pooled keys of one batch row and head group."""
    return pool.bias + (batch % pool.biases * sets.groups + at % sets.groups) * pool.number


@triton.jit
def pool_logits(pool, bias, seen, places, there):
    """What is added to the base-2 logits of pooled keys: their bias where the block ``seen`` points at sees them."""
    return tl.where(
        pool_bits(pool, seen, places, there) != 0, tl.load(bias + places, mask=there, other=0.0) * LOG2E, NONE
    )


@triton.jit
def pool_bits(pool, seen, places, there):
    """1 where the block ``seen`` points at sees these pooled keys, else 0."""
    bits = tl.load(pool.bits + places, mask=there, other=0)
    return tl.load(seen + bits // 32, mask=there, other=0) >> (bits % 32) & 1


@triton.jit
def any_seen(pool, seen, places, there):
    """Whether the block ``seen`` points at sees one of these pooled keys."""
    return tl.max(pool_bits(pool, seen, places, there), 0) != 0


@triton.jit
def running_softmax(state, logits, value, TILE: tl.constexpr):
    """Take base-2 ``logits`` [M, N] and ``value`` [N, WIDTH] into the weighted sum, the maximum and the total.

    Rows that have seen nothing keep a maximum of -inf and add nothing.
    """
    acc, top, total = state
    highest = tl.maximum(top, tl.max(logits, 1))
    shift = tl.where(highest == NONE, 0.0, highest)
    weights = tl.exp2(logits - shift[:, None])
    if TILE.LAZY:
        if tl.max((highest > top).to(tl.int32), 0) != 0:
            acc, total = rescaled(acc, total, top, shift)
    else:
        acc, total = rescaled(acc, total, top, shift)
    acc = tl.dot(weights.to(value.dtype), value, acc, input_precision=TILE.PRECISION)
    return acc, highest, total + tl.sum(weights, 1)


@triton.jit
def rescaled(acc, total, top, shift):
    """The weighted sum and the total, counted from a new maximum instead of ``top``."""
    decay = tl.exp2(top - shift)
    return acc * decay[:, None], total * decay
