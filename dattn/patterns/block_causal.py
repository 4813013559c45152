"""Block-causal attention: a chunk of frames sees itself and the chunks before it, as autoregressive video models do.

    q sees k  iff  ⌊frame(k) / n⌋ <= ⌊frame(q) / n⌋          for chunks of n frames

as in CausVid (Yin et al., 2025, arXiv 2412.07772) and its successors, where a chunk is what is generated at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from dattn.block_mask import BlockMask
from dattn.grid import TokenGrid
from dattn.groups import Groups
from dattn.patterns.base import Pattern, check_count, check_tail


@dataclass(frozen=True)
class BlockCausal(Pattern):
    """Causal over chunks of frames.

    Args:
        frames: frames of a chunk, 1 or more.
        tail: pool what is skipped, which here is the future: False, True (one key per block) or a run of tokens.

    Raises:
        ValueError: a field outside these bounds; a chunk longer than the clip when the grid is met.
    """

    frames: int
    tail: bool | int = False

    def __post_init__(self) -> None:
        check_count("frames", self.frames)
        check_tail(self.tail)

    def clamped(self, grid: TokenGrid) -> tuple[BlockCausal, str | None]:
        """A chunk no longer than the clip."""
        if self.frames <= grid.frames:
            return self, None
        return replace(self, frames=grid.frames), f"clamped to chunks of {grid.frames} frames"

    def mask(self, grid: TokenGrid) -> BlockMask:
        """Every block whole or not at all."""
        self._check(grid)
        groups = Groups.boxes(grid, (self.frames, grid.height, grid.width))
        return groups.mask(lambda query, key: key[..., 0] <= query[..., 0], self.tail)

    def visual_allowed(self, grid: TokenGrid) -> Tensor:
        """bool [visual, visual], from the frames of the tokens."""
        self._check(grid)
        chunk = grid.coordinates()[:, 0] // self.frames
        return chunk <= chunk[:, None]

    def _check(self, grid: TokenGrid) -> None:
        if self.frames > grid.frames:
            raise ValueError(
                f"frames {self.frames} of a clip of {grid.frames}: a chunk is at most the clip; give fewer"
            )
