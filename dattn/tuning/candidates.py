"""What is tried in every layer and head where nobody says else: patterns that need no training, over their densities.

Spans are shares of the grid, so the same list suits any length and size.
"""

from __future__ import annotations

from dattn.grid import TokenGrid

LONG = 32_768
"""Tokens from which blocks of 128 are small enough."""
DENSE = "Dense()"


def candidates(grid: TokenGrid) -> list[str]:
    """Patterns as text, dense attention first.

    Args:
        grid: of the largest layer.
    """
    block = f"block_size={_block(grid)}"
    alike = [f"Alike({density}, {block})" for density in (0.1, 0.15, 0.2, 0.3, 0.4, 0.5)]
    chosen = [f"Selected(Sampled(), TopK({density}), {block})" for density in (0.1, 0.2, 0.35)]
    shapes = _in_time(grid, block) if grid.frames > 1 else _in_space(grid)
    return list(dict.fromkeys([DENSE, *alike, *chosen, *shapes]))


def _block(grid: TokenGrid) -> int:
    """Tokens of a block: small ones where there are few tokens."""
    return next((size for size, tokens in ((16, 1024), (64, LONG)) if grid.visual < tokens), 128)


def _in_time(grid: TokenGrid, block: str) -> list[str]:
    """Patterns of videos."""
    odd = lambda share: max(1, round(grid.frames * share / 2 - 0.5) * 2 + 1)
    count = lambda share: max(1, round(grid.frames * share))
    frames = [f"SparseFrames({odd(near)}, {count(far)})" for near, far in ((0.08, 0.06), (0.08, 0.12), (0.14, 0.2))]
    windows = [f"Neighborhood(({odd(share)}, None, None))" for share in (0.1, 0.2, 0.35)]
    spans = [f"Growing({pattern}, {grid.frames})" for pattern in (*frames, *windows)]
    heads = [f"SparseVideoGen({density}, {block})" for density in (0.2, 0.35)]
    return [f"Radial({block})", *spans, *heads]


def _in_space(grid: TokenGrid) -> list[str]:
    """Patterns of pictures."""
    side = min(grid.height, grid.width)
    return [f"Neighborhood({max(1, round(side * share))})" for share in (0.25, 0.4, 0.6)]
