"""The picture of a quality table: figures over the length of the clip, a line for each pattern."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

PANELS = (
    ("accuracy", "judged right"),
    ("psnr", "PSNR against stock (dB)"),
    ("ssim", "SSIM against stock"),
    ("denoiser_seconds", "denoising seconds"),
)


def chart(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Draw the summaries of cells into a PNG; a figure that no cell has gets no panel."""
    from matplotlib.figure import Figure

    panels = [panel for panel in PANELS if any(row[panel[0]] is not None for row in rows)]
    figure = Figure(figsize=(3.6 * len(panels), 3.8), dpi=130, layout="constrained")
    lengths = sorted({row["length"] for row in rows})
    for axes, (name, label) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for i, pattern in enumerate(dict.fromkeys(row["pattern"] for row in rows)):
            points = [(row["length"], row[name]) for row in rows if row["pattern"] == pattern]
            points = sorted(point for point in points if point[1] is not None)
            places, values = [lengths.index(x) for x, _ in points], [y for _, y in points]
            axes.plot(places, values, "o-", color=f"C{i}", label=pattern)
        axes.set_xticks(range(len(lengths)), [f"{n}x" for n in lengths])
        axes.set(title=label, xlabel="length of the clip", xlim=(-0.3, len(lengths) - 0.7))
        axes.grid(alpha=0.3)
        if name == "accuracy":
            axes.set_ylim(-0.03, 1.03)
    handles, labels = figure.axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path)
