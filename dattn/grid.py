"""Where the tokens of a self-attention sequence sit, and how they are laid out in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

BLOCK_SIZES = (16, 32, 64, 128)
AXES = ("frames", "height", "width")


@dataclass(frozen=True)
class TokenGrid:
    """A video's tokens, frames x height x width in raster order, with text tokens before or after.

    An image is ``frames=1``. ``text`` counts the tokens that are always kept, of any kind (text, reference
    images, registers): a number, placed by ``text_first``, or a pair (before, after).

    Raises:
        ValueError: an axis below 1, a negative text count, or ``text_first`` given with a pair.
    """

    frames: int
    height: int
    width: int
    text: int | tuple[int, int] = 0
    text_first: bool = False

    def __post_init__(self) -> None:
        for axis, length in zip(AXES, self.shape, strict=True):
            if not _is_count(length) or length < 1:
                raise ValueError(f"{axis}={length!r}: every axis of a grid is a whole number of 1 or more")
        counts = tuple(self.text) if isinstance(self.text, tuple | list) else None
        if counts is not None and self.text_first:
            raise ValueError(f"text={self.text!r} with text_first: a pair already says what comes first")
        wanted = (self.text,) if counts is None else counts
        if len(wanted) != (1 if counts is None else 2) or not all(_is_count(c) for c in wanted):
            raise ValueError(f"text={self.text!r}: give a count of 0 or more, or a pair (before, after)")
        if counts is not None:
            object.__setattr__(self, "text", counts)  # a list, as JSON gives it, becomes hashable

    @property
    def shape(self) -> tuple[int, int, int]:
        """(frames, height, width)."""
        return self.frames, self.height, self.width

    @property
    def text_before(self) -> int:
        """Text tokens that precede the visual ones."""
        if isinstance(self.text, tuple):
            return self.text[0]
        return self.text if self.text_first else 0

    @property
    def text_after(self) -> int:
        """Text tokens that follow the visual ones."""
        if isinstance(self.text, tuple):
            return self.text[1]
        return 0 if self.text_first else self.text

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """(frames, height, width, text before, text after)."""
        return (*self.shape, self.text_before, self.text_after)

    @property
    def visual(self) -> int:
        """Visual tokens: frames * height * width."""
        return self.frames * self.height * self.width

    @property
    def tokens(self) -> int:
        """All tokens, text included."""
        return self.visual + self.text_before + self.text_after

    def coordinates(self) -> Tensor:
        """int64 [visual, 3]: the (frame, row, column) of every visual token in raster order."""
        return torch.cartesian_prod(*(torch.arange(n) for n in self.shape)).reshape(-1, 3)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


@dataclass(frozen=True, eq=False)
class Layout:
    """One side (queries or keys) of a block mask: an order cut into blocks of at most ``block_size`` tokens.

    Attributes:
        order: int64 [batch or 1, groups or 1, tokens]; kernel position -> raster position. A side of keys may list
            tokens again behind all others, for different query blocks; what comes after its last block means nothing.
        lengths: int32 [batch or 1, groups or 1, blocks]; blocks are consecutive in kernel order, and one that
            holds fewer tokens than ``block_size`` is ragged: it occupies just its tokens, no padding.
        pooled: bool [blocks]; whether a block may be replaced by its mean (visual blocks; text never is).
    """

    order: Tensor
    lengths: Tensor
    pooled: Tensor

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return self.lengths.shape[-1]

    @cached_property
    def raster(self) -> bool:
        """Whether kernel order is raster order; a GPU is asked once."""
        return bool((self.order == torch.arange(self.order.shape[-1], device=self.order.device)).all())

    @cached_property
    def shortest(self) -> int:
        """Tokens in the smallest block; a GPU is asked once."""
        return int(self.lengths.min())

    def to(self, device: torch.device | str) -> Layout:
        """The same layout on another device."""
        return Layout(self.order.to(device), self.lengths.to(device), self.pooled.to(device))

    def slots(self, batch: int, group: int, block_size: int) -> Tensor:
        """int64 [blocks, block_size]: the raster position in every slot, -1 where a ragged block has none.

        What the batch or the head groups share is found under any of their numbers.
        """
        order, lengths = (
            t[min(batch, t.shape[0] - 1), min(group, t.shape[1] - 1)] for t in (self.order, self.lengths.long())
        )
        starts = lengths.cumsum(0) - lengths
        within = torch.arange(block_size, device=lengths.device)
        position = (starts[:, None] + within).clamp_max(self.order.shape[-1] - 1)
        return torch.where(within < lengths[:, None], order[position], -1)


def raster_layout(grid: TokenGrid, block_size: int) -> Layout:
    """Tokens as the model holds them; blocks count from the first visual token, text has blocks of its own."""
    return with_text(grid, torch.arange(grid.visual), cut(grid.visual, block_size), block_size)


class Tiles(Protocol):
    """One axis cut into tiles."""

    @property
    def tiles(self) -> int:
        """The number of tiles."""

    @property
    def sizes(self) -> Tensor:
        """int64 [tiles]: coordinates in each tile."""

    def order(self) -> tuple[Tensor, Tensor]:
        """int64 [length] twice: the coordinates in tile order, and the tile of each."""


@dataclass(frozen=True, eq=False)
class AxisTiles:
    """One axis cut into tiles, each a run of coordinates of one residue class modulo ``dilation``.

    Coordinate i is number ``i // dilation`` of residue class ``i % dilation``; tiles go through the classes in
    turn. Attributes are int64 [tiles]: the class, and the half-open run [first, last) of numbers inside it.
    """

    length: int
    dilation: int
    residue: Tensor
    first: Tensor
    last: Tensor

    @classmethod
    def cut(cls, length: int, tile: int, dilation: int = 1) -> AxisTiles:
        """Cut an axis into tiles of ``tile`` coordinates; the last tile of a residue class may be shorter."""
        rows = []
        for residue in range(dilation):
            size = class_length(length, dilation, residue)
            rows += [(residue, a, min(a + tile, size)) for a in range(0, size, tile)]
        residue_, first, last = torch.tensor(rows).unbind(1)
        return cls(length, dilation, residue_, first, last)

    @property
    def tiles(self) -> int:
        """The number of tiles."""
        return self.first.numel()

    @property
    def sizes(self) -> Tensor:
        """int64 [tiles]: coordinates in each tile."""
        return self.last - self.first

    def order(self) -> tuple[Tensor, Tensor]:
        """int64 [length] twice: the coordinates in tile order, and the tile of each."""
        tile = torch.arange(self.tiles).repeat_interleave(self.sizes)
        within = torch.arange(self.length) - (self.sizes.cumsum(0) - self.sizes)[tile]
        return self.residue[tile] + self.dilation * (self.first[tile] + within), tile


def class_length(length: int, dilation: int, residue: int) -> int:
    """How many coordinates of an axis leave ``residue`` when divided by ``dilation``."""
    return -(-(length - residue) // dilation)


def tiled_layout(grid: TokenGrid, axes: Sequence[Tiles], block_size: int) -> Layout:
    """Tiles (boxes of one axis tile per axis) and their tokens in raster order; a tile is a block, or several."""
    index = torch.arange(grid.visual).view(grid.shape)
    tile = torch.zeros((1, 1, 1), dtype=torch.int64)
    lengths = torch.ones(1, dtype=torch.int64)
    for dim, axis in enumerate(axes):
        coordinate, number = axis.order()
        index = index.index_select(dim, coordinate)
        tile = tile * axis.tiles + number.view([-1 if d == dim else 1 for d in range(3)])
        lengths = (lengths[:, None] * axis.sizes).flatten()
    order = index.flatten()[tile.flatten().argsort(stable=True)]
    return with_text(grid, order, split(lengths, block_size)[0], block_size)


def split(lengths: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """Runs of tokens cut into blocks: the length of every block, and the run that it belongs to; int64 [blocks]."""
    counts = -(-lengths // block_size)
    run = torch.arange(len(lengths), device=lengths.device).repeat_interleave(counts)
    place = torch.arange(len(run), device=lengths.device) - (counts.cumsum(0) - counts)[run]
    return (lengths[run] - place * block_size).clamp_max(block_size), run


def cut(count: int, block_size: int) -> Tensor:
    """int64 [blocks]: lengths of the blocks of ``count`` consecutive tokens."""
    starts = torch.arange(0, count, block_size)
    return (count - starts).clamp_max(block_size)


def with_text(grid: TokenGrid, visual_order: Tensor, visual_lengths: Tensor, block_size: int) -> Layout:
    """The layout of visual tokens in an order of theirs, in blocks of such lengths, with the grid's text around them.

    Args:
        visual_order: int64 [visual] or [batch, groups, visual], positions among the visual tokens.
        visual_lengths: int64 [blocks] or [batch, groups, blocks].
    """
    order, lengths = (t if t.ndim == 3 else t[None, None] for t in (visual_order, visual_lengths))
    after = grid.tokens - grid.text_after
    first, last = (torch.arange(a, b, device=order.device) for a, b in ((0, grid.text_before), (after, grid.tokens)))
    cuts = [cut(count, block_size).to(lengths) for count in (grid.text_before, grid.text_after)]
    pooled = torch.ones(lengths.shape[-1], dtype=torch.bool, device=lengths.device)
    return Layout(
        _around(first, order + grid.text_before, last),
        _around(cuts[0], lengths, cuts[1]).int(),
        torch.cat([torch.zeros_like(cuts[0]).bool(), pooled, torch.zeros_like(cuts[1]).bool()]),
    )


def _around(first: Tensor, middle: Tensor, last: Tensor) -> Tensor:
    """[batch, groups, …]: the same ``first`` and ``last`` around every row of ``middle``."""
    every = [t.expand(*middle.shape[:2], -1) for t in (first, last)]
    return torch.cat([every[0], middle, every[1]], -1)


def text_blocks(grid: TokenGrid, block_size: int) -> tuple[int, int]:
    """How many blocks the text before and the text after occupy."""
    return -(-grid.text_before // block_size), -(-grid.text_after // block_size)


def block_size_for(tokens: int) -> int:
    """The smallest block that holds ``tokens`` tokens.

    Raises:
        ValueError: more tokens than the largest block holds.
    """
    for size in BLOCK_SIZES:
        if tokens <= size:
            return size
    raise ValueError(f"a tile of {tokens} tokens: a block holds at most {BLOCK_SIZES[-1]}; use a smaller tile")
