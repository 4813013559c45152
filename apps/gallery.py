"""``dattn plot --gallery``: every pattern and operator in two pictures.

Static patterns have masks: their blocks are drawn, and what one token sees. What looks at queries and keys has none,
but for given ones it is a linear map of the values. With one-hot values attention returns that map, which is drawn
beside the one of dense attention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .arguments import token_index

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from torch import Tensor

    from dattn.grid import TokenGrid
    from dattn.spec import Spec

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

MAP_GRID = (6, 4, 6)
SELECTED = "Selected(Pooled(), TopK(0.34), Curve(), block_size=16)"
MAPS = (
    SELECTED,
    "Alike(0.34, block_size=16)",
    "Clustered(6, 12, 0.6, block_size=16)",
    "SparseVideoGen(0.5, block_size=16)",
    "Pyramid((0.3, 0.5, 0.7, 0.9), block_size=16)",
    "Anchor(2, 3, block_size=16)",
    "XAttention(8, 0.7, block_size=16)",
    "MeanSim(0.34, block_size=16)",
    "Routing((2, 2, 3), 4, block_size=16)",
    "ProxyHeads(1, 8, 0.7, block_size=16)",
    "VMoBA(1, (2, 2), (2, 2, 3), block_size=16)",
    "Reshaped(BlockCausal(2))",
    "FirstOrder(Grouped((2, 2, 3), reach=0))",
    "SignificanceTail(Grouped((2, 2, 3), reach=0))",
    f"Rectified({SELECTED})",
    "Agent(0.8)",
    "TokenMerge(0.5)",
    "Bias(phi_q, phi_k)",
    "RadialBias(0.2)",
    "InLine()",
    "PerHead((Neighborhood(3), SparseFrames(1, 2)))",
    "Growing(Neighborhood((3, 3, 3)), 3)",
    "PerLayer({0: BlockCausal(2)}, Windows((1, 2, 2), 1))",
    "PerStep({0: Neighborhood((5, 3, 5)), 0.5: Neighborhood((3, 1, 3))})",
)
"""One of each dynamic pattern and operator, sized for ``MAP_GRID``; but ``LearnedGate``, which wants a trained file."""
MAP_COLUMNS = 3
SHADES = 25
"""Few, for a small file; an odd number, so that 0 is white."""
WAVES = ((0.5, 0, 0), (0, 0.5, 0), (0, 0, 0.5), (0.5, 1, 0), (0, 0.5, 1), (1, 0, -0.5))
"""Cycles over frames, rows and columns: what queries and keys are made of."""
AMPLITUDE = 1.5
DRIFT = 0.06
"""How far, in cycles, queries move from one step to the next."""


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


def gallery_of_maps() -> Figure:
    """A cell for each dynamic pattern and operator: dense attention's map, its own, and what differs.

    Where another head, layer or step has another map, that one is the third.
    """
    from matplotlib.figure import Figure

    from dattn.grid import TokenGrid

    grid = TokenGrid(*MAP_GRID)
    dense = attention_map("Dense()", grid)[0]
    rows = -(-len(MAPS) // MAP_COLUMNS)
    figure = Figure(figsize=(5.34 * MAP_COLUMNS, 2.3 * rows + 0.7), dpi=100, layout="constrained")
    cells: Any = figure.subfigures(rows, MAP_COLUMNS, squeeze=False)
    for text, cell in zip(MAPS, cells.flat, strict=False):
        _map_cell(cell, text, grid, dense)
    figure.suptitle(
        f"{MAP_GRID[0]} frames of {MAP_GRID[1]} x {MAP_GRID[2]} tokens, the same queries (down) and keys (across) "
        "for all: what a query takes of every value\n"
        "blue: weights, red: negative ones; difference: green is more than dense attention, brown less"
    )
    return figure


def _map_cell(cell: Figure, text: str, grid: TokenGrid, dense: Tensor) -> None:
    from matplotlib import colormaps

    own = attention_map(text, grid)[0]
    where, other = elsewhere(text, grid, own) or ("difference", own - dense)
    peak = 0.6 * float(dense.max()) ** 0.5  # the few larger ones are as dark
    panels = (("dense", dense), ("its own", own), (where, other))
    for axes, (title, weights) in zip(cell.subplots(1, 3), panels, strict=True):
        colours = colormaps["BrBG" if title == "difference" else "RdBu"].resampled(SHADES)
        axes.imshow(_shade(weights), cmap=colours, vmin=-peak, vmax=peak, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.set_title(title, fontsize=8)
    cell.suptitle(text, fontsize=10)


def _shade(weights: Tensor) -> np.ndarray:
    """Roots with their signs: small weights show too."""
    return (weights.sign() * weights.abs().sqrt()).numpy()


def elsewhere(text: str, grid: TokenGrid, own: Tensor) -> tuple[str, Tensor] | None:
    """The map of another head, layer or step, the first of them that has another one."""
    import torch

    others = {
        "next head": lambda: attention_map(text, grid)[1],
        "next layer": lambda: attention_map(text, grid, layer=1)[0],
        "later step": lambda: attention_map(text, grid, step=1)[0],
    }
    maps = ((where, make()) for where, make in others.items())
    return next(((where, other) for where, other in maps if not torch.allclose(own, other, atol=1e-5)), None)


def attention_map(text: str, grid: TokenGrid, layer: int = 0, step: int = 0) -> Tensor:
    """What every query takes of every value: float32 [2 heads, tokens, tokens].

    It is the second call with one state, so that what is kept from a dense step counts.

    Args:
        text: pattern or operator as written on the command line, or ``"Bias(phi_q, phi_k)"``.
        grid: the token grid.
        layer, step: which of two.
    """
    import torch

    from dattn.attention import attend

    spec = spec_of(text, grid).at(layer, 2, step, 2)
    one_hot = torch.eye(grid.tokens).expand(1, 2, -1, -1)
    state: dict[str, Any] = {}
    attend(*queries_and_keys(grid, DRIFT), one_hot, spec, grid, state=state)
    return attend(*queries_and_keys(grid), one_hot, spec, grid, state=state)[0]


def spec_of(text: str, grid: TokenGrid) -> Spec:
    """The pattern or operator of a text; the bias of the picture makes all look at the first frame."""
    import torch

    from dattn.operators import Bias
    from dattn.registry import pattern_from_string

    if text != "Bias(phi_q, phi_k)":
        return pattern_from_string(text)
    first = 2.0 * (grid.coordinates()[:, :1] == 0)
    return Bias(torch.ones_like(first), first)


def queries_and_keys(grid: TokenGrid, drift: float = 0.0) -> tuple[Tensor, Tensor]:
    """Sinusoids of the place, alike in two heads: float32 [1, 2, tokens, tokens], as wide as one-hot values.

    Args:
        grid: the token grid, without text.
        drift: cycles by which queries are out of phase with the keys.
    """
    import torch
    from torch.nn.functional import pad

    at = grid.coordinates() / torch.tensor(grid.shape)
    angles = 2 * torch.pi * at @ torch.tensor(WAVES, dtype=at.dtype).T
    sides = (torch.cat([a.cos(), a.sin()], -1) for a in (angles + 2 * torch.pi * drift, angles))
    # logits are then AMPLITUDE ** 2 times a sum of cosines over the root of their number, however wide the grid
    size = AMPLITUDE * (grid.tokens / len(WAVES)) ** 0.25
    query, key = (pad(size * side, (0, grid.tokens - side.shape[-1])).expand(1, 2, -1, -1) for side in sides)
    return query, key
