"""What every pattern is: a frozen dataclass that says who may attend to whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from dattn.block_mask import BlockMask
from dattn.grid import TokenGrid
from dattn.spec import Spec

PerAxis = int | None | tuple[int | None, int | None, int | None]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Pattern(Spec):
    """Base of static patterns: a function of the grid alone.

    A subclass is one small file: its fields, ``mask`` and ``visual_allowed``.
    """

    @property
    def static(self) -> bool:
        """True: the grid says it all."""
        return True

    def for_heads(self, heads: tuple[int, ...], of: int) -> Spec:
        """The lists of these heads' groups."""
        from dattn.head_share import HeadShare

        return HeadShare(self, heads, of)

    def stretched(self, factor: float) -> Pattern:
        """The same with spans of frames so many times as long.

        Raises:
            ValueError: it has none.
        """
        raise ValueError(f"{self.name} has no spans in frames: give Neighborhood((9, None, None)) or SparseFrames(5)")

    def mask(self, grid: TokenGrid) -> BlockMask:
        """The pattern on a grid, as block lists.

        Raises:
            ValueError: the pattern does not fit the grid.
        """
        raise NotImplementedError

    def visual_allowed(self, grid: TokenGrid) -> Tensor:
        """bool [visual, visual], with leading head groups where they differ: straight from the definition."""
        raise NotImplementedError

    def allowed(self, grid: TokenGrid) -> Tensor:
        """bool [tokens, tokens] in raster order, text included; with leading head groups where they differ.

        The element-wise definition, an oracle for small grids: memory grows with the square of the tokens.

        Raises:
            ValueError: the pattern does not fit the grid.
        """
        allowed = self.visual_allowed(grid)
        out = torch.ones(*allowed.shape[:-2], grid.tokens, grid.tokens, dtype=torch.bool)
        visual = slice(grid.text_before, grid.text_before + grid.visual)
        out[..., visual, visual] = allowed
        return out


def grown(span: int, factor: float) -> int:
    """A span so many times as long, rounded: an odd one to an odd number; 1 at least."""
    odd = span % 2
    return max(1, 2 * round((span * factor - odd) / 2) + odd) if span > 1 else max(1, round(span * factor))


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raise ``ValueError`` unless ``value`` is a whole number of ``least`` or more."""
    if type(value) is not int or value < least:
        raise ValueError(f"{name}={value!r}: give a whole number of {least} or more")


def check_tail(tail: bool | int) -> None:
    """Raise ``ValueError`` unless ``tail`` is False, True or one of the run lengths 16, 32, 64, 128."""
    if tail not in (False, True) and tail not in (16, 32, 64, 128):
        raise ValueError(f"tail={tail!r}: give False, True (one key per block) or a run of 16, 32, 64 or 128")


def as_tuple(value: Any) -> Any:
    """Lists (as JSON gives them) to tuples, so that a pattern can be hashed; anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


def check_per_axis(name: str, value: Any, kind: type = int, optional: bool = False) -> None:
    """Raise ``ValueError`` unless ``value`` is a ``kind`` or three of them (None where ``optional``)."""
    for item in value if isinstance(value, tuple) else (value,):
        right = isinstance(item, bool) if kind is bool else type(item) is int and item >= 1
        if not (right or (optional and item is None)):
            wanted = "True or False" if kind is bool else "a whole number of 1 or more"
            raise ValueError(f"{name}={value!r}: give {wanted}, or one per axis (frames, height, width)")
    if isinstance(value, tuple) and len(value) != 3:
        raise ValueError(f"{name}={value!r}: a tuple has three entries (frames, height, width)")
