"""The picture of ``dattn bench gpu``: speed-up over dense cuDNN against density, and what would be ideal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

MARKERS = "osD^vP*X"


def chart(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the rows that have a speed-up into a PNG, a panel for every head dim and kind of pass; none, no picture."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row["speedup"] is not None]
    panels = list(dict.fromkeys((row["passes"], row["head_dim"]) for row in rows))
    if not panels:
        return
    patterns = list(dict.fromkeys(row["pattern"] for row in rows))
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    figure = Figure(figsize=(4.2 * len(panels), 4.6), dpi=130, layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        here = [row for row in rows if (row["passes"], row["head_dim"]) == panel]
        densities = sorted(row["density"] for row in here)
        axes.plot(densities, [1 / d for d in densities], "k--", lw=1, label="1 / density")
        for row in here:
            color, marker = f"C{patterns.index(row['pattern'])}", MARKERS[shapes.index(row["shape"]) % len(MARKERS)]
            axes.plot(row["density"], row["speedup"], marker, color=color, label=f"{row['shape']}  {row['pattern']}")
        axes.set(title=f"{panel[0]}, head dim {panel[1]}", xlabel="density", xscale="log", yscale="log")
        axes.set_ylabel("times as fast as dense cuDNN")
        axes.axhline(1, color="0.6", lw=1)
        axes.grid(alpha=0.3, which="both")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=7)
    figure.savefig(path)
