"""The picture of a quality table: figures over the length of the clip, or over the cost where there is one length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SECONDS = "denoiser_seconds", "denoising seconds"
CALL = "call", "time of a call, of dense"
PANELS = (
    ("accuracy", "judged right"),
    ("psnr", "PSNR against stock (dB)"),
    ("ssim", "SSIM against stock"),
    SECONDS,
    CALL,
)
MARKS = "osD^v<>P*X"


def chart(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Draw the summaries of cells into a PNG; a figure that no cell has gets no panel."""
    from matplotlib.figure import Figure

    panels = [panel for panel in PANELS if any(row.get(panel[0]) is not None for row in rows)]
    if panels[-1] == CALL:  # measured in one run; the seconds of clips may be of several days
        panels.remove(SECONDS)
    patterns = len({row["pattern"] for row in rows})
    figure = Figure(figsize=(3.6 * len(panels), 3.4 + 0.1 * patterns), dpi=130, layout="constrained")
    draw = _over_cost if len({row["length"] for row in rows}) == 1 else _over_length
    for axes, (name, label) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(axes, rows, name)
        axes.set(title=label)
        axes.grid(alpha=0.3)
        if name == "accuracy":
            axes.set_ylim(-0.03, 1.03)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 if patterns < 8 else 3, fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path)


def _over_length(axes: Axes, rows: Sequence[dict[str, Any]], name: str) -> None:
    """A line for each pattern."""
    lengths = sorted({row["length"] for row in rows})
    for i, pattern in enumerate(dict.fromkeys(row["pattern"] for row in rows)):
        points = [(row["length"], row[name]) for row in rows if row["pattern"] == pattern]
        points = sorted(point for point in points if point[1] is not None)
        places, values = [lengths.index(x) for x, _ in points], [y for _, y in points]
        axes.plot(places, values, "o-", color=f"C{i}", label=pattern)
    axes.set_xticks(range(len(lengths)), [f"{n}x" for n in lengths])
    axes.set(xlabel="length of the clip", xlim=(-0.3, len(lengths) - 0.7))


def _over_cost(axes: Axes, rows: Sequence[dict[str, Any]], name: str) -> None:
    """A mark for each pattern, at the share of dense attention's work that it does."""
    for i, row in enumerate(rows):
        cost, value = 1.0 if row["work"] is None else row["work"], row[name]
        mark = MARKS[i // 10 % len(MARKS)]
        axes.plot([cost], [float("nan") if value is None else value], mark, color=f"C{i % 10}", label=row["pattern"])
    axes.set(xlabel="attention's work, of dense", xlim=(0, 1.05))
