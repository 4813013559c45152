"""``dattn simulate``: what patterns compute at a grid, without a model; and the windows that cost a wanted share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING

from .arguments import Parser, at_least, grid
from .table import table

if TYPE_CHECKING:
    from dattn.block_mask import BlockMask

EXAMPLES = """\
  dattn simulate --grid 21x45x80 --patterns "Radial(decay=0.2)" "Neighborhood((9, 21, 32))"
  dattn simulate --grid 13x30x45 --text 226 --density 0.2

The grid is counted in tokens: Wan 2.1 at 81 frames of 720 x 1280 is 21x45x80. An image has 1 frame."""
COLUMNS = ("pattern", "block", "blocks", "density", "in part", "pairs seen", "computed", "pooled", "at most")
SHOWN = 5
NEAR = 0.15
SMALLEST_TILE = 32


def parser() -> Parser:
    """The command's options."""
    p = Parser("simulate", "Count what patterns compute at a grid, and find windows for a density.", EXAMPLES)
    p.add_argument("--grid", required=True, type=grid, metavar="FxHxW", help="tokens: frames x height x width")
    p.add_argument("--text", type=at_least(0), default=0, metavar="N", help="text tokens (default: %(default)s)")
    p.add_argument("--patterns", nargs="+", default=[], metavar="PATTERN", help='such as "Radial(decay=0.2)"')
    p.add_argument("--density", type=float, metavar="D", help="propose windows that compute this share, in (0, 1)")
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
        patterns += windows_for(options.grid, options.density)[:SHOWN]
    frames, height, width = options.grid
    tokens = TokenGrid(frames, height, width, options.text)
    print(table(COLUMNS, [row(text, static_mask(text, tokens)) for text in patterns]))
    print("\ncomputed: with the empty slots of blocks; at most: how many times as fast as dense attention it can be")
    return 0


def row(text: str, mask: BlockMask) -> tuple[object, ...]:
    """A pattern's counts, as ``COLUMNS`` names them."""
    visited = int((mask.full.counts() + mask.partial.counts()).sum())
    return (
        text,
        mask.block_size,
        mask.num_blocks[0],
        mask.density,
        int(mask.partial.counts().sum()) / visited,
        mask.element_density,
        mask.slot_density,
        mask.tail_share,
        1 / (mask.slot_density + mask.tail_share),
    )


def windows_for(shape: tuple[int, int, int], density: float) -> list[str]:
    """Neighborhoods of about this density that leave no block partial, the most suitable first.

    The tile divides the grid, the stride is the tile, the window an odd number of tiles or the whole axis.

    Raises:
        ValueError: a density outside of (0, 1), or one that no such window comes near.
    """
    if not 0 < density < 1:
        raise ValueError(f"density {density}: a share above 0 and below 1")
    found = sorted((cost, text) for share, cost, text in _windows(shape, density) if abs(share / density - 1) <= NEAR)
    if not found:
        near = min((abs(share / density - 1), share) for share, _, _ in _windows(shape, density))[1]
        raise ValueError(f"density {density}: no window in whole tiles is near on this grid; the nearest is {near:.3f}")
    return [text for _, text in found]


def _windows(shape: tuple[int, int, int], density: float) -> Iterator[tuple[float, float, str]]:
    """(share of the grid, cost of being unsuitable, pattern) of every window in whole tiles."""
    from dattn.grid import BLOCK_SIZES, block_size_for
    from dattn.tiles import BLOCK_EFFICIENCY

    divisors = [[t for t in range(1, n + 1) if n % t == 0] for n in shape]
    for tile in product(*divisors):
        tokens = math.prod(tile)
        if not min(SMALLEST_TILE, math.prod(shape)) <= tokens <= BLOCK_SIZES[-1]:
            continue
        size = block_size_for(tokens)
        waste = math.log2(size / tokens / BLOCK_EFFICIENCY[size])
        for window in product(*(_lengths(n, t) for n, t in zip(shape, tile, strict=True))):
            shares = [w / n for w, n in zip(window, shape, strict=True)]
            share = math.prod(shares)
            uneven = math.log2(max(shares) / min(shares))
            cost = waste + uneven / 4 + abs(math.log2(share / density))
            yield share, cost, f"Neighborhood({window}, stride={_strides(tile, window, shape)}, tile={tile})"


def _lengths(length: int, tile: int) -> list[int]:
    return sorted({*range(tile, length + 1, 2 * tile), length})


def _strides(tile: Sequence[int], window: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """The tile; 1 where the whole axis is seen and a stride changes nothing."""
    return tuple(1 if w == n else t for t, w, n in zip(tile, window, shape, strict=True))
