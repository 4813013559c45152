"""How an edit of Moving Shapes is made and looked at: from the same noise without and with it, by program."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dattn.control import Control

from .captions import COLORS, MOTIONS, SHAPES, parse_caption
from .judge import PRESENT_AREA, color_cover, judge, track

Clip = np.ndarray
"""Frames [frames, height, width, 3] in [0, 1]; a picture stands still for some."""
STILL = 0.08
"""A centre that is nowhere further off than this, as a share of the picture, has kept its place."""


@dataclass(frozen=True)
class Case:
    """One edit.

    Attributes:
        clips: what to show, by name.
        before: criteria, and whether they hold without the control; or what is measured. Those that only an edit has
            are left out.
        after: the same with it.
    """

    clips: dict[str, Clip]
    before: Mapping[str, float]
    after: Mapping[str, float]


@dataclass(frozen=True)
class Maker:
    """How a demo pipeline makes clips.

    Attributes:
        pipe: the pipeline.
        call: the arguments of every call.
        frames: for how many a picture stands still; None for videos.
        pattern: what runs under the controls.
        schedule: further arguments of ``dattn.apply``.
        seconds: for each clip that was made, of plain ones (False) and of those under a control (True).
    """

    pipe: Any
    call: dict[str, Any] = field(repr=False)
    frames: int | None = None
    pattern: Any = None
    schedule: dict[str, Any] = field(default_factory=dict)
    seconds: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})

    @property
    def moving(self) -> bool:
        """Whether it makes videos."""
        return self.frames is None

    def __call__(self, prompts: Sequence[str], seed: int, controls: Sequence[Control] = ()) -> list[Clip]:
        """A clip for each prompt, of the same noise."""
        import torch

        given = dict(self.call)
        if "negative_prompt" in given:
            given["negative_prompt"] = [given["negative_prompt"]] * len(prompts)
        noise = [torch.Generator().manual_seed(seed) for _ in prompts]
        return self.by(self.pipe, prompt=list(prompts), generator=noise, controls=controls, **given)

    def by(self, pipe: Any, controls: Sequence[Control] = (), **call: Any) -> list[Clip]:
        """What a pipeline on the same model makes of a call."""
        import dattn

        began = time.perf_counter()
        with dattn.apply(pipe, self.pattern, control=controls, **self.schedule):
            made = pipe(output_type="np", return_dict=False, **call)[0]
        clips = np.asarray(made)
        controlled = bool(controls) or pipe is not self.pipe
        self.seconds[controlled] += [(time.perf_counter() - began) / len(clips)] * len(clips)
        return [np.broadcast_to(c, (self.frames, *c.shape)) if self.frames else c for c in clips]


def captions(count: int, moving: bool) -> Iterator[tuple[np.random.Generator, str, str, str]]:
    """For each of ``count`` cases random numbers, a colour, a shape, and words of motion (none where still)."""
    for number in range(count):
        rng = np.random.default_rng([7, number])
        motion = f" {rng.choice([m for m in MOTIONS if m != 'standing still'])}" if moving else ""
        yield rng, str(rng.choice(COLORS)), str(rng.choice(SHAPES)), motion


def other(rng: np.random.Generator, words: Sequence[str], word: str) -> str:
    """Another of some words."""
    return str(rng.choice([w for w in words if w != word]))


def centers(clip: Clip, color: str) -> np.ndarray:
    """Where a colour is in every frame, in [0, 1): float ``[frames, 2]``."""
    cover = color_cover(np.asarray(clip, np.float32) * 255)
    return track(cover[..., COLORS.index(color)]).center


def present(clip: Clip, color: str) -> bool:
    """Whether a colour covers as much as an object does, in most frames."""
    cover = color_cover(np.asarray(clip, np.float32) * 255)[..., COLORS.index(color)]
    return bool((cover.mean((1, 2)) >= PRESENT_AREA).mean() > 0.5)


def kept_place(one: Clip, color: str, other: Clip, other_color: str) -> bool:
    """Whether a colour of one clip is where another is in the other, all the time; not where either is missing."""
    if not (present(one, color) and present(other, other_color)):
        return False
    offset = (centers(one, color) - centers(other, other_color) + 0.5) % 1 - 0.5
    return bool(np.hypot(*offset.T).max() < STILL)


def edit_of(one: Clip, color: str, other: Clip, other_color: str, caption: str) -> dict[str, float]:
    """What an edit is wanted to do: show its own caption, all along in the place of its source, and both at once."""
    right, kept = judge(other, caption).ok, kept_place(one, color, other, other_color)
    return {"as edited": right, "place kept": kept, "both": right and kept}


def speed(clip: Clip, color: str) -> float:
    """How far a colour moves from frame to frame, in the median, as a share of the picture."""
    step = (np.diff(centers(clip, color), axis=0) + 0.5) % 1 - 0.5
    return float(np.median(np.hypot(*step.T)))


def switched_at(clip: Clip, color: str, first: Sequence[float], then: Sequence[float]) -> float:
    """Where in a clip (0 to 1) a colour that went one way begins to go another: the best cut between the two."""
    step = (np.diff(centers(clip, color), axis=0) + 0.5) % 1 - 0.5
    gain = step @ np.subtract(first, then)
    return float(np.concatenate([[0.0], np.cumsum(gain)]).argmax() / len(step))


def inside(clip: Clip, color: str, box: Sequence[float]) -> bool:
    """Whether a colour is there and its centre always in a box (left, top, right, bottom)."""
    x, y = centers(clip, color).T
    left, top, right, bottom = box
    return present(clip, color) and bool(((left <= x) & (x <= right) & (top <= y) & (y <= bottom)).all())


def both_there(clip: Clip, prompt: str) -> bool:
    """Whether every object has its colour, all the time."""
    return all(o.color for o in judge(clip, parse_caption(prompt)).objects)


def sharpness(clip: Clip) -> float:
    """The mean size of the gradient, in grey levels of [0, 1] for a pixel."""
    gray = np.asarray(clip, np.float64).mean(-1)
    down, right = np.diff(gray, axis=1)[:, :, :-1], np.diff(gray, axis=2)[:, :-1]
    return float(np.hypot(down, right).mean())


def largest_change(clip: Clip) -> float:
    """The largest mean difference between neighbouring frames, in levels of [0, 1]."""
    return float(np.abs(np.diff(np.asarray(clip, np.float64), axis=0)).mean((1, 2, 3)).max())
