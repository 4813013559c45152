"""``dattn simulate``: what patterns compute at a grid, without a model; and the windows that cost a wanted share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import TYPE_CHECKING

from .arguments import Parser, at_least, grid
from .table import table

if TYPE_CHECKING:
    from torch import Tensor

    from dattn.block_mask import BlockMask
    from dattn.grid import TokenGrid

EXAMPLES = """\
  dattn simulate --grid 21x45x80 --patterns "Radial(decay=0.2)" "Neighborhood((9, 21, 32))"
  dattn simulate --grid 13x30x45 --text 226 --density 0.2

The grid is counted in tokens: Wan 2.1 at 81 frames of 720 x 1280 is 21x45x80. An image has 1 frame."""
COLUMNS = (
    "pattern",
    "block",
    "blocks",
    "visited",
    "partial",
    "padded",
    "density",
    "pairs seen",
    "computed",
    "pooled",
    "at most",
)
LEGEND = """\
visited: tiles (pairs of blocks) that a head computes; partial, padded: shares of them that it sees in part, and whose
query or key block has empty slots; computed: those slots counted; at most: how many times as fast as dense attention"""
SHOWN = 5
TRIED = 2 * SHOWN
NEAR = 0.15
SMALLEST_TILE = 16
RAGGED_COST = 1.0
"""In doublings of the work, on top of what it wastes: tiles that divide the grid come first where they are any good."""


def parser() -> Parser:
    """The command's options."""
    p = Parser("simulate", "Count what patterns compute at a grid, and find windows for a density.", EXAMPLES)
    p.add_argument("--grid", required=True, type=grid, metavar="FxHxW", help="tokens: frames x height x width")
    p.add_argument("--text", type=at_least(0), default=0, metavar="N", help="text tokens (default: %(default)s)")
    p.add_argument("--patterns", nargs="+", default=[], metavar="PATTERN", help='such as "Radial(decay=0.2)"')
    p.add_argument(
        "--density", type=float, metavar="D", help="propose windows that compute this share of all, text too"
    )
    return p


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    options = parser().parse_args(argv)
    if not options.patterns and options.density is None:
        raise ValueError("nothing to count: give --patterns, or --density for windows that cost so much")
    from dattn.grid import TokenGrid

    from .plot import static_mask

    patterns = list(options.patterns)
    if options.density is not None:
        patterns += windows_for(options.grid, options.density, options.text)
    frames, height, width = options.grid
    tokens = TokenGrid(frames, height, width, options.text)
    print(table(COLUMNS, [row(text, static_mask(text, tokens)) for text in patterns]))
    print(f"\n{LEGEND}")
    return 0


def row(text: str, mask: BlockMask) -> tuple[object, ...]:
    """A pattern's counts, as ``COLUMNS`` names them."""
    visited = mask.visited
    return (
        text,
        mask.block_size,
        mask.num_blocks[0],
        round(visited.mean().item()),
        mask.partial.counts().expand(*visited.shape, -1).sum().item() / visited.sum().item(),
        _padded(mask).sum().item() / visited.sum().item(),
        mask.density,
        mask.element_density,
        mask.slot_density,
        mask.tail_share,
        1 / (mask.slot_density + mask.tail_share),
    )


def _padded(mask: BlockMask) -> Tensor:
    """int64 [batch or 1, groups or 1]: visited pairs whose query or key block has empty slots."""
    query, key = (side.lengths < mask.block_size for side in (mask.query, mask.key))
    lists = (mask.full, mask.partial)
    whole, part = (blocks.counts().where(query, blocks.sums(key.long())).sum(-1) for blocks in lists)
    return whole + part


def windows_for(shape: tuple[int, int, int], density: float, text: int = 0) -> list[str]:
    """At most ``SHOWN`` neighborhoods whose masks have about this density, text included; the most suitable first.

    The stride is the tile, the window an odd number of tiles or the whole axis. A tile that divides the grid leaves
    no block partial; others are proposed where they cost less in spite of their ragged edge.

    Raises:
        ValueError: a density outside of (0, 1), one that text alone exceeds, or one that no such window comes near.
    """
    from dattn.grid import TokenGrid

    if not 0 < density < 1:
        raise ValueError(f"density {density}: a share above 0 and below 1; ask for one such as 0.2")
    tokens = TokenGrid(*shape, text)
    tilings = list(_tilings(tokens))
    _check_text(tokens, density, tilings)
    found = sorted(candidate for tiling in tilings for candidate in tiling.near(density))
    proposals = list(islice(_holding([text for _, text in found[:TRIED]], tokens, density), SHOWN))
    if not proposals:
        nearest = min((t.nearest(density) for t in tilings), key=lambda share: abs(share / density - 1))
        raise ValueError(
            f"density {density}: no window in whole tiles comes within {NEAR:.0%} of it on this grid; the nearest is "
            f"{nearest:.3g}: ask for about that, take a larger grid, or give a window of your own with --patterns"
        )
    return proposals


def _check_text(tokens: TokenGrid, density: float, tilings: Sequence[Tiling]) -> None:
    """Text rows and columns are dense, whatever the window.

    Raises:
        ValueError: what they alone cost is the density, or more.
    """
    share = 1 - (tokens.visual / tokens.tokens) ** 2
    if share >= density:
        least = min(tiling.least(share) for tiling in tilings)
        raise ValueError(
            f"density {density}: {tokens.tokens - tokens.visual} text tokens see all and are seen by all, which alone "
            f"costs {share:.3g}; the least possible on this grid is {_rounded_up(least)}: ask for a share from "
            "there up, or give less text"
        )


def _rounded_up(share: float) -> float:
    """To three digits that matter, so that who asks for what is shown asks for enough."""
    digits = 2 - math.floor(math.log10(share))
    return round(math.ceil(share * 10**digits) / 10**digits, digits)


def _holding(patterns: Sequence[str], tokens: TokenGrid, density: float) -> Iterator[str]:
    """Those whose real mask has about this density."""
    from .plot import static_mask

    for text in patterns:
        if abs(static_mask(text, tokens).density / density - 1) <= NEAR:
            yield text


def _tilings(tokens: TokenGrid) -> Iterator[Tiling]:
    """Every tile that fits a block and does not leave most of it empty; as even as the number of tiles allows."""
    from dattn.grid import BLOCK_SIZES

    least, most = min(SMALLEST_TILE, tokens.visual), BLOCK_SIZES[-1]
    axes = [
        [_axis_tiling(n, tile) for tile in sorted({-(-n // k) for k in range(1, n + 1)}) if tile <= most]
        for n in tokens.shape
    ]
    for frames, height in product(*axes[:2]):
        for width in axes[2]:
            if least <= frames.tile * height.tile * width.tile <= most:
                yield Tiling(tokens, (frames, height, width))


@dataclass(frozen=True)
class AxisTiling:
    """One axis in tiles, and its windows: their lengths, and the pairs of tiles seen, and seen whole, under each."""

    length: int
    tile: int
    tiles: int
    windows: tuple[int, ...]
    some: tuple[int, ...]
    whole: tuple[int, ...]


def _axis_tiling(length: int, tile: int) -> AxisTiling:
    """Windows of an odd number of tiles, which end where tiles do except at a ragged border, and the whole axis."""
    windows = tuple(sorted({*range(tile, length + 1, 2 * tile), length}))
    some, whole = zip(*(_tile_pairs(length, tile, window) for window in windows), strict=True)
    return AxisTiling(length, tile, -(-length // tile), windows, some, whole)


def _tile_pairs(length: int, tile: int, window: int) -> tuple[int, int]:
    """Pairs of tiles on an axis that see something of each other, and all; a tile's queries share a window."""
    from dattn.axis_window import AxisWindow, tile_intervals
    from dattn.grid import AxisTiles

    axis = AxisWindow(length, window, _stride(tile, window, length))
    start, _, _, end = tile_intervals(axis, AxisTiles.cut(length, tile))
    last = -(
        -end // tile
    )  # such windows end where a tile does: only those pushed back from the border start inside one
    return int((last - start // tile).sum()), int((last - -(-start // tile)).sum())


def _stride(tile: int, window: int, length: int) -> int:
    """The tile; 1 where the whole axis is seen and a stride changes nothing."""
    return 1 if window == length else tile


@dataclass(frozen=True)
class Tiling:
    """A grid in tiles, with all the windows that its axes have."""

    tokens: TokenGrid
    axes: tuple[AxisTiling, AxisTiling, AxisTiling]

    @property
    def tile(self) -> tuple[int, ...]:
        """(frames, height, width)."""
        return tuple(axis.tile for axis in self.axes)

    @property
    def block_size(self) -> int:
        """Slots of a block."""
        from dattn.grid import block_size_for

        return block_size_for(math.prod(self.tile))

    @property
    def blocks(self) -> int:
        """Blocks of visual tokens: a tile each."""
        return math.prod(axis.tiles for axis in self.axes)

    def densities(self) -> Tensor:
        """float64 [windows on frames, on height, on width]: the densities of their masks, blocks of text included."""
        import torch

        from dattn.grid import text_blocks

        frames, height, width = (torch.tensor(axis.some).double() for axis in self.axes)
        seen = frames[:, None, None] * height[:, None] * width
        blocks = self.blocks + sum(text_blocks(self.tokens, self.block_size))
        return 1 - (self.blocks**2 - seen) / blocks**2

    def nearest(self, density: float) -> float:
        """The density of the window that comes nearest to one."""
        reached = self.densities().flatten()
        return reached[(reached / density - 1).abs().argmin()].item()

    def least(self, above: float) -> float:
        """The smallest density above one; tiles that leave blocks empty make text look cheaper than its tokens are."""
        reached = self.densities()
        return reached[reached > above].min().item()

    def near(self, density: float) -> Iterator[tuple[float, str]]:
        """(cost of being unsuitable, pattern) of the windows of about a density."""
        reached, waste = self.densities(), self._waste()
        places = ((reached / density - 1).abs() <= NEAR).nonzero()
        for at, share in zip(places.tolist(), reached[places.unbind(1)].tolist(), strict=True):
            cost = waste + self._unsuitable(at) + abs(math.log2(share / density))
            yield cost, self._pattern(at)

    def _waste(self) -> float:
        """What the tile costs under any window: empty slots, a small block, a ragged edge; in doublings of the work."""
        from dattn.tiles import BLOCK_EFFICIENCY

        slots = self.blocks * self.block_size / self.tokens.visual
        ragged = any(axis.length % axis.tile for axis in self.axes)
        return math.log2(slots**2 / BLOCK_EFFICIENCY[self.block_size]) + RAGGED_COST * ragged

    def _unsuitable(self, at: Sequence[int]) -> float:
        """What a window costs: blocks seen in part, in doublings of the work, and an uneven share of the axes."""
        from dattn.tiles import PART_COST

        chosen = list(zip(self.axes, at, strict=True))
        whole, some = (math.prod(getattr(axis, kind)[i] for axis, i in chosen) for kind in ("whole", "some"))
        shares = [axis.windows[i] / axis.length for axis, i in chosen]
        return math.log2(1 + PART_COST * (1 - whole / some)) + math.log2(max(shares) / min(shares)) / 4

    def _pattern(self, at: Sequence[int]) -> str:
        chosen = [(axis, axis.windows[i]) for axis, i in zip(self.axes, at, strict=True)]
        window = tuple(length for _, length in chosen)
        stride = tuple(_stride(axis.tile, length, axis.length) for axis, length in chosen)
        return f"Neighborhood({window}, stride={stride}, tile={self.tile})"
