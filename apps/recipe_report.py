"""A measured recipe on one page: what runs where, what was expected, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dattn.recipe import Recipe
from dattn.tuning.candidates import DENSE
from dattn.tuning.goal import Goal, decibels

from .table import table

Places = list[Mapping[str, Any]]


def text(recipe: Recipe) -> str:
    """The page as text."""
    figures = recipe.figures
    if figures is None or not {"goal", "predicted", "measured"} <= figures.keys():
        return f"{recipe.model}: {recipe.attention} (not measured)"
    expected, found = figures["predicted"], figures["measured"]
    rows = [
        ["seconds of a call", figures["dense_seconds"], expected["seconds"], found["seconds"]],
        ["times as fast", 1.0, expected["speed_up"], found["speed_up"]],
        ["PSNR dB", None, _finite(decibels(expected["mse"])), _finite(decibels(found["mse"]))],
        ["SSIM", None, 1 - expected["ssim"], 1 - found["ssim"]],
    ]
    return "\n\n".join([_head(recipe, figures), table(("", "dense", "expected", "measured"), rows), _where(figures)])


def _head(recipe: Recipe, figures: Mapping[str, Any]) -> str:
    goal = Goal(**figures["goal"])
    grid = "x".join(map(str, recipe.grid[:3])) if recipe.grid else "?"
    reached = "reached" if figures["met"] else "NOT reached; this is the nearest"
    seen = ", ".join(map(repr, figures["prompts"][:-1]))
    machine = figures.get("machine", {})
    on = f" on {machine.get('gpu') or machine.get('processor')}" if machine else ""
    return (
        f"{figures.get('name', recipe.model)} at {grid} tokens{on}: goal {goal}, {reached}.\n"
        f"{_between(goal, figures['predicted'].get('interval'))}"
        f"Checked with a prompt kept apart: {figures['prompts'][-1]!r}.\n"
        f"Measured with {_call(figures)}; seen: {seen or 'the same, with other noise'}.{_took(figures)}"
    )


def _between(goal: Goal, interval: list[float] | None) -> str:
    """What was expected, at most and at least."""
    return f"Expected between {_of_goal(goal, interval[1])} and {_of_goal(goal, interval[0])}. " if interval else ""


def _took(figures: Mapping[str, Any]) -> str:
    return f" Tuning took {figures['tuning_seconds']:.0f} s." if figures.get("tuning_seconds") else ""


def _call(figures: Mapping[str, Any]) -> str:
    """With which arguments."""
    call = ", ".join(f"{name}={value}" for name, value in figures["call"].items())
    return f"{call}, {figures['dtype'].removeprefix('torch.')} on {figures['device']}"


def _of_goal(goal: Goal, loss: float) -> str:
    return f"SSIM {1 - loss:.3f}" if goal.loss == "ssim" else f"{decibels(loss):.1f} dB"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _where(figures: Mapping[str, Any]) -> str:
    """A line for every layer and range: which heads have what, how near it came; and what was too slow."""
    rows = []
    for place in sorted(figures["places"], key=lambda place: (place["range"], place["layer"])):
        own: dict[str, list[int]] = {}
        for head, name in enumerate(place["heads"]):
            own.setdefault(name, []).append(head)
        said = "; ".join(_heads(heads, name, figures["work"][name], len(own)) for name, heads in own.items())
        steps = _range(figures["ranges"], place["range"])
        rows.append([steps, place["layer"], said, place["error"], place["kept"]])
    return table(("steps", "layer", "attention (work at the largest size)", "error", "recall"), rows) + _slow(figures)


def _heads(heads: list[int], name: str, work: float, several: int) -> str:
    """Heads with the same, and its share of dense work: ``heads 0, 2-4: Radial() (0.18)``."""
    runs: list[list[int]] = []
    for head in heads:
        if runs and runs[-1][-1] == head - 1:
            runs[-1].append(head)
        else:
            runs.append([head])
    numbers = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    said = f"{name} ({work:.2f})"
    return f"heads {numbers}: {said}" if several > 1 else said


def _slow(figures: Mapping[str, Any]) -> str:
    """What was left out, as it is slower than dense attention at the largest size."""
    times = max(figures["seconds"], key=lambda entry: entry["size"])["seconds"]
    dense, *others = times
    slow = [name for name in others if times[name][0] >= times[dense][0]]
    return f"\n\nSlower than dense attention here, so not looked at: {', '.join(slow)}" if slow else ""


def _range(ranges: list[float], number: int) -> str:
    end = ranges[number + 1] if number + 1 < len(ranges) else 1.0
    return f"{ranges[number]:.0%} to {end:.0%}"


def picture(recipe: Recipe, path: Path) -> None:
    """The page as a PNG: what each head has in each layer and range, the choices that there were, and the figures."""
    from matplotlib.figure import Figure

    figures = recipe.figures
    assert figures is not None
    ranges = figures["ranges"]
    colours = _colours(figures)
    figure = Figure(figsize=(2.6 * len(ranges) + 4.2, 6), dpi=130, layout="constrained")
    page = figure.add_gridspec(2, len(ranges) + 1, width_ratios=[2.2] * len(ranges) + [4], height_ratios=[3, 2])
    for number in range(len(ranges)):
        axes = figure.add_subplot(page[0, number])
        axes.imshow(_pixels(figures, number, colours), aspect="auto", interpolation="nearest")
        axes.set(title=f"steps {_range(ranges, number)}", xlabel="head", ylabel="layer" if number == 0 else "")
    _frontier(figure.add_subplot(page[0, -1]), figures)
    _legend(figure.add_subplot(page[1, :-1]), figures, colours)
    said = figure.add_subplot(page[1, -1])
    said.set_axis_off()
    said.text(0, 1, _said(recipe, figures), fontsize=7, va="top", wrap=True)
    figure.suptitle(_head(recipe, figures).splitlines()[0], fontsize=9)
    figure.savefig(path)


def _colours(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Of each candidate that was chosen, dense attention dark, from the least work on."""
    from matplotlib import colormaps

    used = {name for place in figures["places"] for name in place["heads"]}
    names = sorted(used - {DENSE}, key=lambda name: figures["work"][name])
    return {name: colormaps["tab20"](i % 20) for i, name in enumerate(names)} | {DENSE: (0.25, 0.25, 0.25, 1.0)}


def _pixels(figures: Mapping[str, Any], number: int, colours: Mapping[str, Any]) -> Any:
    """[layers, heads, 4]: the colour of what each head has; nothing where a range has no steps."""
    import numpy as np

    rows = [place for place in figures["places"] if place["range"] == number]
    layers = max((place["layer"] for place in rows), default=0) + 1
    pixels = np.zeros((layers, max((len(place["heads"]) for place in rows), default=1), 4))
    for place in rows:
        pixels[place["layer"], : len(place["heads"])] = [colours[name] for name in place["heads"]]
    return pixels


def _legend(axes: Any, figures: Mapping[str, Any], colours: Mapping[str, Any]) -> None:
    """What the colours mean: patterns, their work, and their time at the largest size."""
    from matplotlib.patches import Patch

    times = max(figures["seconds"], key=lambda entry: entry["size"])["seconds"]
    shares = {name: times[name][0] / times[DENSE][0] for name in colours if name in times}
    labels = {
        name: f"{name}: work {figures['work'][name]:.2f}, time {shares.get(name, math.nan):.2f}" for name in colours
    }
    patches = [Patch(color=colour, label=labels[name]) for name, colour in colours.items()]
    axes.set_axis_off()
    axes.legend(handles=patches, loc="upper left", ncols=2, fontsize=7, title="of dense attention", title_fontsize=7)


def _said(recipe: Recipe, figures: Mapping[str, Any]) -> str:
    """The figures, and what was measured on what."""
    expected, found = figures["predicted"], figures["measured"]
    lines = [
        f"expected: {_short(expected, figures)}",
        f"measured: {_short(found, figures)}",
        *_head(recipe, figures).splitlines()[1:],
    ]
    return "\n".join(lines)


def _short(found: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    psnr = decibels(found["mse"])
    return (
        f"{found['seconds']:.3g} s of {figures['dense_seconds']:.3g} s, {found['speed_up']:.2f} x, "
        f"SSIM {1 - found['ssim']:.3f}, {psnr:.1f} dB"
    )


def _frontier(axes: Any, figures: Mapping[str, Any]) -> None:
    """Seconds against the goal's measure: what could be chosen, what was, and what came of it."""
    goal = Goal(**figures["goal"])
    value = (lambda loss: 1 - loss) if goal.loss == "ssim" else decibels
    points = [(value(loss), seconds) for loss, seconds in figures["frontier"] if loss > 0]
    axes.plot(*zip(*points, strict=True) if points else ((), ()), "-", color="0.6", label="could be chosen")
    for name, mark in (("predicted", "o"), ("measured", "*")):
        axes.plot(value(figures[name][goal.loss]), figures[name]["seconds"], mark, markersize=10, label=name)
    axes.axhline(figures["dense_seconds"], color="0.3", linestyle=":", label="dense")
    if goal.kind != "speed_up":
        axes.axvline(goal.value, color="C3", linestyle="--", label="goal")
        axes.set_xlim(left=goal.value - (0.15 if goal.loss == "ssim" else 10))
    axes.set(xlabel="SSIM" if goal.loss == "ssim" else "PSNR (dB)", ylabel="seconds of a call", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
