"""How much weight attention really gives to every block that it visits: the truth that gates are taught.

A second, cheaper walk over the lists with the LSE that attention returned: half its products, no values. Kept apart
from the forward kernel, which needs its registers, and whose running maximum is not yet the final one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import Heads, Lists, Visits
from .launch import configs
from .options import launcher, options
from .steps import (
    LOG2E,
    batch_and_head,
    first_row,
    kept_keys,
    key_logits,
    load_rows,
    own_tile,
    set_of,
    slots,
    turns,
    visit,
)


@triton.jit
def block_weights(
    query, key, lse, largest, total, visits, lists, key_mask, scale, heads, tokens, TILE: tl.constexpr
):  # fmt: skip
    """Program (i, j): the weights that query tile i of batch row and head j gives to the blocks of its list row."""
    batch, head = batch_and_head(heads)
    at = set_of(visits.sets, batch, head, heads)
    row, lines, start, inside = own_tile(visits, at, TILE.M, TILE.SIZE)
    q = load_rows(first_row(query, batch, head, TILE), query.token, start, lines, inside, TILE)
    sums = lse + (batch * heads + head) * tokens + start + lines
    sums = tl.load(sums, mask=inside, other=float("inf")) * LOG2E
    kept = kept_keys(key_mask, visits.sets, batch, at, tokens)
    parts: tl.constexpr = TILE.SIZE // TILE.M
    first, last = turns(lists, at, row, 1)
    for place in range(first, last):
        high, mass = 0.0, 0.0  # of the tile at once: sums of rows break Triton 3.6 on Blackwell
        for part in range(TILE.SIZE // TILE.N):
            turn = place * (TILE.SIZE // TILE.N) + part
            from_, length, tile = visit(visits, lists, at, turn, turn + 1, TILE.N, TILE.SIZE)
            places, there = slots(turn, length, TILE.N, TILE.SIZE)
            k = load_rows(first_row(key, batch, head, TILE), key.token, from_, places, there, TILE)
            step = scale * LOG2E
            logits = key_logits(q, k, visits, lists, tile, lines, places, from_, there, kept, step, TILE)
            weights = tl.exp2(logits - sums[:, None])
            high, mass = tl.maximum(high, tl.max(weights)), mass + tl.sum(weights)
        out = ((batch * heads + head) * parts + tl.program_id(0) % parts) * lists.entries + place
        tl.store(largest + out, high)
        tl.store(total + out, mass)


@launcher
def weights_of_blocks(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    visits: Visits,
    lists: Lists,
    key_mask: Tensor | None,
    size: int,
    ragged: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The largest and the summed attention weight in every visited block.

    Args:
        query, key: [batch, heads, tokens, head_dim] in kernel order.
        lse: float32 [batch, heads, tokens] in kernel order, natural log; +inf for rows that see nothing.
        lists: ``visits.full`` or ``visits.partial``; the others as for ``block_sparse``.

    Returns:
        Two float32 [batch, heads, entries], one number for each entry of the lists; entries past a set's last
        offset are 0.
    """
    batch, heads, tokens = query.shape[:3]
    config = configs(query, size, crowded=True).forward  # its sums take registers, as padded keys and means do
    parts = size // config.M  # of a block of queries, put together at the end
    largest, total = (query.new_zeros(batch, heads, parts, lists.entries, dtype=torch.float32) for _ in range(2))
    block_weights[(visits.own.number * parts, batch * heads)](
        Heads.of(query), Heads.of(key), lse, largest, total, visits, lists, key_mask, scale, heads, tokens,
        **options(config, query, size, ragged),
    )  # fmt: skip
    return largest.amax(2), total.sum(2)
