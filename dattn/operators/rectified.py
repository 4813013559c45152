"""Rectified attention: what a mask skips is put back as pooled attention, and what it keeps is scaled to make room.

Rectified-SpaAttn (2025, arXiv 2511.19835), without anything kept from step to step. With means q̄_i of a block of
queries and k̄_j, v̄_j of a region of n_j keys, text tokens one by one, and s the scale,

    P_i  = softmax over regions and text of  s q̄_i·k̄_j + ln n_j,  s q̄_i·k_text
    C_i  = skipped regions whose gain outweighs the error of pooling: |q̄_i·k̄_j| > |δq_i·k̄_j| and > |q̄_i·δk_j|
    R_i  = 1 - Σ_{j in C_i} P_ij
    o    = R_i · o_kept + Σ_{j in C_i} P_ij v̄_j

where δ is the mean absolute deviation from the mean, channel by channel. It is Reshaped's ρ with a pooled estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dattn.attention import over
from dattn.block_mask import MaskCache
from dattn.grid import TokenGrid
from dattn.orders import Curve
from dattn.patterns.dynamic import Given
from dattn.patterns.selected import Selected, sides_of
from dattn.scores.base import Sides
from dattn.scores.pooled import Pooled
from dattn.selection import TopP
from dattn.spec import VISITED, Call, Operator, Spec
from dattn.sums import in_order, means

DEFAULT = Selected(Pooled(), TopP(0.3, floor=0.2), Curve(), keep=("own", "neighbours", "first_frame"))


@dataclass(frozen=True)
class Rectified(Operator):
    """A choice of blocks, rectified.

    Args:
        pattern: what chooses them; the published setting keeps 0.15 to 0.25 of the blocks, along a curve.

    Raises:
        ValueError: not a ``Selected``, or one with a tail or with ``reuse``.
    """

    pattern: Selected = DEFAULT

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, Selected) or self.pattern.tail or self.pattern.reuse != 1:
            raise ValueError(f"pattern={self.pattern!r}: Rectified wants a Selected without tail and reuse")

    def at(self, layer: int, layers: int, step: int, steps: int) -> Spec:
        """The pattern at that place."""
        return Rectified(self.pattern.at(layer, layers, step, steps))

    def fit(self, grid: TokenGrid) -> tuple[Spec, str | None]:
        """The pattern clamped to the grid."""
        fitted, note = self.pattern.fit(grid)
        return Rectified(fitted), note

    def for_heads(self, heads: tuple[int, ...], of: int) -> Spec:
        """Itself, where every head chooses alone."""
        return Rectified(self.pattern.for_heads(heads, of))

    def compute(self, call: Call) -> tuple[Tensor, Tensor]:
        """Output, and the LSE that the estimate implies.

        Raises:
            ValueError: a key mask over visual tokens, which the means would have to leave out.
        """
        first = call.grid.text_before
        if call.key_mask is not None and not call.key_mask[:, first : first + call.grid.visual].all():
            raise ValueError("key_mask: Rectified pools all visual keys; mask text alone, or take another pattern")
        scale, width = call.scale, call.query.shape[-1]
        query, key, value, grid, state, _, key_mask, backend = call
        given = Given(query, key, grid, state, scale * width**0.5, value, key_mask, backend)
        sides = sides_of(given, self.pattern.order, self.pattern.block_size)
        with torch.no_grad():
            kept = self.pattern.kept(sides)
        mask = sides.partition.mask(kept)
        output, lse = over(mask, call)
        call.state[VISITED] = mask.density, len(sides.partition.lengths) / call.grid.tokens
        weights = _weights(sides, given) * (~kept & _worth(sides))
        visual = slice(call.grid.text_before, call.grid.text_before + call.grid.visual)
        values = in_order(call.value[:, :, visual].to(weights.dtype), sides.partition.key)
        filling = weights @ means(values, sides.partition.lengths)
        room = (1 - weights.sum(-1, keepdim=True)).clamp_min(torch.finfo(weights.dtype).eps)
        room, filling = (_spread(t, sides) for t in (room, filling))
        made = (room * output[:, :, visual] + filling).to(output.dtype)
        known = lse[:, :, visual] - room[..., 0].log().to(lse.dtype)
        return _between(output, made, visual), _between(lse, known, visual)

    def cost(self, grid: TokenGrid, head_dim: int, masks: MaskCache) -> float:
        """The pattern's."""
        return self.pattern.cost(grid, head_dim, masks)


def _weights(sides: Sides, given: Given) -> Tensor:
    """P, [batch, heads, blocks, regions]: what a block gives to regions, where text has its share too."""
    grid, queries = given.grid, sides.query_means()
    regions = Pooled().logits(sides)
    after = grid.text_before + grid.visual
    text = torch.cat([torch.arange(grid.text_before), torch.arange(after, grid.tokens)]).to(queries.device)
    logits = queries @ given.key[:, :, text].to(queries.dtype).mT * queries.shape[-1] ** -0.5
    if given.key_mask is not None:
        logits = logits.masked_fill(~given.key_mask[:, text][:, None, None], -torch.inf)
    return torch.cat([regions, logits], -1).softmax(-1)[..., : regions.shape[-1]]


def _worth(sides: Sides) -> Tensor:
    """bool [batch, heads, blocks, regions]: where the mean says more than pooling loses."""
    partition = sides.partition
    (queries, off_queries), (keys, off_keys) = (
        _deviation(t, lengths) for t, lengths in ((sides.query, partition.blocks), (sides.key, partition.lengths))
    )
    gain = (queries @ keys.mT).abs()
    return (gain > (off_queries @ keys.mT).abs()) & (gain > (queries @ off_keys.mT).abs())


def _deviation(tensor: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The means of runs, and the mean absolute deviations from them, each [batch, heads, runs, head_dim]."""
    mean = means(tensor, lengths)
    return mean, means((tensor - mean.repeat_interleave(lengths, 2)).abs(), lengths)


def _between(tensor: Tensor, middle: Tensor, place: slice) -> Tensor:
    """``tensor`` [batch, heads, tokens, …] with its tokens ``place`` exchanged."""
    return torch.cat([tensor[:, :, : place.start], middle, tensor[:, :, place.stop :]], 2)


def _spread(rows: Tensor, sides: Sides) -> Tensor:
    """[batch, heads, visual, …] in raster order, from one row for every query block."""
    return in_order(rows.repeat_interleave(sides.partition.blocks, 2), sides.partition.query.argsort(-1))
