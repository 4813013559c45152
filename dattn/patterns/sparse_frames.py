"""Sparse frames: a window of frames around every frame, and a few anchor frames that all frames see.

After LVSA (2026, arXiv 2605.31057), training-free attention for long video; its schedule of rotation is not
published, this one is ours. With F frames, a window of w and a anchors:

    local     start = clamp(i - ⌊w / 2⌋, 0, F - w), frame i sees the frames start … start + w - 1
    anchors   ⌊(n + φ) · F / a⌋ for n = 0 … a - 1, with φ in [0, 1)

φ is 0, or if the anchors rotate the fractional part of step · 0.618… in eighths, which visits a clip evenly and needs
eight masks: fixed anchors leave a pattern in time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dattn.block_mask import BlockMask
from dattn.grid import TokenGrid
from dattn.groups import Groups
from dattn.patterns.base import Pattern, check_count, check_tail, grown

GOLDEN = (5**0.5 - 1) / 2
PHASES = 8


@dataclass(frozen=True)
class SparseFrames(Pattern):
    """A local temporal window and global anchor frames.

    Args:
        window: frames around a frame that it sees, 1 … frames.
        anchors: frames that every frame sees, evenly spread; 0 for none, at most all.
        rotate: move the anchors from step to step.
        phase: where the anchors are between their places, in [0, 1); ``rotate`` sets it.
        tail: pool what is skipped: False, True (one key per block) or a run of 16 … block size tokens.

    Raises:
        ValueError: a field outside these bounds; a window or more anchors than the clip has when the grid is met.
    """

    window: int
    anchors: int = 4
    rotate: bool = True
    phase: float = 0.0
    tail: bool | int = False

    def __post_init__(self) -> None:
        check_count("window", self.window)
        check_count("anchors", self.anchors, least=0)
        if not isinstance(self.rotate, bool):
            raise ValueError(f"rotate={self.rotate!r}: give True or False")
        if isinstance(self.phase, bool) or not isinstance(self.phase, int | float) or not 0 <= self.phase < 1:
            raise ValueError(f"phase={self.phase!r}: give a number from 0 up to, but not, 1")
        check_tail(self.tail)

    def stretched(self, factor: float) -> SparseFrames:
        """A window of more or fewer frames, and as many more anchors."""
        return replace(self, window=grown(self.window, factor), anchors=round(self.anchors * factor))

    def at(self, layer: int, layers: int, step: int, steps: int) -> SparseFrames:
        """The anchors of one step."""
        if not self.rotate:
            return self
        eighth = int((self.phase + step * GOLDEN) % 1 * PHASES)
        return replace(self, rotate=False, phase=eighth / PHASES)

    def clamped(self, grid: TokenGrid) -> tuple[SparseFrames, str | None]:
        """A window and anchors no more than the frames."""
        window, anchors = min(self.window, grid.frames), min(self.anchors, grid.frames)
        if (window, anchors) == (self.window, self.anchors):
            return self, None
        return replace(self, window=window, anchors=anchors), f"clamped to window {window}, anchors {anchors}"

    def seen(self, frames: int) -> Tensor:
        """bool [frames, frames]: which frames a frame sees.

        Raises:
            ValueError: a window or more anchors than there are frames.
        """
        for name in ("window", "anchors"):
            if getattr(self, name) > frames:
                wish = getattr(self, name)
                raise ValueError(f"{name} {wish} of a clip of {frames} frames: at most all of them; give fewer")
        at = torch.arange(frames)
        start = (at - self.window // 2).clamp(0, frames - self.window)[:, None]
        seen = (at >= start) & (at < start + self.window)
        for n in range(self.anchors):
            seen[:, min(int((n + self.phase) * frames / self.anchors), frames - 1)] = True
        return seen

    def mask(self, grid: TokenGrid) -> BlockMask:
        """Every block whole or not at all."""
        seen = self.seen(grid.frames)
        groups = Groups.boxes(grid, (1, grid.height, grid.width))
        return groups.mask(lambda query, key: seen[query[..., 0], key[..., 0]], self.tail)

    def visual_allowed(self, grid: TokenGrid) -> Tensor:
        """bool [visual, visual], from the frames of the tokens."""
        frame = grid.coordinates()[:, 0]
        return self.seen(grid.frames)[frame[:, None], frame]
