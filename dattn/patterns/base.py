"""What every pattern is: a frozen dataclass that says who may attend to whom."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar, cast

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

    A subclass is one small file: its fields, ``mask`` and ``visual_allowed``, and ``clamped`` where a grid may be too
    small for a field.
    """

    @property
    def static(self) -> bool:
        """True: the grid says it all."""
        return True

    def clamped(self, grid: TokenGrid) -> tuple[Pattern, str | None]:
        """The same, with fields clamped to the grid but for the tail, and a note that says what changed."""
        return self, None

    def fit(self, grid: TokenGrid) -> tuple[Spec, str | None]:
        """The same, clamped to a grid that it would be too large for, its tail as well, and a note."""
        fitted, note = self.clamped(grid)
        tail = getattr(fitted, "tail", False)
        if tail in (False, True):
            return fitted, note
        pooled: Any = replace(cast(Any, fitted), tail=True)
        size = _block_size(pooled, grid)
        if tail <= size:
            return fitted, note
        said = f"one pooled key for every block of {size}"
        return pooled, said if note is None else f"{note}, {said}"

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


@lru_cache(maxsize=64)
def _block_size(pattern: Pattern, grid: TokenGrid) -> int:
    """Slots in a block of the pattern's mask, which is built once: ``fit`` is asked at every step of every layer."""
    return pattern.mask(grid).block_size


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
    if type(tail) not in (bool, int) or tail not in (False, True, 16, 32, 64, 128):
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
