"""Radial attention: the further apart two frames, the narrower the diagonal that they share.

Radial Attention (Li et al., NeurIPS 2025, arXiv 2506.19852) observes that attention between frames decays with
their distance in time and in space. With s tokens per frame, bl(x) the bit length of x and D = |i - j| the
distance of query frame i and key frame j:

    window(D) = 2^(bl(s) - bl(D))                  tokens, halved each time the distance doubles
    D <= 1, or j = 0 (the sink)                    the whole frame pair
    window(D) < block_size                         the pair is kept only if D is a multiple of ⌊block_size / window⌋
    otherwise token k of i sees token l of j       iff |k - l| <= max(decay * window(D), block_size)

That is the rule of the paper's published measurements, about half as dense as its Eq. 4. It is applied to
blocks: in the part of a block pair that a frame pair covers, a key column *counts* if more than a third of the
block's rows see it, and *shows* if any row does; the block pair is kept iff counting columns are more than 0.6
of the showing ones. A frame pair that is whole keeps every block that it touches. A block pair that straddles
frames is kept if any of its frame pairs keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dattn.block_mask import BlockMask, build
from dattn.grid import BLOCK_SIZES, TokenGrid, raster_layout
from dattn.patterns.base import Pattern, check_tail

ROW_SHARE = 1 / 3  # a key column counts if more than this share of the block's rows see it
COLUMN_SHARE = 0.6  # a block is kept if more than this share of its showing columns count
WHOLE = 1 << 29  # a window wider than any frame


@dataclass(frozen=True)
class Radial(Pattern):
    """Radial attention; the block rule *is* the pattern, so every block is visited whole or not at all.

    Args:
        decay: scales the window of frames two or more apart; smaller is sparser. Above 0.
        sink: every query sees frame 0.
        block_size: 16, 32, 64 or 128 tokens; 128 in the published settings.
        tail: pool what is skipped: False, True (one key per block) or a run of 16 … block_size tokens.

    Raises:
        ValueError: a field outside these bounds.
    """

    decay: float = 1.0
    sink: bool = True
    block_size: int = 128
    tail: bool | int = False

    def __post_init__(self) -> None:
        number = isinstance(self.decay, int | float) and not isinstance(self.decay, bool)
        if not number or not 0 < self.decay < float("inf"):
            raise ValueError(f"decay={self.decay!r}: a number above 0 (the published settings use 0.2 to 1)")
        if not isinstance(self.sink, bool):
            raise ValueError(f"sink={self.sink!r}: give True or False")
        if self.block_size not in BLOCK_SIZES:
            raise ValueError(f"block_size={self.block_size!r}: choose one of {BLOCK_SIZES}")
        check_tail(self.tail)
        if self.tail > self.block_size:
            raise ValueError(f"tail={self.tail}: a run is at most the block size {self.block_size}")

    def windows(self, grid: TokenGrid) -> Tensor:
        """int32 [frames]: the half-width allowed at each frame distance, -1 where the pair is dropped."""
        tokens = grid.height * grid.width
        return torch.tensor([self._window(distance, tokens) for distance in range(grid.frames)], dtype=torch.int32)

    def _window(self, distance: int, tokens: int) -> int:
        if distance <= 1:
            return WHOLE
        window = 2.0 ** (tokens.bit_length() - distance.bit_length())
        if window < self.block_size and distance % int(self.block_size / window):
            return -1
        width = int(max(window * self.decay, self.block_size))
        return WHOLE if width >= tokens else width

    def mask(self, grid: TokenGrid) -> BlockMask:
        """The kept blocks, counted from the first visual token; text has blocks of its own."""
        parts = Parts.of(grid, self.block_size)
        windows = self.windows(grid)
        rule = lambda first, last: (self._rows(parts, windows, first, last), None, None)
        return build(grid, raster_layout(grid, self.block_size), rule, self.block_size, tail=self.tail)

    def _rows(self, parts: Parts, windows: Tensor, first: int, last: int) -> Tensor:
        """bool [last - first, blocks]: a block pair is kept if any pair of its parts is."""
        rows = parts.between(first, last)
        window = windows[(rows.frame[:, None] - parts.frame).abs().long()]
        if self.sink:
            window = window.masked_fill(parts.frame == 0, WHOLE)
        query, key = self._votes(rows, parts, window).nonzero().unbind(1)
        kept = torch.zeros(last - first, parts.blocks, dtype=torch.bool)
        kept[rows.block[query].long() - first, parts.block[key].long()] = True
        return kept

    def _votes(self, rows: Parts, columns: Parts, window: Tensor) -> Tensor:
        """bool [rows, columns]: the vote of each pair of parts.

        Column l is seen by the rows within ``window`` of it, so at least c rows see it iff l lies between
        first - window + c - 1 and last + window - c + 1: counting columns needs no loop over them.
        """
        first, last = rows.first[:, None], rows.last[:, None]
        needed = int(self.block_size * ROW_SHARE) + 1
        reach = torch.minimum(last - first + 1, 2 * window + 1)

        def columns_seen_by(rows_needed: int) -> Tensor:
            low = torch.maximum(columns.first, first - window + rows_needed - 1)
            high = torch.minimum(columns.last, last + window - rows_needed + 1)
            return (high - low + 1).clamp_min(0) * (reach >= rows_needed)

        kept = columns_seen_by(needed) > COLUMN_SHARE * columns_seen_by(1)
        return kept & (window >= 0) | (window == WHOLE)

    def visual_allowed(self, grid: TokenGrid) -> Tensor:
        """bool [visual, visual]: every frame pair's token rule, voted block by block."""
        tokens, size = grid.height * grid.width, self.block_size
        blocks = -(-grid.visual // size)
        distance = (torch.arange(tokens)[:, None] - torch.arange(tokens)).abs()
        kept = torch.zeros(blocks, blocks, dtype=torch.bool)
        for i in range(grid.frames):
            for j in range(grid.frames):
                width = WHOLE if self.sink and j == 0 else self._window(abs(i - j), tokens)
                canvas = torch.zeros(blocks * size, blocks * size, dtype=torch.bool)
                canvas[i * tokens : (i + 1) * tokens, j * tokens : (j + 1) * tokens] = distance <= width
                tile = canvas.view(blocks, size, blocks, size).transpose(1, 2)
                share = tile.sum(2) / size
                vote = (share > ROW_SHARE).sum(-1) > COLUMN_SHARE * (share > 0).sum(-1)
                kept |= tile.flatten(2).any(-1) if width == WHOLE else vote
        dense = kept.repeat_interleave(size, 0).repeat_interleave(size, 1)
        return dense[: grid.visual, : grid.visual]


@dataclass(frozen=True)
class Parts:
    """The pieces into which block and frame boundaries cut the visual tokens; int32 [parts] each.

    ``first`` and ``last`` are the piece's first and last token, counted inside its frame.
    """

    block: Tensor
    frame: Tensor
    first: Tensor
    last: Tensor
    blocks: int

    @classmethod
    def of(cls, grid: TokenGrid, block_size: int) -> Parts:
        """Cut a grid."""
        tokens = grid.height * grid.width
        cuts = torch.cat([torch.arange(0, grid.visual, block_size), torch.arange(0, grid.visual, tokens)])
        start = cuts.unique().int()
        end = torch.cat([start[1:], torch.tensor([grid.visual], dtype=torch.int32)])
        frame = start // tokens
        blocks = -(-grid.visual // block_size)
        return cls(start // block_size, frame, start - frame * tokens, end - 1 - frame * tokens, blocks)

    def between(self, first: int, last: int) -> Parts:
        """The pieces of blocks first … last - 1."""
        a, b = torch.searchsorted(self.block, torch.tensor([first, last], dtype=torch.int32)).tolist()
        return Parts(self.block[a:b], self.frame[a:b], self.first[a:b], self.last[a:b], self.blocks)
