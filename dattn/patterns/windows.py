"""Windows: the grid in a few large windows, shifted from step to step so that no seam stays.

HiDiffusion's MSW-MSA (Zhang et al., ECCV 2024, arXiv 2311.17528). On an axis of L tokens cut into n windows of
w = ⌈L / n⌉, with a shift of s = k · ⌊w / 4⌋ and k in 0 … 3, the axis being a ring:

    q sees k  iff  ⌊((q - s) mod L) / w⌋ = ⌊((k - s) mod L) / w⌋ on every axis

or of half a window, s = ⌊w / 2⌋. Where n does not divide L the last window is smaller, and there may be fewer.

k is drawn anew for every layer and step, the same on all axes. Here it comes from (seed, step, layer), so a run can be
repeated, and no random number generator of the user's is touched.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dattn.block_mask import BlockMask
from dattn.grid import TokenGrid
from dattn.groups import Groups, RolledTiles, same_group
from dattn.patterns.base import Pattern, as_tuple, check_count, check_per_axis, check_tail

QUARTERS = 4


@dataclass(frozen=True)
class Windows(Pattern):
    """HiDiffusion's windows.

    Args:
        splits: windows per axis, one number for every axis longer than 1, or (frames, height, width).
        shift: "random" (by seed, step and layer), "half" a window, or a number of quarter windows, 0 … 3.
        seed: of "random", 0 or more.
        tail: pool what is skipped: False, True (one key per block) or a run of 16 … block size tokens.

    Raises:
        ValueError: a field outside these bounds; more windows than tokens when the grid is met.
    """

    splits: int | tuple[int, int, int] = (1, 2, 2)
    shift: str | int = "random"
    seed: int = 0
    tail: bool | int = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "splits", as_tuple(self.splits))
        check_per_axis("splits", self.splits)
        number = type(self.shift) is int and 0 <= self.shift < QUARTERS
        if not number and self.shift not in ("random", "half"):
            raise ValueError(f"shift={self.shift!r}: give 'random', 'half', or 0 to 3 quarters of a window")
        check_count("seed", self.seed, least=0)
        check_tail(self.tail)

    def at(self, layer: int, layers: int, step: int, steps: int) -> Windows:
        """The windows of one place, their shift settled."""
        if self.shift != "random":
            return self
        drawn = hashlib.blake2b(f"{self.seed} {step} {layer}".encode()).digest()[0] % QUARTERS
        return replace(self, shift=drawn, seed=0)

    def clamped(self, grid: TokenGrid) -> tuple[Windows, str | None]:
        """No more windows than tokens."""
        wanted = self._splits(grid)
        frames, height, width = map(min, wanted, grid.shape)
        splits = frames, height, width
        if splits == wanted:
            return self, None
        return replace(self, splits=splits), f"clamped to splits {splits}"

    def _splits(self, grid: TokenGrid) -> tuple[int, ...]:
        one = self.splits
        return one if isinstance(one, tuple) else tuple(1 if n == 1 else one for n in grid.shape)

    def axes(self, grid: TokenGrid) -> list[RolledTiles]:
        """The windows on every axis.

        Raises:
            ValueError: more windows than an axis has tokens.
        """
        shift = self.at(0, 1, 0, 1).shift  # where there is no place: as in the first
        axes = []
        for splits, length in zip(self._splits(grid), grid.shape, strict=True):
            if splits > length:
                raise ValueError(f"splits {splits} on an axis of {length}: at most one window for every token")
            size = -(-length // splits)
            by = size // 2 if shift == "half" else int(shift) * (size // QUARTERS)
            axes.append(RolledTiles(length, size, by if splits > 1 else 0))
        return axes

    def mask(self, grid: TokenGrid) -> BlockMask:
        """Every block whole or not at all."""
        return Groups(grid, self.axes(grid)).mask(same_group, self.tail)

    def visual_allowed(self, grid: TokenGrid) -> Tensor:
        """bool [visual, visual], axis by axis from the coordinates."""
        out = torch.ones(grid.visual, grid.visual, dtype=torch.bool)
        for at, axis in zip(grid.coordinates().unbind(1), self.axes(grid), strict=True):
            window = (at - axis.shift) % axis.length // axis.size
            out &= window[:, None] == window
        return out
