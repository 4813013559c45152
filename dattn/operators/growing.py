"""Spans that grow with the clip: what was chosen at one length means something at another.

MoA (Fu et al., 2024, arXiv 2406.14909) gives every head a span that is a linear rule of the length, α + β · N. Here a
span of s frames, chosen at F frames, is at N frames

    s · (still + (1 - still) · N / F),

rounded, odd windows to odd ones. With still = 0 density stays what it was, with 1 the spans do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from dattn.block_mask import BlockMask
from dattn.grid import TokenGrid
from dattn.patterns.base import Pattern, check_count
from dattn.spec import Spec, check_kind


@dataclass(frozen=True)
class Growing(Pattern):
    """A static pattern whose spans in frames follow the clip.

    Args:
        pattern: one with spans in frames: ``Neighborhood`` or ``SparseFrames``.
        frames: of the grid that it was chosen for.
        still: share of the spans that does not grow, in [0, 1].

    Raises:
        ValueError: a field outside these bounds, or a pattern that has no spans in frames.
    """

    pattern: Pattern
    frames: int
    still: float = 0.0

    def __post_init__(self) -> None:
        check_kind("pattern", self.pattern, Pattern, "Neighborhood((9, None, None))")
        check_count("frames", self.frames)
        if isinstance(self.still, bool) or not isinstance(self.still, int | float) or not 0 <= self.still <= 1:
            raise ValueError(f"still={self.still!r}: give a number from 0 to 1")
        self.pattern.stretched(1.0)

    @property
    def tail(self) -> bool | int:
        """That of the pattern."""
        return getattr(self.pattern, "tail", False)

    def at(self, layer: int, layers: int, step: int, steps: int) -> Spec:
        """The pattern at that place."""
        placed: Any = self.pattern.at(layer, layers, step, steps)
        return replace(self, pattern=placed)

    def on(self, grid: TokenGrid) -> Pattern:
        """The pattern at a grid's length."""
        return self.pattern.stretched(self.still + (1 - self.still) * grid.frames / self.frames)

    def fit(self, grid: TokenGrid) -> tuple[Spec, str | None]:
        """The pattern at that length, clamped."""
        return self.on(grid).fit(grid)

    def mask(self, grid: TokenGrid) -> BlockMask:
        """That of the pattern at the grid's length."""
        return self.on(grid).mask(grid)

    def visual_allowed(self, grid: TokenGrid) -> Tensor:
        """That of the pattern at the grid's length: see ``Pattern.visual_allowed``."""
        return self.on(grid).visual_allowed(grid)
