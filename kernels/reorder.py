"""Rows brought into kernel order, so that the attention kernels read every block of keys as one run of memory."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .arguments import Heads, Sets
from .config import Config
from .options import launcher, options
from .steps import batch_and_head, first_row, load_rows, raster, set_of, store_rows

CONFIG = Config(64, 64, 8, 1)


@triton.jit
def reorder(source, out, order, sets, heads, places, TILE: tl.constexpr):
    """Program (i, j): M rows of batch row and head j."""
    batch, head = batch_and_head(heads)
    rows = tl.program_id(0).to(tl.int64) * TILE.M + tl.arange(0, TILE.M)
    inside = rows < places
    position = raster(order, set_of(sets, batch, head, heads) * places + rows, rows, inside)
    values = load_rows(first_row(source, batch, head, TILE), source.token, 0, position, inside, TILE)
    store_rows(first_row(out, batch, head, TILE), out.token, rows, values, inside, TILE)


@launcher
def in_order(tensor: Tensor, order: Tensor, sets: Sets) -> Tensor:
    """The rows of ``tensor`` [batch, heads, tokens, head_dim] in the order int32 ``[sets, places]`` of their set."""
    (batch, heads, _, dim), places = tensor.shape, order.shape[-1]
    out = tensor.new_empty(batch, heads, places, dim)
    reorder[(triton.cdiv(places, CONFIG.M), batch * heads)](
        Heads.of(tensor), Heads.of(out), order, sets, heads, places, **options(CONFIG, tensor)
    )
    return out
