"""Means over runs of tokens: the tail's pooled keys and values, and descriptors of blocks for dynamic patterns.

The mean of run r of block i is the sum of w_t · x_t over the run's tokens t, where w_t is 1 / n for the n tokens
that count and 0 for the others; its gradient is spread back with the same weights.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .arguments import Blocks, Heads, Sets
from .config import Config
from .options import launcher, options
from .steps import batch_and_head, first_row, in_eights, load_rows, raster, set_of, store_rows


@triton.jit
def run_of(blocks, weight, sets, batch, head, heads, tokens, TILE: tl.constexpr):
    """This program's set and run: where its tokens are in kernel order, which of them exist, and their weights."""
    at = set_of(sets, batch, head, heads)
    block = at * blocks.number + tl.program_id(0) // (TILE.SIZE // TILE.M)
    lines = tl.program_id(0) % (TILE.SIZE // TILE.M) * TILE.M + tl.arange(0, TILE.M)
    inside = lines < tl.load(blocks.lengths + block)
    rows = tl.load(blocks.starts + block).to(tl.int64) + lines
    weights = weight + (batch * sets.groups + at % sets.groups) * tokens + rows
    return at, rows, inside, tl.load(weights, mask=inside, other=0.0)


@triton.jit
def run_means(source, out, weight, blocks, sets, heads, tokens, TILE: tl.constexpr):
    """Program (i, j): the mean of run i of batch row and head j; ``source`` in kernel order."""
    batch, head = batch_and_head(heads)
    _, rows, inside, weights = run_of(blocks, weight, sets, batch, head, heads, tokens, TILE)
    values = load_rows(first_row(source, batch, head, TILE), source.token, 0, rows, inside, TILE).to(tl.float32)
    d = tl.arange(0, TILE.WIDTH)
    mean = tl.sum(values * weights[:, None], 0).to(out.data.dtype.element_ty)
    place = first_row(out, batch, head, TILE) + tl.program_id(0) * in_eights(out.token, TILE) + d
    tl.store(place, mean, mask=d < TILE.DIM)


@triton.jit
def spread_means(grad, out, weight, order, blocks, sets, heads, tokens, TILE: tl.constexpr):
    """Program (i, j): add the gradient of run i's mean to its tokens' gradients, which are in raster order."""
    batch, head = batch_and_head(heads)
    at, rows, inside, weights = run_of(blocks, weight, sets, batch, head, heads, tokens, TILE)
    d = tl.arange(0, TILE.WIDTH)
    mean = first_row(grad, batch, head, TILE) + tl.program_id(0) * in_eights(grad.token, TILE) + d
    mean = tl.load(mean, mask=d < TILE.DIM, other=0.0)
    position = raster(order, at * tokens + rows, rows, inside)
    out_rows = first_row(out, batch, head, TILE)
    values = load_rows(out_rows, out.token, 0, position, inside, TILE).to(tl.float32)
    values += weights[:, None] * mean.to(tl.float32)[None, :]
    store_rows(out_rows, out.token, position, values, inside, TILE)


@launcher
def means(tensor: Tensor, weight: Tensor, blocks: Blocks, sets: Sets, size: int, run: int) -> Tensor:
    """Weighted sums over runs.

    Args:
        tensor: [batch, heads, tokens, head_dim] in kernel order.
        weight: float32 [batch, groups, tokens] in kernel order.
        blocks: where the blocks of ``size`` slots are; ``run`` divides it.

    Returns:
        [batch, heads, blocks · size / run, head_dim] like ``tensor``.
    """
    batch, heads, tokens, dim = tensor.shape
    out = tensor.new_empty(batch, heads, blocks.number * (size // run), dim)
    run_means[(out.shape[2], batch * heads)](
        Heads.of(tensor), Heads.of(out), weight, blocks, sets, heads, tokens, **_options(tensor, size, run)
    )
    return out


@launcher
def add_gradient(
    total: Tensor, grad: Tensor, weight: Tensor, order: Tensor | None, blocks: Blocks, sets: Sets, size: int, run: int
) -> None:
    """Add to ``total``, gradients in raster order, what comes from the gradient of ``means``."""
    batch, heads, tokens = total.shape[:3]
    spread_means[(grad.shape[2], batch * heads)](
        Heads.of(grad), Heads.of(total), weight, order, blocks, sets, heads, tokens, **_options(total, size, run)
    )


def _options(tensor: Tensor, size: int, run: int) -> dict[str, object]:
    return options(Config(run, run, 4 if run * tensor.shape[-1] > 2048 else 1, 1), tensor, size)
