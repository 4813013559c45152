"""Steps that the kernels share: loading rows, packed bits, logits, the running softmax."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
NONE = tl.constexpr(float("-inf"))


@triton.jit
def set_of(visits, batch, head, heads):
    """The set of lists that a batch row and head use."""
    return (batch % visits.batches) * visits.groups + head * visits.groups // heads


@triton.jit
def first_row(tensor, batch, head):
    """Pointer to the first row of one batch row and head."""
    return tensor.data + batch * tensor.batch + head * tensor.head


@triton.jit
def load_rows(rows, stride, start, places, inside, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """[places, WIDTH]: rows ``start + places`` of DIM numbers, zeros past DIM and where not ``inside``."""
    d = tl.arange(0, WIDTH)
    there = inside[:, None] & (d < DIM)[None, :]
    return tl.load(rows + start * stride + places[:, None] * stride + d[None, :], mask=there, other=0.0)


@triton.jit
def store_rows(rows, stride, places, values, inside, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """The opposite: ``places`` int64, as they may be far apart."""
    d = tl.arange(0, WIDTH)
    there = inside[:, None] & (d < DIM)[None, :]
    tl.store(rows + places[:, None] * stride + d[None, :], values.to(rows.dtype.element_ty), mask=there)


@triton.jit
def raster(order, index, position, inside):
    """Raster positions of kernel positions: ``order[index]``, or the same where there is no order."""
    if order is not None:
        position = tl.load(order + index, mask=inside, other=0).to(tl.int64)
    return position


@triton.jit
def word_bits(words, places, SPAN: tl.constexpr, TURNED: tl.constexpr):
    """bool [lines, places], or [places, lines] if TURNED: bit ``places`` of the bit rows that ``words`` begin.

    ``words`` are pointers [lines]; ``places`` are SPAN consecutive numbers from a multiple of SPAN. Every line
    loads its few words once, not one for every bit.
    """
    first = tl.min(places, 0) // 32
    line_dim: tl.constexpr = 0 if TURNED else 1
    place_dim: tl.constexpr = 1 - line_dim
    word_of = tl.expand_dims(places // 32 - first, place_dim)
    bits = tl.expand_dims(tl.load(words + first), line_dim) + 0 * word_of
    for i in tl.static_range(1, (SPAN + 31) // 32):
        bits = tl.where(word_of == i, tl.expand_dims(tl.load(words + first + i), line_dim), bits)
    return ((bits >> tl.expand_dims(places % 32, place_dim)) & 1) != 0


@triton.jit
def running_softmax(acc, top, total, logits, value, PRECISION: tl.constexpr):
    """Take base-2 ``logits`` [M, N] and ``value`` [N, WIDTH] into the weighted sum, the maximum and the total.

    Rows that have seen nothing keep a maximum of -inf and add nothing.
    """
    highest = tl.maximum(top, tl.max(logits, 1))
    shift = tl.where(highest == NONE, 0.0, highest)
    weights = tl.exp2(logits - shift[:, None])
    decay = tl.exp2(top - shift)
    acc = tl.dot(weights.to(value.dtype), value, acc * decay[:, None], input_precision=PRECISION)
    return acc, highest, total * decay + tl.sum(weights, 1)
