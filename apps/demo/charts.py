"""What was seen inside a model, drawn: inline pictures of lines in the colour of the page's text, light or dark."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.spines import Spine
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from ..insight import DENSITIES, ENOUGH, Seen
from ..plot import chosen_frames

INK = "#010203"
"""Stands for the colour of the page's text."""
SIZE = 4.2, 3.0
MARKS = "osD^v<>"


def chart(figure: Figure, title: str, told: str) -> str:
    """A figure as part of a page.

    Args:
        title, told: what it shows, and how to read it, for those who see it and those who do not.
    """
    for text in figure.findobj(Text):
        text.set_color(INK)
    for spine in figure.findobj(Spine):
        spine.set_edgecolor(INK)
    for axes in figure.axes:
        axes.tick_params(color=INK)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace(INK, "currentColor")
    caption = f"<figcaption><b>{escape(title)}</b> {escape(told)}</figcaption>"
    return f'<figure class="chart" role="img" aria-label="{escape(title)}">{drawn}{caption}</figure>'


def space(seen: Seen, head: int | None) -> str:
    """Where one token looks, frame by frame."""
    weights = _of(seen.space.astype(np.float32), head)
    frames = chosen_frames(seen.grid.frames, seen.place[0])
    columns = min(len(frames), 6)
    rows = -(-len(frames) // columns)
    tall = SIZE[0] / columns * seen.grid.height / seen.grid.width
    figure = Figure(figsize=(SIZE[0], rows * (tall + 0.22)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for panel in panels:
        panel.set_axis_off()
    most = max(float(weights.max()), 1e-12)
    for panel, frame in zip(panels, frames, strict=False):
        panel.imshow(weights[frame], cmap="viridis", vmin=0, vmax=most, interpolation="nearest")
        if seen.grid.frames > 1:
            panel.set_title(str(frame), fontsize=8, pad=2)
        if frame == seen.place[0]:
            panel.plot(seen.place[2], seen.place[1], "o", color="red", markersize=5)
    return chart(figure, "Space.", "Where the token with the red dot looks, in each frame. Bright is much.")


def time(seen: Seen, head: int | None) -> str:
    """How much frames look at frames."""
    figure, axes = _axes("key's frame", "query's frame")
    axes.imshow(_of(seen.time, head), cmap="viridis", vmin=0, interpolation="nearest")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    return chart(figure, "Time.", "How much each frame looks at each other one. A bright diagonal: mostly at itself.")


def decay(layers: Mapping[int, Seen], layer: int, head: int | None) -> str:
    """Weight by distance, of a head and of all layers."""
    unit = "frames" if layers[layer].grid.frames > 1 else "tokens"
    figure, axes = _axes(f"distance in {unit}", "weight of a key, 1 is the mean")
    for seen in layers.values():
        if seen.grid == layers[layer].grid:
            axes.plot(_shown(seen.decay.mean(0)), color="gray", alpha=0.45, linewidth=1)
    axes.plot(_shown(_of(layers[layer].decay, head)), "o-", color="C1", markersize=3)
    axes.axhline(1, color="gray", linestyle=":", linewidth=1)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    told = "Weight falls with distance, which is why Radial sees far frames less. Grey: the other layers."
    return chart(figure, "Decay.", told if unit == "frames" else "Weight by distance. Grey: the other layers.")


def recall(seen: Seen, head: int | None) -> str:
    """Weight that patterns keep over the share of pairs that they visit."""
    figure, axes = _axes("density: share of the pairs computed", "recall: weight kept")
    figure.set_size_inches(SIZE[0], SIZE[1] + 0.9)
    axes.plot(DENSITIES, _of(seen.best, head), ":", color="gray", label="the best keys of all")
    for number, (name, points) in enumerate(seen.kept.items()):
        places = sorted((density, float(_of(kept, head))) for density, kept in points)
        axes.plot(*zip(*places, strict=True), f"{MARKS[number % 7]}-", label=name, markersize=4, linewidth=1)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.03))
    figure.legend(loc="outside lower center", ncols=2, fontsize=7, frameon=False)
    return chart(
        figure,
        "Recall.",
        "What each pattern keeps of the attention, pooled keys counted. Up and left is better.",
    )


def sparse(layers: Mapping[int, Seen], layer: int, head: int | None) -> str:
    """Which heads could be sparse: layers × heads."""
    numbers = sorted(layers)
    heads = max(len(layers[number].needed) for number in numbers)
    table = np.full((len(numbers), heads), np.nan)
    for row, number in enumerate(numbers):
        table[row, : len(layers[number].needed)] = layers[number].needed
    figure, axes = _axes("head", "layer")
    shown = axes.imshow(table, cmap="viridis_r", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(heads))
    axes.set_yticks(range(len(numbers)), list(map(str, numbers)), fontsize=8 if len(numbers) < 20 else 5)
    figure.colorbar(shown, label=f"share of keys for {ENOUGH:.0%}")
    for chosen in range(heads) if head is None else [head]:
        axes.plot(chosen, numbers.index(layer), "o", color="red", markersize=4)
    told = f"The share of keys that holds {ENOUGH:.0%} of a head's weight: bright heads could be sparse."
    return chart(figure, "Which heads could be sparse.", told)


def loss(told: Sequence[Mapping[str, float]], steps: int) -> str:
    """The loss of a training run so far, from its log."""
    figure, axes = _axes("step", "loss")
    figure.set_size_inches(2 * SIZE[0], SIZE[1])
    for name, style, label in (("loss", "-", "training"), ("validation_loss", "o-", "validation, at fixed noise")):
        points = [(one["step"], one[name]) for one in told if name in one]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4, linewidth=1.2)
    axes.set_xlim(0, steps)
    if told:
        axes.legend(fontsize=8, frameon=False)
    return chart(figure, "Loss.", "Of each step, and of the first examples at noise that stays the same.")


def _axes(across: str, up: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(across, fontsize=9)
    axes.set_ylabel(up, fontsize=9)
    axes.tick_params(labelsize=8)
    return figure, axes


def _of(values: Any, head: int | None) -> Any:
    """Of one head, or the mean of all."""
    return values.mean(0) if head is None else values[head]


def _shown(values: np.ndarray) -> np.ndarray:
    """For a logarithmic axis."""
    return np.maximum(values, 1e-4)
