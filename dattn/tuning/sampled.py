"""How near a pattern comes to dense attention, in a few query rows: the error of each head, and the weight it keeps."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dattn.attention import attend, masks_in, over
from dattn.block_mask import BlockMask
from dattn.patterns.dynamic import Dynamic
from dattn.spec import Call, Spec


class Look(NamedTuple):
    """What was seen of a pattern in one call of attention.

    Attributes:
        error: float64 [heads]: squared error of each head's output in the sampled rows, over the squared norm of the
            dense output of all heads; the heads' sum is the layer's squared relative error.
        kept: float64 [heads]: share of the attention's weight that the visited keys have, means over the rows; None of
            what is not a mask.
    """

    error: Tensor
    kept: Tensor | None


def look(call: Call, spec: Spec, dense: Tensor, rows: int, generator: torch.Generator, *, kept: bool = True) -> Look:
    """Compare a pattern with dense attention in some rows.

    A mask is computed in whole query blocks, chosen at random, of about ``rows`` rows together; an operator that is
    no mask is computed whole.

    Args:
        call: queries, keys and values [batch, heads, tokens, head_dim], where they sit, and how to compute.
        spec: a pattern or operator that fits the grid.
        dense: the output of dense attention, of the same shape.
        rows: how many rows to look at.
        generator: draws the blocks; the same state, the same blocks.
        kept: whether the weight is looked at too.
    """
    if not (spec.static or isinstance(spec, Dynamic)):
        output = attend(*call[:3], spec, call.grid, state=call.state, **call.options)
        return Look(_share(output, dense, torch.ones_like(dense[..., 0])), None)
    mask = (
        spec.mask_in(call)
        if isinstance(spec, Dynamic)
        else masks_in(call.state).get(spec, call.grid, call.query.device)
    )
    blocks = _some_blocks(mask, rows, generator)
    output, sums = over(mask.only(blocks), call)
    seen = _rows_of(mask, blocks, dense.shape)
    return Look(_share(output, dense, seen), _kept(call, sums, seen) if kept else None)


def _some_blocks(mask: BlockMask, rows: int, generator: torch.Generator) -> Tensor:
    """bool [query blocks]: enough of them, evenly drawn, for so many rows."""
    blocks = mask.query.blocks
    some = min(blocks, math.ceil(rows / mask.query.lengths.double().mean().item()))
    chosen = torch.zeros(blocks, dtype=torch.bool)
    chosen[torch.randperm(blocks, generator=generator)[:some]] = True
    return chosen.to(mask.full.index.device)


def _rows_of(mask: BlockMask, blocks: Tensor, shape: torch.Size) -> Tensor:
    """[batch, heads, tokens], 1 for the tokens of the chosen blocks, in raster order."""
    batch, heads, tokens, _ = shape
    sides = mask.query.order.shape[:2]
    seen = torch.stack(
        [torch.stack([blocks[mask.query_blocks(g, b)] for g in range(sides[1])]) for b in range(sides[0])]
    )
    groups = torch.arange(heads, device=seen.device) * sides[1] // heads
    return seen[:, groups].expand(batch, heads, tokens).double()


def _share(output: Tensor, dense: Tensor, seen: Tensor) -> Tensor:
    """float64 [heads]: mean squared error in the rows seen ÷ mean squared norm of all heads' rows; head by head."""
    error, norm = torch.zeros(2, dense.shape[1], dtype=torch.float64)
    for head in range(dense.shape[1]):
        rows = seen[:, head].nonzero(as_tuple=True)
        own, exact = output[:, head][rows].double(), dense[:, head][rows].double()
        error[head] = (own - exact).square().sum() / max(len(own), 1)
        norm[head] = exact.square().sum() / max(len(own), 1)
    return error / norm.sum()


def _kept(call: Call, sums: Tensor, seen: Tensor) -> Tensor:
    """float64 [heads]: exp(LSE of what is visited - LSE of all) in the rows seen; head by head, for memory."""
    query, key = call.query, call.key
    kept = torch.zeros(query.shape[1], dtype=torch.float64)
    for head in range(query.shape[1]):
        shares = []
        for row in range(len(query)):
            at = seen[row, head].nonzero()[:, 0]
            logits = (query[row, head, at].float() @ key[row, head].float().T) * call.scale
            if call.key_mask is not None:
                logits = logits.masked_fill(~call.key_mask[row], -torch.inf)
            shares.append((sums[row, head, at].float() - logits.logsumexp(-1)).exp())
        kept[head] = torch.cat(shares).double().mean()
    return kept
