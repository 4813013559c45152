"""Edits of Moving Shapes that a program can judge: for each control, what was wanted and whether it came.

A case runs a demo pipeline without and with a control from the same noise, and reads both results with the judge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dattn.control import AStar, AttendAndExcite, Control, Refine, Replace, Reweight

from .captions import COLORS, MOTIONS, SHAPES, parse_caption
from .judge import PRESENT_AREA, color_cover, judge, track

Clip = np.ndarray
"""Frames [frames, height, width, 3] in [0, 1]; a picture stands still for some."""
Make = Callable[[Sequence[str], int, Sequence[Control]], list[Clip]]
"""From prompts, a seed that they share, and controls to a clip for each prompt."""
STILL = 0.08
"""A centre that is nowhere further off than this, as a share of the picture, has kept its place."""


@dataclass(frozen=True)
class Case:
    """One edit.

    Attributes:
        clips: what to show, by name.
        before: criteria, and whether they hold without the control.
        after: the same with it.
    """

    clips: dict[str, Clip]
    before: dict[str, bool]
    after: dict[str, bool]


def captions(count: int, moving: bool) -> Iterator[tuple[np.random.Generator, str, str, str]]:
    """For each of ``count`` cases random numbers, a colour, a shape, and words of motion (none where still)."""
    for number in range(count):
        rng = np.random.default_rng([7, number])
        motion = f" {rng.choice([m for m in MOTIONS if m != 'standing still'])}" if moving else ""
        yield rng, str(rng.choice(COLORS)), str(rng.choice(SHAPES)), motion


def centers(clip: Clip, color: str) -> np.ndarray:
    """Where a colour is in every frame, in [0, 1): float ``[frames, 2]``."""
    cover = color_cover(np.asarray(clip, np.float32) * 255)
    return track(cover[..., COLORS.index(color)]).center


def kept_place(one: Clip, color: str, other: Clip, other_color: str) -> bool:
    """Whether a colour of one clip is where another is in the other, all the time; not where either is missing."""
    if not (present(one, color) and present(other, other_color)):
        return False
    offset = (centers(one, color) - centers(other, other_color) + 0.5) % 1 - 0.5
    return bool(np.hypot(*offset.T).max() < STILL)


def present(clip: Clip, color: str) -> bool:
    """Whether a colour covers as much as an object does, in most frames."""
    cover = color_cover(np.asarray(clip, np.float32) * 255)[..., COLORS.index(color)]
    return bool((cover.mean((1, 2)) >= PRESENT_AREA).mean() > 0.5)


def replace_color(make: Make, count: int, moving: bool) -> Iterator[Case]:
    """Another colour, and nothing else."""
    for number, (rng, color, shape, motion) in enumerate(captions(count, moving)):
        new = str(rng.choice([c for c in COLORS if c != color]))
        source, edit = f"a {color} {shape}{motion}", f"a {new} {shape}{motion}"
        yield _edited(make, Replace(), source, edit, (color, new), number)


def replace_shape(make: Make, count: int, moving: bool) -> Iterator[Case]:
    """Another shape in the same place."""
    for number, (rng, color, shape, motion) in enumerate(captions(count, moving)):
        new = str(rng.choice([s for s in SHAPES if s != shape]))
        source, edit = f"a {color} {shape}{motion}", f"a {color} {new}{motion}"
        yield _edited(make, Replace(), source, edit, (color, color), number)


def refine_with_another(make: Make, count: int, moving: bool) -> Iterator[Case]:
    """A second object is added; the first stays."""
    for number, (rng, color, shape, motion) in enumerate(captions(count, moving)):
        new, form = str(rng.choice([c for c in COLORS if c != color])), str(rng.choice(SHAPES))
        source = f"a {color} {shape}{motion}"
        edit = f"{source} and a {new} {form}{motion}"
        yield _edited(make, Refine(), source, edit, (color, color), number)


def _edited(make: Make, control: Control, source: str, edit: str, colors: tuple[str, str], seed: int) -> Case:
    """The edited prompt on its own, and under a control beside its source."""
    origin, alone = make([source, edit], seed, [])
    _, edited = make([source, edit], seed, [control])

    def criteria(clip: Clip) -> dict[str, bool]:
        return {"as edited": judge(clip, edit).ok, "place kept": kept_place(origin, colors[0], clip, colors[1])}

    return Case({source: origin, edit: alone, f"{edit} (edited)": edited}, criteria(alone), criteria(edited))


def reweight_to_nothing(make: Make, count: int, moving: bool) -> Iterator[Case]:
    """A colour word that counts nothing takes its colour away."""
    for number, (_, color, shape, motion) in enumerate(captions(count, moving)):
        prompt = f"a {color} {shape}{motion}"
        (plain,) = make([prompt], number, [])
        (without,) = make([prompt], number, [Reweight({color: 0.0})])
        before, after = ({"no such colour": not present(clip, color)} for clip in (plain, without))
        yield Case({prompt: plain, f"{prompt}, {color} x 0": without}, before, after)


def both_objects(kind: Callable[..., Control], make: Make, count: int, moving: bool) -> Iterator[Case]:
    """Two objects, both there."""
    for number, (rng, color, shape, motion) in enumerate(captions(count, moving)):
        new, form = str(rng.choice([c for c in COLORS if c != color])), str(rng.choice(SHAPES))
        prompt = f"a {color} {shape}{motion} and a {new} {form}{motion}"
        (plain,) = make([prompt], number, [])
        (moved,) = make([prompt], number, [kind([f"{color} {shape}", f"{new} {form}"])])
        before, after = ({"both there": _there(clip, prompt)} for clip in (plain, moved))
        yield Case({prompt: plain, f"{prompt}, {kind.__name__}": moved}, before, after)


def _there(clip: Clip, prompt: str) -> bool:
    """Whether every object has its colour, all the time."""
    return all(o.color for o in judge(clip, parse_caption(prompt)).objects)


CASES: dict[str, Callable[[Make, int, bool], Iterator[Case]]] = {
    "Replace, colour": replace_color,
    "Replace, shape": replace_shape,
    "Refine, second object": refine_with_another,
    "Reweight x 0": reweight_to_nothing,
    "AStar": lambda make, count, moving: both_objects(AStar, make, count, moving),
    "AttendAndExcite": lambda make, count, moving: both_objects(AttendAndExcite, make, count, moving),
}
"""What ``dattn controls`` judges."""


def maker(pipe: Any, call: dict[str, Any], frames: int, pattern: Any = None) -> Make:
    """How a demo pipeline makes clips; ``pattern`` runs under the controls."""
    import torch

    import dattn

    def make(prompts: Sequence[str], seed: int, controls: Sequence[Control]) -> list[Clip]:
        given = dict(call)
        if "negative_prompt" in given:
            given["negative_prompt"] = [given["negative_prompt"]] * len(prompts)
        noise = [torch.Generator().manual_seed(seed) for _ in prompts]
        with dattn.apply(pipe, pattern, control=controls):
            made = pipe(list(prompts), generator=noise, output_type="np", return_dict=False, **given)[0]
        return [np.broadcast_to(c, (frames, *c.shape)) if c.ndim == 3 else c for c in np.asarray(made)]

    return make
