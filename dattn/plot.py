"""Pictures of masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from dattn.block_mask import BlockMask

COLOURS = ["#f3f4f6", "#f4a259", "#1d3557"]  # skipped, visited in part, visited whole
LARGEST = 512  # blocks per side drawn; a larger grid is drawn in cells of several blocks


def plot_blocks(mask: BlockMask, path: str | None = None, group: int = 0) -> Any:
    """The block grid of one head group, queries down, keys across; saved to ``path`` where one is given."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(5.6, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    queries, keys = mask.num_blocks
    axes.imshow(
        block_picture(mask, group),
        cmap=ListedColormap(COLOURS),
        vmin=0,
        vmax=2,
        interpolation="nearest",
        extent=(0, keys, queries, 0),
    )
    which = f", heads of group {group} of {mask.groups}" if mask.groups > 1 else ""
    axes.set_title(f"density {mask.density:.3f}, {queries} x {keys} blocks of {mask.block_size}{which}", fontsize=10)
    axes.set_xlabel("key block")
    axes.set_ylabel("query block")
    names = ("skipped", "in part", "whole")
    handles = [Patch(facecolor=c, edgecolor="#999", label=n) for c, n in zip(COLOURS, names, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def block_picture(mask: BlockMask, group: int = 0) -> Any:
    """uint8 [rows, columns] of 0 skipped, 1 in part or through means, 2 whole; a cell shows the most of its blocks."""
    queries, keys = mask.num_blocks
    cell = -(-max(queries, keys) // LARGEST)
    picture = torch.zeros(-(-queries // cell), -(-keys // cell), dtype=torch.uint8)
    for row in range(picture.shape[0]):
        first, last = row * cell, min((row + 1) * cell, queries)
        means = [(1, level.blocks) for level in mask.levels]
        for level, blocks in (*means, (1, mask.partial), (2, mask.full)):
            seen = blocks.rows(0, group, first, last, keys).any(0).nonzero().flatten().cpu() // cell
            picture[row, seen] = level
    return picture.numpy()
