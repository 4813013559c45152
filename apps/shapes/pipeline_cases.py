"""Moving Shapes by the pipelines that are made of controls: videos of two prompts, and pictures that are given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .captions import COLORS, MOTIONS, SHAPES
from .edits import Case, Clip, Maker, captions, edit_of, largest_change, other, switched_at
from .judge import judge
from .pictures import sample_picture


def two_prompts(make: Maker, count: int) -> Iterator[Case]:
    """One object that goes one way, then another; before, two clips in a row."""
    import torch

    from dattn.pipelines import MultiPromptVideoPipeline

    pipe = MultiPromptVideoPipeline.from_pipe(make.pipe)
    pipe.set_progress_bar_config(disable=True)
    moves = [motion for motion in MOTIONS if motion != "standing still"]
    for number, (rng, color, shape, motion) in enumerate(captions(count, moving=True)):
        then = other(rng, moves, motion.strip())
        prompts = [f"a {color} {shape}{motion}", f"a {color} {shape} {then}"]
        first, second = make(prompts, number)
        noise = torch.Generator().manual_seed(number)
        whole = make.by(pipe, prompt=prompts, subjects=[f"{color} {shape}"] * 2, generator=noise, **make.call)[0]
        half = len(whole) // 2
        row = np.concatenate([_stretched(first, half), _stretched(second, len(whole) - half)])
        usual = max(largest_change(first), largest_change(second))
        ways = [MOTIONS[m] for m in (motion.strip(), then)]
        before, after = (
            _two(clip, prompts, usual) | {"switch, share of the clip": switched_at(clip, color, *ways)}
            for clip in (row, whole)
        )
        yield Case({f"{prompts[0]}, then {then} (a cut)": row, "as one video": whole}, before, after)


def _stretched(clip: Clip, frames: int) -> Clip:
    """The first frames of a clip, its last one held where it is too short."""
    return clip[np.minimum(np.arange(frames), len(clip) - 1)]


def _two(clip: Clip, prompts: Sequence[str], usual: float) -> dict[str, float]:
    """What is right of a video of two prompts; ``usual`` is the largest change in a video of one."""
    third = len(clip) // 3
    return {
        "first motion": judge(clip[:third], prompts[0]).ok,
        "then the second": judge(clip[-third:], prompts[1]).ok,
        "largest change, times one prompt's": largest_change(clip) / usual,
    }


def real_color(make: Maker, count: int) -> Iterator[Case]:
    """Another colour in a picture that no model made."""
    return _real(make, count, "color")


def real_shape(make: Maker, count: int) -> Iterator[Case]:
    """Another shape in a picture that no model made."""
    return _real(make, count, "shape")


def _real(make: Maker, count: int, what: str) -> Iterator[Case]:
    """Drawn pictures, edited; before, the edited prompt on its own."""
    from dattn.pipelines import PromptEditPipeline

    pipe = PromptEditPipeline.from_pipe(make.pipe)
    pipe.set_progress_bar_config(disable=True)
    for number in range(count):
        rng = np.random.default_rng([8, number])
        scene = sample_picture([8, number], 1)
        (thing,) = scene.objects
        color = other(rng, COLORS, thing.color) if what == "color" else thing.color
        shape = other(rng, SHAPES, thing.shape) if what == "shape" else thing.shape
        source, edit = f"a {thing.color} {thing.shape}", f"a {color} {shape}"
        drawn = scene.render(1, make.call["height"])[0] / 255
        (alone,) = make([edit], number)
        kept, edited = make.by(pipe, prompt=source, edits=edit, image=drawn[None].astype(np.float32), **make.call)
        real = np.broadcast_to(drawn, kept.shape)

        def criteria(clip: Clip, real: Any = real, old: str = thing.color, new: str = color, edit: str = edit) -> Any:
            return edit_of(real, old, clip, new, edit)

        before, after = criteria(alone), criteria(edited)
        yield Case({f"{source}, given": real, f"{source}, inverted": kept, f"{edit} (edited)": edited}, before, after)
