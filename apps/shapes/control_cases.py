"""Edits of Moving Shapes that a program can judge: for each control, what was wanted and whether it came."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from dattn.control import (
    AStar,
    AttendAndExcite,
    Control,
    Emphasize,
    Perturb,
    Refine,
    Region,
    Regions,
    Replace,
    Reweight,
)

from .captions import COLORS, SHAPES
from .edits import Case, Maker, both_there, captions, edit_of, inside, other, present, sharpness, speed
from .judge import judge
from .pipeline_cases import real_color, real_shape, two_prompts

Box = tuple[float, float, float, float]
Cases = Callable[[Maker, int], Iterator[Case]]
SCALE = 1.0
"""Of a perturbation; more soon overshoots on models this small."""
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
"""Of a perturbation."""
WEIGHTS = (-0.5, 0.5)
"""Of words of motion."""
APART: dict[bool, dict[str, Any]] = {
    True: {"isolate": True, "base_ratio": 0.15, "window": 0.5},
    False: {"isolate": True, "base_ratio": 0.0, "window": 0.2},
}
"""Of regions in videos (True) and pictures: a prompt with one object means one in all, unless regions do not see each
other at first and each is guided away from the other's prompt."""


def replace_color(make: Maker, count: int) -> Iterator[Case]:
    """Another colour, and nothing else."""
    for number, (rng, color, shape, motion) in enumerate(captions(count, make.moving)):
        new = other(rng, COLORS, color)
        source, edit = f"a {color} {shape}{motion}", f"a {new} {shape}{motion}"
        yield _edited(make, Replace(), source, edit, (color, new), number)


def replace_shape(make: Maker, count: int) -> Iterator[Case]:
    """Another shape in the same place."""
    for number, (rng, color, shape, motion) in enumerate(captions(count, make.moving)):
        source, edit = f"a {color} {shape}{motion}", f"a {color} {other(rng, SHAPES, shape)}{motion}"
        yield _edited(make, Replace(), source, edit, (color, color), number)


def refine_with_another(make: Maker, count: int) -> Iterator[Case]:
    """A second object is added; the first stays. What is new has a place of its own: attention is soon let go."""
    for number, (rng, color, shape, motion) in enumerate(captions(count, make.moving)):
        source = f"a {color} {shape}{motion}"
        edit = f"{source} and a {other(rng, COLORS, color)} {rng.choice(SHAPES)}{motion}"
        yield _edited(make, Refine(inject=0.1), source, edit, (color, color), number)


def _edited(make: Maker, control: Control, source: str, edit: str, colors: tuple[str, str], seed: int) -> Case:
    """The edited prompt on its own, and under a control beside its source."""
    origin, alone = make([source, edit], seed)
    _, edited = make([source, edit], seed, [control])

    before, after = (edit_of(origin, colors[0], clip, colors[1], edit) for clip in (alone, edited))
    return Case({source: origin, edit: alone, f"{edit} (edited)": edited}, before, after)


def without_color(factor: float, make: Maker, count: int) -> Iterator[Case]:
    """A colour word that counts nothing, or less, takes its colour away."""
    for number, (_, color, shape, motion) in enumerate(captions(count, make.moving)):
        prompt = f"a {color} {shape}{motion}"
        (plain,) = make([prompt], number)
        (without,) = make([prompt], number, [Reweight({color: factor})])
        before, after = ({"no such colour": not present(clip, color)} for clip in (plain, without))
        yield Case({prompt: plain, f"{prompt}, {color} x {factor:g}": without}, before, after)


def both_objects(kind: Callable[..., Control], make: Maker, count: int) -> Iterator[Case]:
    """Two objects, both there; and all as the caption says."""
    for number, (rng, color, shape, motion) in enumerate(captions(count, make.moving)):
        new, form = other(rng, COLORS, color), str(rng.choice(SHAPES))
        prompt = f"a {color} {shape}{motion} and a {new} {form}{motion}"
        (plain,) = make([prompt], number)
        (moved,) = make([prompt], number, [kind([f"{color} {shape}", f"{new} {form}"])])
        before, after = (
            {"both there": both_there(clip, prompt), "as asked": judge(clip, prompt).ok} for clip in (plain, moved)
        )
        yield Case({prompt: plain, f"{prompt}, {kind.__name__}": moved}, before, after)


def into_boxes(make: Maker, count: int) -> Iterator[Case]:
    """Two objects, each in its half of the picture."""
    still = " standing still" if make.moving else ""
    for number, (rng, color, shape, _) in enumerate(captions(count, moving=False)):
        new, form = other(rng, COLORS, color), str(rng.choice(SHAPES))
        one, two = f"a {color} {shape}{still}", f"a {new} {form}{still}"
        boxes = ((0, 0, 0.5, 1), (0.5, 0, 1, 1)) if rng.random() < 0.5 else ((0, 0, 1, 0.5), (0, 0.5, 1, 1))
        prompt = f"{one} and {two}"
        (plain,) = make([prompt], number)
        (laid,) = make([prompt], number, [_apart((one, two), boxes, make.moving)])
        before, after = (
            {
                "both there": both_there(clip, prompt),
                "each in its box": inside(clip, color, boxes[0]) and inside(clip, new, boxes[1]),
            }
            for clip in (plain, laid)
        )
        yield Case({prompt: plain, f"{prompt}, in boxes": laid}, before, after)


def _apart(prompts: Sequence[str], boxes: Sequence[Box], moving: bool) -> Regions:
    """Two regions."""
    others = zip(prompts, boxes, reversed(prompts), strict=True)
    return Regions([Region(prompt, box, negative=other) for prompt, box, other in others], **APART[moving])


def sharper_by_strength(make: Maker, count: int) -> Iterator[Case]:
    """The further attention is perturbed, the sharper what is guided away from it."""
    for number, (_, color, shape, motion) in enumerate(captions(count, make.moving)):
        prompt = f"a {color} {shape}{motion}"
        (plain,) = make([prompt], number)
        guided = {u: make([prompt], number, [Perturb(strength=u, scale=SCALE)])[0] for u in STRENGTHS}
        sharp = [sharpness(clip) for clip in (plain, *guided.values())]
        measured = {f"sharpness at {u:g}, times plain": s / sharp[0] for u, s in zip(STRENGTHS, sharp[1:], strict=True)}
        after = {"sharper step by step": sorted(sharp) == sharp, **measured}
        before = dict.fromkeys(measured, 1.0)
        yield Case({prompt: plain, **{f"{prompt}, strength {u:g}": clip for u, clip in guided.items()}}, before, after)


def faster_by_emphasis(make: Maker, count: int) -> Iterator[Case]:
    """The more the words of motion count, the faster the object."""
    for number, (_, color, shape, motion) in enumerate(captions(count, moving=True)):
        prompt = f"a {color} {shape}{motion}"
        (plain,) = make([prompt], number)
        clips = {w: make([prompt], number, [Emphasize({motion.strip(): w})])[0] for w in WEIGHTS}
        usual = max(speed(plain, color), 1e-6)
        after = {f"speed at {w:+g}, times plain": speed(clip, color) / usual for w, clip in clips.items()}
        right = {f"as asked at {w:+g}": judge(clip, prompt).ok for w, clip in clips.items()}
        before = dict.fromkeys(after, 1.0) | dict.fromkeys(right, judge(plain, prompt).ok)
        shown = {prompt: plain, **{f"{prompt}, {w:+g}": clip for w, clip in clips.items()}}
        yield Case(shown, before, after | right)


CASES: dict[str, Cases] = {
    "Replace, colour": replace_color,
    "Replace, shape": replace_shape,
    "Refine, second object": refine_with_another,
    "Reweight x 0": partial(without_color, 0.0),
    "Reweight x -1": partial(without_color, -1.0),
    "Regions": into_boxes,
    "AStar": partial(both_objects, AStar),
    "AttendAndExcite": partial(both_objects, AttendAndExcite),
    "Perturb": sharper_by_strength,
    "Emphasize": faster_by_emphasis,
    "two prompts": two_prompts,
    "real picture, colour": real_color,
    "real picture, shape": real_shape,
}
"""What ``dattn controls`` judges."""
OF_VIDEOS, OF_PICTURES = {"two prompts", "Emphasize"}, {"real picture, colour", "real picture, shape"}
"""Those that make no sense on the others."""


def names_for(moving: bool) -> list[str]:
    """What can be judged on a model of videos, or of pictures."""
    return [name for name in CASES if name not in (OF_PICTURES if moving else OF_VIDEOS)]
