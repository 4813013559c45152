"""Moving Shapes: captioned videos of coloured shapes, drawn exactly from a seed.

The world is a torus: what leaves on the right comes back on the left, so "moving right" stays true at any
length of clip. Positions are fractions of width and height, radius and speed of the shorter side, so that one
scene can be drawn at any size. Objects of a sampled scene never touch each other, however long it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .captions import COLORS, MAX_OBJECTS, MOTIONS, RELATIONS, SHAPES, Caption, Wanted

BACKGROUND: tuple[int, int, int] = (16, 16, 24)
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (225, 45, 45),
    "green": (40, 185, 70),
    "blue": (50, 85, 240),
    "yellow": (240, 215, 50),
    "purple": (185, 55, 215),
    "white": (240, 240, 240),
}
NATIVE_SIZE = 64
NATIVE_FRAMES = 33
RADIUS = (9 / NATIVE_SIZE, 12 / NATIVE_SIZE)
SPEED = (0.8 / NATIVE_SIZE, 1.6 / NATIVE_SIZE)
TRIANGLE_REACH = 1.2
"""Corners of a triangle lie this many radii from its centre (the centroid)."""
SQUARE_SIDE = 0.886
"""Half the side of a square in radii: the area of the circle of the same radius."""


@dataclass(frozen=True)
class Object:
    """One shape: its looks, where it starts, and how it moves.

    Attributes:
        color, shape, motion: words of :mod:`~dattn.apps.shapes.captions`.
        x, y: start of the centre, fractions of width and height, in [0, 1).
        radius: fraction of the shorter side.
        speed: fraction of the shorter side per frame; 0 when standing still.
    """

    color: str
    shape: str
    motion: str
    x: float
    y: float
    radius: float
    speed: float

    def centers(self, frames: int, height: int, width: int) -> np.ndarray:
        """Where the centre is, unwrapped, in pixels: float64 ``[frames, 2]`` as (x, y)."""
        step = self.speed * min(height, width) * np.array(MOTIONS[self.motion])
        return np.array([self.x * width, self.y * height]) + np.arange(frames)[:, None] * step

    def wanted(self) -> Wanted:
        """The object as a caption tells of it."""
        return Wanted(self.color, self.shape, self.motion)


@dataclass(frozen=True)
class Scene:
    """One to three objects of different colours and, for two, the relation that the caption tells."""

    objects: tuple[Object, ...]
    relation: str | None = None

    def caption(self) -> str:
        """The sentence that is true of this scene."""
        wanted = [o.wanted() for o in self.objects]
        if self.relation is not None and all(w.motion == "standing still" for w in wanted):
            wanted = [Wanted(w.color, w.shape) for w in wanted]
        return str(Caption(tuple(wanted), self.relation))

    def render(self, frames: int = NATIVE_FRAMES, size: int | Sequence[int] = NATIVE_SIZE) -> np.ndarray:
        """Draw the scene.

        Args:
            frames: how many frames, at least 1.
            size: side of a square picture in pixels, or (height, width); at least 8.

        Returns:
            uint8 ``[frames, height, width, 3]``, antialiased; later objects lie over earlier ones.

        Raises:
            ValueError: no frames, or a picture too small to show anything.
        """
        height, width = (size, size) if isinstance(size, int) else size
        if frames < 1 or min(height, width) < 8:
            raise ValueError(f"{frames} frames of {height} x {width}: at least 1 frame of 8 x 8; ask for more")
        clip = np.broadcast_to(np.array(BACKGROUND, np.float32), (frames, height, width, 3))
        for o in self.objects:
            cover = coverage(o.shape, o.centers(frames, height, width), o.radius * min(height, width), height, width)
            clip = clip + cover[..., None] * (np.array(PALETTE[o.color], np.float32) - clip)
        return np.rint(clip).astype(np.uint8)


def coverage(shape: str, centers: np.ndarray, radius: float | np.ndarray, height: int, width: int) -> np.ndarray:
    """How much of each pixel a shape covers, on the torus.

    Args:
        shape: circle, square or triangle.
        centers: ``[frames, 2]``, (x, y) in pixels; any real numbers.
        radius: pixels, one number or one per frame.
        height, width: of the picture.

    Returns:
        float32 ``[frames, height, width]`` in [0, 1], from the signed distance to the outline.
    """
    dx = _wrapped(np.arange(width) + 0.5 - centers[:, :1], width)[:, None, :]
    dy = _wrapped(np.arange(height) + 0.5 - centers[:, 1:], height)[:, :, None]
    radii = np.reshape(np.asarray(radius, np.float32), (-1, 1, 1))
    return np.clip(0.5 - _signed_distance(shape, dx, dy, radii), 0, 1)


def _wrapped(offset: np.ndarray, period: int) -> np.ndarray:
    return (np.mod(offset + period / 2, period) - period / 2).astype(np.float32)


def _signed_distance(shape: str, dx: np.ndarray, dy: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Distance to the outline (negative inside); beyond a corner, to the nearest edge's line."""
    if shape == "circle":
        return np.hypot(dx, dy) - radius
    if shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) - SQUARE_SIDE * radius
    slope = np.abs(dx) * (3**0.5 / 2) - dy / 2
    return np.maximum(slope, dy) - TRIANGLE_REACH / 2 * radius


def sample_scene(seed: int | Sequence[int], objects: int | None = None) -> Scene:
    """Draw a scene at random: the same seed always gives the same scene.

    Args:
        seed: anything :func:`numpy.random.default_rng` takes.
        objects: 1, 2 or 3; None draws 75 % one, 20 % two, 5 % three. Half of those with two tell a relation.

    Raises:
        ValueError: another number of objects.
    """
    rng = np.random.default_rng(seed)
    count = int(rng.choice([1, 2, 3], p=[0.75, 0.2, 0.05])) if objects is None else objects
    if not 1 <= count <= MAX_OBJECTS:
        raise ValueError(f"{count} objects: a scene holds one to {MAX_OBJECTS}; ask for one of those")
    if count == 1:
        return Scene((_object(rng, COLORS[rng.integers(6)], _motion(rng), rng.random(2), rng.uniform(*RADIUS)),))
    colors = [COLORS[i] for i in rng.permutation(len(COLORS))[:count]]
    if count == 2 and rng.random() < 0.5:
        return _related(rng, colors)
    return _in_lanes(rng, colors)


def _object(rng: np.random.Generator, color: str, motion: str, at: np.ndarray, radius: float) -> Object:
    speed = 0.0 if motion == "standing still" else float(rng.uniform(*SPEED))
    shape = SHAPES[rng.integers(len(SHAPES))]
    return Object(color, shape, motion, float(at[0] % 1), float(at[1] % 1), float(radius), speed)


def _motion(rng: np.random.Generator, axis: int | None = None) -> str:
    """A motion that is still or along one axis (0 is x, 1 is y); any motion for None."""
    fitting = [m for m, d in MOTIONS.items() if axis is None or d[1 - axis] == 0]
    return fitting[rng.integers(len(fitting))]


def _in_lanes(rng: np.random.Generator, colors: list[str]) -> Scene:
    """Objects on parallel lanes, each with its own motion along them: none ever meets another."""
    axis, count = int(rng.integers(2)), len(colors)
    radius = (RADIUS[0], RADIUS[1] if count == 2 else 9.6 / NATIVE_SIZE)
    lanes = (rng.random() + rng.permutation(count) / count) % 1
    places = [(rng.random(), lane) if axis == 0 else (lane, rng.random()) for lane in lanes]
    return Scene(
        tuple(
            _object(rng, color, _motion(rng, axis), np.array(place), rng.uniform(*radius))
            for color, place in zip(colors, places, strict=True)
        )
    )


def _related(rng: np.random.Generator, colors: list[str]) -> Scene:
    """Two objects that move alike, across their relation, and never over the edge that would undo it."""
    relation = list(RELATIONS)[rng.integers(len(RELATIONS))]
    direction = np.array(RELATIONS[relation])
    across = np.abs(direction[::-1])
    motion = _motion(rng, int(across.argmax()))
    drift = rng.random()
    first = np.abs(direction) * (0.5 + direction * rng.uniform(0.21, 0.29)) + across * drift
    second = np.abs(direction) * (0.5 - direction * rng.uniform(0.21, 0.29))
    second = second + across * (drift + rng.uniform(-0.12, 0.12))
    radius = (RADIUS[0], 11 / NATIVE_SIZE)
    one, two = (_object(rng, c, motion, p, rng.uniform(*radius)) for c, p in zip(colors, (first, second), strict=True))
    two = Object(two.color, two.shape, two.motion, two.x, two.y, two.radius, one.speed)
    return Scene((one, two), relation)
