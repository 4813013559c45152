"""``dattn plot --gallery``: every pattern at one grid in one picture, its blocks and what one token sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .arguments import token_index

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from dattn.grid import TokenGrid

GRID = (9, 16, 24)
PATTERNS = (
    "Dense()",
    "Radial(block_size=64)",
    "Neighborhood((5, 7, 9))",
    "Neighborhood((3, 12, 12), stride=(1, 4, 4))",
    "Grouped((3, 4, 6))",
    "Grouped((3, 4, 6), 'cross')",
    "SlidingTile((3, 4, 6), (3, 1, 3))",
    "SparseFrames(3, anchors=2)",
    "BlockCausal(3)",
    "Windows((1, 2, 2), shift=1)",
    "Planes()",
    "MultiAxis((1, 4, 6), 'block')",
    "MultiAxis((1, 4, 6), 'grid')",
    "Neighborhood((1, 5, 7), dilation=None)",
    "CrossShaped(4)",
    "StridedHeads(4)",
)
"""One or two of each, sized for this grid."""
COLUMNS = 4
FRAMES = 5


def gallery() -> Figure:
    """A cell for each pattern: its block grid at the left, at the right what the middle token sees in five frames.

    Where heads differ the first group is drawn.
    """
    from matplotlib.figure import Figure

    from dattn.grid import TokenGrid

    grid = TokenGrid(*GRID)
    rows = -(-len(PATTERNS) // COLUMNS)
    figure = Figure(figsize=(4.3 * COLUMNS, 3.6 * rows + 0.4), dpi=80, layout="constrained")
    cells: Any = figure.subfigures(rows, COLUMNS, squeeze=False)
    for text, cell in zip(PATTERNS, cells.flat, strict=False):
        _cell(cell, text, grid)
    figure.suptitle(f"{GRID[0]} frames of {GRID[1]} x {GRID[2]} tokens: dark blocks are computed, orange ones in part")
    return figure


def _cell(cell: Figure, text: str, grid: TokenGrid) -> None:
    from matplotlib.colors import ListedColormap

    from dattn.plot import COLOURS, block_picture
    from dattn.registry import static_from_string

    mask = static_from_string(text).mask(grid)
    place = (grid.frames // 2, grid.height // 2, grid.width // 2)
    left, right = cell.subplots(1, 2, width_ratios=(3, 1.55))
    left.imshow(block_picture(mask), cmap=ListedColormap(COLOURS), vmin=0, vmax=2, interpolation="nearest")
    right.imshow(strip(mask.neighbours(token_index(place, grid)).numpy(), grid), cmap="Blues", vmin=0, vmax=1.3)
    at = FRAMES // 2 * (grid.height + 1) + place[1]
    right.plot(place[2], at, "o", color="crimson", markersize=4)
    for axes in (left, right):
        axes.set(xticks=[], yticks=[])
    right.spines[:].set_visible(False)
    which = f", first of {mask.groups} head groups" if mask.groups > 1 else ""
    cell.suptitle(f"{text}\ndensity {mask.density:.2f}{which}", fontsize=10)


def strip(seen: np.ndarray, grid: TokenGrid) -> np.ndarray:
    """Five frames of bool ``[tokens]`` under each other, NaN lines between: float ``[5 · (height + 1) - 1, width]``."""
    import numpy as np

    frames = seen[grid.text_before : grid.text_before + grid.visual].reshape(grid.shape).astype(float)
    chosen = np.linspace(0, grid.frames - 1, FRAMES).round().astype(int)
    lined = np.pad(frames[chosen], ((0, 0), (0, 1), (0, 0)), constant_values=np.nan)
    return lined.reshape(-1, grid.width)[:-1]
