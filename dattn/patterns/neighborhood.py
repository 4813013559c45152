"""Neighborhood attention: every token sees a box of tokens around it, pushed inwards at the borders.

Generalized Neighborhood Attention (Hassani et al., arXiv 2504.16922; NATTEN). On one axis of length L, with
window W and stride S, query i looks where its group's *leader* looks:

    leader = min(⌊i / S⌋·S + ⌊S / 2⌋, L - 1)            start = clamp(leader - ⌊W / 2⌋, 0, L - W)
                                                        end   = start + W
    causal: leader = min(⌊i / S⌋·S + S - 1, L - 1)      start = max(leader - W + 1, 0)
                                                        end   = min(i + 1, L)

Dilation d splits the axis into d residue classes; the window is evaluated inside the query's class, with the
class's own length. Axes combine by conjunction. S = 1 is plain neighborhood attention, S = W blocked attention.
With dilation "alternate" the layers 0, 2, … have d = 1 and the others d = ⌊L / W⌋, the widest that fits: DiNA (Hassani
and Shi, 2022, arXiv 2209.15001).

The order puts boxes of tokens (tiles) together, so that a window covers few blocks. Where the stride is a tile
and the window an odd number of tiles that divide the grid, every block is visited whole or not at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dattn.axis_window import AxisVisits, AxisWindow, TileVisits
from dattn.block_mask import BlockMask, build
from dattn.grid import AXES, AxisTiles, TokenGrid, block_size_for, tiled_layout
from dattn.patterns.base import Pattern, PerAxis, as_tuple, check_per_axis, check_tail, grown
from dattn.tiles import choose_tile

ALTERNATE = "alternate"


@dataclass(frozen=True)
class Neighborhood(Pattern):
    """Neighborhood attention with NATTEN's semantics, in one, two or three dimensions.

    Per-axis arguments are one value for every axis longer than 1, or ``(frames, height, width)``.

    Args:
        window: tokens seen per axis, 1 … axis length; None for the whole axis.
        stride: queries that share a window, 1 … window.
        dilation: distance between the tokens of a window, dilation · window ≤ axis length; None for the widest that
            fits; "alternate" for 1 and the widest in turn, layer by layer (1 where there are no layers).
        causal: on a causal axis no query sees a later token.
        tile: tokens made contiguous, ``(frames, height, width)`` of 128 at most, or "auto".
        tail: pool what is skipped: False, True (one key per block) or a run of 16 … block size tokens.

    Raises:
        ValueError: a field outside these bounds; those that depend on the grid when it is met.
    """

    window: PerAxis
    stride: PerAxis = 1
    dilation: PerAxis | str = 1
    causal: bool | tuple[bool, bool, bool] = False
    tile: str | tuple[int, int, int] = "auto"
    tail: bool | int = False

    def __post_init__(self) -> None:
        for name in ("window", "stride", "dilation", "causal", "tile"):
            object.__setattr__(self, name, as_tuple(getattr(self, name)))
        check_per_axis("window", self.window, optional=True)
        check_per_axis("stride", self.stride)
        if self.dilation != ALTERNATE:
            check_per_axis("dilation", self.dilation, optional=True)
        check_per_axis("causal", self.causal, bool)
        if self.tile != "auto":
            if not isinstance(self.tile, tuple):
                raise ValueError(f"tile={self.tile!r}: give 'auto' or (frames, height, width)")
            check_per_axis("tile", self.tile)
            block_size_for(self.tile[0] * self.tile[1] * self.tile[2])
        check_tail(self.tail)

    def at(self, layer: int, layers: int, step: int, steps: int) -> Neighborhood:
        """The dilation of this layer."""
        return replace(self, dilation=None if layer % 2 else 1) if self.dilation == ALTERNATE else self

    def stretched(self, factor: float) -> Pattern:
        """A window of more or fewer frames; its stride and dilation stay.

        Raises:
            ValueError: no window of its own over frames.
        """
        if not isinstance(self.window, tuple) or self.window[0] is None:
            return super().stretched(factor)
        return replace(self, window=(grown(self.window[0], factor), *self.window[1:]))

    def axes(self, grid: TokenGrid) -> tuple[AxisWindow, ...]:
        """The rule of every axis.

        Raises:
            ValueError: window > axis, stride > window, or dilation · window > axis.
        """
        axes = self._axes(grid)
        for name, axis in zip(AXES, axes, strict=True):
            if axis.window > axis.length:
                raise ValueError(
                    f"window {axis.window} on an axis of {axis.length} ({name}): a window is at most its axis; "
                    "use None for the whole axis"
                )
            if axis.stride > axis.window:
                raise ValueError(f"stride {axis.stride} ({name}): a stride is at most its window {axis.window}")
            if axis.dilation * axis.window > axis.length:
                raise ValueError(
                    f"dilation {axis.dilation} with window {axis.window} ({name}): dilation · window is at most "
                    f"the axis length {axis.length}"
                )
        return axes

    def _axes(self, grid: TokenGrid) -> tuple[AxisWindow, ...]:
        return tuple(self._axis(dim, length) for dim, length in enumerate(grid.shape))

    def _axis(self, dim: int, length: int) -> AxisWindow:
        """A single value means every axis longer than 1; a single stride or dilation, those not seen whole."""
        window = _on(self.window, dim, 1 if length == 1 else self.window)
        whole = length == 1 or window is None
        stride = _on(self.stride, dim, 1 if whole else self.stride)
        dilation = _on(self.dilation, dim, 1 if whole else self.dilation)
        window = length if window is None else window
        widest = max(length // window, 1)
        dilation = {None: widest, ALTERNATE: 1}.get(dilation, dilation)
        return AxisWindow(length, window, stride, dilation, _on(self.causal, dim, self.causal))

    def clamped(self, grid: TokenGrid) -> tuple[Neighborhood, str | None]:
        """Clamp window to the axis, then stride to the window, then dilation to axis ÷ window."""
        wanted = self._axes(grid)
        window = tuple(min(a.window, a.length) for a in wanted)
        stride = tuple(min(a.stride, w) for a, w in zip(wanted, window, strict=True))
        dilation = tuple(min(a.dilation, a.length // w) for a, w in zip(wanted, window, strict=True))
        if list(zip(window, stride, dilation, strict=True)) == [(a.window, a.stride, a.dilation) for a in wanted]:
            return self, None
        causal = tuple(a.causal for a in wanted)
        clamped: Any = {"window": window, "stride": stride, "dilation": dilation, "causal": causal}
        pattern = replace(self, **clamped)
        return pattern, f"clamped to window {window}, stride {stride}, dilation {dilation}"

    def mask(self, grid: TokenGrid) -> BlockMask:
        """Every tile pair visited whole, in part or not at all, exactly."""
        axes = self.axes(grid)
        tile = self.tile if isinstance(self.tile, tuple) else choose_tile(axes)
        tiles = [AxisTiles.cut(a.length, t, a.dilation) for a, t in zip(axes, tile, strict=True)]
        size = block_size_for(math.prod(int(t.sizes.max()) for t in tiles))
        visits = TileVisits([AxisVisits.of(a, t) for a, t in zip(axes, tiles, strict=True)])
        layout = tiled_layout(grid, tiles, size)
        return build(grid, layout, visits.rows, size, tiles=visits.table(size), tail=self.tail)

    def visual_allowed(self, grid: TokenGrid) -> Tensor:
        """bool [visual, visual]: the conjunction of the axes' rules."""
        at = grid.coordinates().unbind(1)
        out = torch.ones(grid.visual, grid.visual, dtype=torch.bool)
        for axis, c in zip(self.axes(grid), at, strict=True):
            out &= axis.allowed()[c[:, None], c]
        return out


def _on(value: Any, dim: int, single: Any) -> Any:
    """A per-axis argument on one axis: its entry, or ``single`` where one value is given for all axes."""
    return value[dim] if isinstance(value, tuple) else single
