"""Does a clip show what its caption says? Read from pixels alone, on the torus, without a model.

A frame is split by colour (each pixel as background plus a share of the nearest colour). For each object, the
centre is a circular mean, the shape is found by comparing the colour's mask with ideal shapes of equal area, and
the motion is a line fitted to the unwrapped centre. Beyond the caption the judge rejects what generative
models get wrong: further colours, objects that vanish, split, swell, or change shape or motion on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .captions import COLORS, MOTIONS, RELATIONS, SHAPES, Caption, Wanted, parse_caption
from .world import BACKGROUND, NATIVE_SIZE, PALETTE, SPEED, SQUARE_SIDE, TRIANGLE_REACH, coverage

PRESENT_AREA = 90 / NATIVE_SIZE**2
"""Smallest share of the picture that counts as an object; real ones have 0.037 and more."""
EXTRA_AREA = 40 / NATIVE_SIZE**2
"""A colour that the caption does not name may not cover more than this ..."""
EXTRA_FRAMES = 0.1
"""... in more than this share of the frames."""
PRESENT_FRAMES = 0.97
"""An object has to be there in this share of the frames."""
AREA_BAND = (0.6, 1.5)
"""In as many frames its area has to stay within these multiples of its median."""
SHAPE_OVERLAP = 0.85
"""Least mean intersection over union with the best shape; true shapes have 0.97 and more."""
SHAPE_MARGIN = 0.02
"""The best shape has to beat the next one by this much on average."""
SHAPE_FRAMES = 0.9
"""In this share of the frames the best shape of the frame is the object's shape."""
STILL_SPEED = 0.25 * SPEED[0]
"""Below this speed (fraction of the shorter side per frame) an object stands still ..."""
MOVING_SPEED = 0.5 * SPEED[0]
"""... and from this one on it moves; between them it does neither."""
STRAIGHT = 0.35
"""Speed across the direction of motion, as a share of the speed along it, at most."""
WINDOW = 16
"""The motion has to be right over the clip and in windows of about this many frames ..."""
WINDOWS_RIGHT = 0.8
"""... in this share of the windows."""
RELATION_GAP = 0.1
"""How far apart two centres have to be along a relation, as a fraction of the picture, in every frame."""


@dataclass(frozen=True)
class ObjectVerdict:
    """What the judge saw of one wanted object.

    Attributes:
        wanted: the object as the caption describes it.
        color: an object of that colour is there, all the time, and only one.
        shape: its shape is right all the time.
        motion: its motion is right all the time (True where the caption does not say).
        position: the relation of the caption holds for it (True where there is none).
        seen: in words, for people.
    """

    wanted: Wanted
    color: bool
    shape: bool
    motion: bool
    position: bool
    seen: str

    @property
    def ok(self) -> bool:
        """Everything is right."""
        return self.color and self.shape and self.motion and self.position

    def __str__(self) -> str:
        wrong = [name for name in ("color", "shape", "motion", "position") if not getattr(self, name)]
        return f"{self.wanted}: " + (f"wrong {', '.join(wrong)} (saw {self.seen})" if wrong else "right")


@dataclass(frozen=True)
class Verdict:
    """The judge's word on a clip; prints as one line.

    Attributes:
        objects: one verdict for each object of the caption, in its order.
        extra: colours that are there although the caption does not name them.
    """

    objects: tuple[ObjectVerdict, ...]
    extra: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Every object is right and there is nothing else."""
        return not self.extra and all(o.ok for o in self.objects)

    def __str__(self) -> str:
        extra = f"; extra {', '.join(self.extra)}" if self.extra else ""
        return ("ok: " if self.ok else "not ok: ") + "; ".join(map(str, self.objects)) + extra


@dataclass(frozen=True)
class Track:
    """One colour through a clip of n frames.

    Attributes:
        present: bool ``[n]``.
        area: share of the picture, float ``[n]``.
        center: (x, y) as fractions of the picture, in [0, 1), float ``[n, 2]``; anything where not present.
        overlap: intersection over union with each of SHAPES, float ``[n, 3]``; 0 where not present.
    """

    present: np.ndarray
    area: np.ndarray
    center: np.ndarray
    overlap: np.ndarray


def judge(clip: np.ndarray, caption: str | Caption) -> Verdict:
    """Compare a clip with a caption.

    Args:
        clip: ``[frames, height, width, 3]``, uint8 or float in [0, 1]; at least 5 frames.
        caption: a sentence of this world, or one already read by :func:`parse_caption`.

    Returns:
        What is right and what is wrong; ``.ok`` is the judgement.

    Raises:
        ValueError: not a clip, too short to show a motion, or not a caption of this world.
    """
    clip = _checked(clip)
    caption = parse_caption(caption) if isinstance(caption, str) else caption
    cover = color_cover(clip)
    named = {o.color for o in caption.objects}
    masses = {color: cover[..., i].mean((1, 2)) for i, color in enumerate(COLORS)}
    extra = [c for c in COLORS if c not in named and (masses[c] > EXTRA_AREA).mean() > EXTRA_FRAMES]
    tracks = {color: track(cover[..., COLORS.index(color)]) for color in named}
    position = _relation_holds(caption, tracks)
    scale = np.array(clip.shape[2:0:-1]) / min(clip.shape[1:3])
    verdicts = (_object_verdict(o, tracks[o.color], position, scale) for o in caption.objects)
    return Verdict(tuple(verdicts), tuple(extra))


def _checked(clip: np.ndarray) -> np.ndarray:
    clip = np.asarray(clip)
    if clip.ndim != 4 or clip.shape[-1] != 3 or clip.shape[0] < 5:
        raise ValueError(
            f"clip of shape {clip.shape}: the judge reads [frames, height, width, 3] with 5 frames or more; "
            "give one clip, channels last"
        )
    if clip.dtype == np.uint8:
        return clip.astype(np.float32)
    if not np.isfinite(clip).all() or clip.min() < -0.01 or clip.max() > 1.01:
        raise ValueError(
            f"clip with values from {clip.min()} to {clip.max()}: floats are finite and in [0, 1]; "
            "clamp it, or give uint8"
        )
    return clip.astype(np.float32) * 255


def color_cover(clip: np.ndarray) -> np.ndarray:
    """How much of each pixel each colour covers.

    Args:
        clip: float32 ``[frames, height, width, 3]`` in [0, 255].

    Returns:
        float32 ``[frames, height, width, 6]`` in [0, 1]; a pixel counts for one colour alone, the one whose
        mix with the background comes closest.
    """
    background = np.array(BACKGROUND, np.float32)
    inks = np.array([PALETTE[c] for c in COLORS], np.float32) - background
    pixels = clip - background
    along = pixels @ inks.T
    share = np.clip(along / (inks**2).sum(1), 0, 1)
    squares = (pixels**2).sum(-1, keepdims=True)
    error = squares - 2 * share * along + share**2 * (inks**2).sum(1)
    nearest = error.argmin(-1)[..., None] == np.arange(len(COLORS))
    return np.where(nearest & (share > 0.15), share, 0)


def track(cover: np.ndarray) -> Track:
    """Follow one colour: ``cover`` is float ``[frames, height, width]`` in [0, 1]."""
    frames, height, width = cover.shape
    area = cover.mean((1, 2))
    present = area >= PRESENT_AREA
    center = np.stack([_circular_mean(cover.sum(1)), _circular_mean(cover.sum(2))], 1)
    overlap = np.zeros((frames, len(SHAPES)))
    if present.any():
        pixels = center[present] * (width, height)
        overlap[present] = _overlaps(cover[present], pixels)
    return Track(present, area, center, overlap)


def _circular_mean(mass: np.ndarray) -> np.ndarray:
    """Where the mass ``[frames, positions]`` of a ring lies: ``[frames]`` in [0, 1)."""
    angles = (np.arange(mass.shape[1]) + 0.5) / mass.shape[1] * 2j * np.pi
    return np.angle(mass @ np.exp(angles)) / (2 * np.pi) % 1


def _overlaps(cover: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Soft intersection over union with each ideal shape of equal area and centre: ``[frames, 3]``."""
    height, width = cover.shape[1:]
    area = cover.sum((1, 2))
    columns = []
    for shape in SHAPES:
        ideal = coverage(shape, centers, np.sqrt(area / _unit_area(shape)), height, width)
        union = np.maximum(cover, ideal).sum((1, 2))
        columns.append(np.minimum(cover, ideal).sum((1, 2)) / union)
    return np.stack(columns, 1)


def _unit_area(shape: str) -> float:
    """Area of a shape of radius 1."""
    corners = 3 * 3**0.5 / 4 * TRIANGLE_REACH**2
    return {"circle": np.pi, "square": 4 * SQUARE_SIDE**2, "triangle": corners}[shape]


def _object_verdict(wanted: Wanted, seen: Track, position: bool, scale: np.ndarray) -> ObjectVerdict:
    color, shape, motion = _steady(seen), _shape(seen), _motion(seen, scale)
    words = f"{'a steady' if color else 'no steady'} {wanted.color} {shape or 'blob'} {motion or 'drifting'}"
    motion_right = wanted.motion is None or motion == wanted.motion
    return ObjectVerdict(wanted, color, shape == wanted.shape, motion_right, position, words)


def _steady(seen: Track) -> bool:
    """There all the time, at about the same size."""
    low, high = (np.median(seen.area) * bound for bound in AREA_BAND)
    steady = seen.present & (low <= seen.area) & (seen.area <= high)
    return bool(steady.mean() >= PRESENT_FRAMES)


def _shape(seen: Track) -> str | None:
    """The shape that the object has all the time; None for a blob or one that changes."""
    if not seen.present.any():
        return None
    overlap = seen.overlap[seen.present]
    second, best = np.sort(overlap.mean(0))[-2:]
    index = int(overlap.mean(0).argmax())
    same = (overlap.argmax(1) == index).mean()
    clear = best >= SHAPE_OVERLAP and best - second >= SHAPE_MARGIN and same >= SHAPE_FRAMES
    return SHAPES[index] if clear else None


def _motion(seen: Track, scale: np.ndarray) -> str | None:
    """The motion that the object has all the time; None for none of the world's."""
    if seen.present.sum() < 5:
        return None
    times = np.flatnonzero(seen.present)
    places = _unwrapped(seen.center[times]) * scale
    whole = _direction(times, places)
    windows = max(1, round(len(times) / WINDOW))
    parts = zip(np.array_split(times, windows), np.array_split(places, windows), strict=True)
    right = np.mean([_direction(t, p) == whole for t, p in parts])
    return whole if right >= WINDOWS_RIGHT else None


def _unwrapped(places: np.ndarray) -> np.ndarray:
    """Undo the wrapping of positions on the unit torus ``[n, 2]``."""
    steps = np.diff(places, axis=0)
    return np.concatenate([places[:1], places[0] + np.cumsum((steps + 0.5) % 1 - 0.5, axis=0)])


def _direction(times: np.ndarray, places: np.ndarray) -> str | None:
    """The motion of a line fitted to ``places`` ``[n, 2]`` at ``times`` ``[n]``; None if it is no motion."""
    moved = times - times.mean()
    velocity = moved @ (places - places.mean(0)) / (moved @ moved)
    across, along = np.sort(np.abs(velocity))
    if along < STILL_SPEED:
        return "standing still"
    if along < MOVING_SPEED or across > STRAIGHT * along:
        return None
    axis = int(np.abs(velocity).argmax())
    direction = np.sign(velocity) * (np.arange(2) == axis)
    return next(m for m, d in MOTIONS.items() if np.array_equal(d, direction))


def _relation_holds(caption: Caption, tracks: Mapping[str, Track]) -> bool:
    """Whether the first object lies where the relation says, whenever both are there."""
    if caption.relation is None:
        return True
    first, second = (tracks[o.color] for o in caption.objects)
    both = first.present & second.present
    gaps = (first.center - second.center)[both] @ np.array(RELATIONS[caption.relation])
    return bool(both.any() and (gaps >= RELATION_GAP).all())
