"""Still pictures of the world: one or two objects and where they are, without motion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count as numbers
from itertools import islice

import numpy as np

from .captions import Caption, Wanted, parse_caption
from .judge import Verdict, judge
from .world import NATIVE_SIZE, Scene, coverage, sample_scene

FRAMES = 5
"""The judge reads clips; a picture is shown to it as one that stands still for the shortest clip it takes."""


def sample_picture(seed: int | Sequence[int], objects: int | None = None) -> Scene:
    """A scene that stands still: the same seed always gives the same one.

    Args:
        seed: anything :func:`numpy.random.default_rng` takes.
        objects: 1 or 2; None draws either, evenly. Half of those with two tell a relation.
    """
    own = np.random.default_rng(seed).spawn(1)[0]  # not the scene's own stream, or the count would tell its colours
    count = objects or int(own.integers(1, 3))
    scene = sample_scene(seed, count)
    return replace(scene, objects=tuple(replace(o, motion="standing still", speed=0.0) for o in scene.objects))


def is_whole(scene: Scene, side: int = NATIVE_SIZE) -> bool:
    """Whether no object leaves a picture on one side to come back on the other."""
    for o in scene.objects:
        cover = coverage(o.shape, o.centers(1, side, side), o.radius * side, side, side)[0] > 0
        if (cover[0].any() and cover[-1].any()) or (cover[:, 0].any() and cover[:, -1].any()):
            return False
    return True


def whole_pictures(count: int) -> list[Scene]:
    """The first ``count`` pictures of the world whose objects are whole, for models that cannot see round a border."""
    return list(islice(filter(is_whole, map(sample_picture, numbers())), count))


def caption_of(scene: Scene) -> str:
    """What a picture of the scene shows, without motion: ``a red circle``, ``a red circle above a blue square``."""
    return str(Caption(tuple(Wanted(o.color, o.shape) for o in scene.objects), scene.relation))


def draw_pictures(scenes: Sequence[Scene], size: int = NATIVE_SIZE) -> np.ndarray:
    """uint8 ``[scenes, size, size, 3]``."""
    return np.stack([scene.render(1, size)[0] for scene in scenes])


def judge_picture(picture: np.ndarray, caption: str | Caption) -> Verdict:
    """Compare a picture ``[height, width, 3]``, uint8 or float in [0, 1], with a caption.

    Raises:
        ValueError: no picture, or not a caption of this world; a motion in it must be to stand still.
    """
    picture = np.asarray(picture)
    if picture.ndim != 3:
        raise ValueError(f"picture of shape {picture.shape}: give one of [height, width, 3]")
    caption = parse_caption(caption) if isinstance(caption, str) else caption
    return judge(np.broadcast_to(picture, (FRAMES, *picture.shape)), caption)
