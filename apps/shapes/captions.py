"""The language of Moving Shapes: what a caption can say, how it is written and how it is read.

::

    a red circle moving right
    a blue square above a green triangle
    a blue square above a green triangle, both moving left
    a red circle moving up and a white square standing still and a green triangle moving down
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

COLORS: tuple[str, ...] = ("red", "green", "blue", "yellow", "purple", "white")
SHAPES: tuple[str, ...] = ("circle", "square", "triangle")
MOTIONS: dict[str, tuple[int, int]] = {
    "moving right": (1, 0),
    "moving left": (-1, 0),
    "moving down": (0, 1),
    "moving up": (0, -1),
    "standing still": (0, 0),
}
"""Each motion as its (x, y) direction; y grows downwards, as in an image."""
RELATIONS: dict[str, tuple[int, int]] = {
    "above": (0, -1),
    "below": (0, 1),
    "left of": (-1, 0),
    "right of": (1, 0),
}
"""Each relation as the (x, y) direction from the second object to the first."""
MAX_OBJECTS = 3


def _choice(words: Iterable[str]) -> str:
    return "|".join(map(re.escape, words))


_OBJECT = rf"an? (?P<color>\w+) (?P<shape>\w+)(?: (?P<motion>{_choice(MOTIONS)}))?"
_ONE = re.compile(_OBJECT)
_PAIR = re.compile(rf"(?P<first>.+?) (?P<relation>{_choice(RELATIONS)}) (?P<second>an? .+)")
_BOTH = re.compile(rf"(?P<objects>.+?),? both (?P<motion>{_choice(MOTIONS)})")


@dataclass(frozen=True)
class Wanted:
    """One object as a caption describes it; ``motion`` is None where the caption does not say."""

    color: str
    shape: str
    motion: str | None = None

    def __str__(self) -> str:
        return f"a {self.color} {self.shape}" + (f" {self.motion}" if self.motion else "")


@dataclass(frozen=True)
class Caption:
    """What a clip must show: its objects and, for two, where the first is seen from the second.

    Raises:
        ValueError: a combination that cannot be true of this world for long; see :func:`parse_caption`.
    """

    objects: tuple[Wanted, ...]
    relation: str | None = None

    def __post_init__(self) -> None:
        _check_colors(self.objects)
        if self.relation is not None:
            _check_relation(self.objects, self.relation)

    def __str__(self) -> str:
        if self.relation is None:
            return " and ".join(map(str, self.objects))
        first, second = (Wanted(o.color, o.shape) for o in self.objects)
        motion = self.objects[0].motion
        return f"{first} {self.relation} {second}" + (f", both {motion}" if motion else "")


def parse_caption(caption: str) -> Caption:
    """Read a caption of this world.

    Args:
        caption: one to three objects; see the module's examples. ``str(parse_caption(text)) == text``
            for every caption that the generator writes.

    Returns:
        What a clip must show to match it.

    Raises:
        ValueError: not a caption of this world; the message names the value, the rule and the remedy.
    """
    text = " ".join(caption.lower().strip().rstrip(".").split())
    both = _BOTH.fullmatch(text)
    pair = _PAIR.fullmatch(both["objects"] if both else text)
    if pair is None:
        if both is not None:
            raise _unreadable(caption)
        return Caption(tuple(_parse_object(part, caption) for part in text.split(" and ")))
    motion = both["motion"] if both else None
    objects = (_parse_object(pair[side], caption) for side in ("first", "second"))
    return Caption(tuple(Wanted(o.color, o.shape, motion or o.motion) for o in objects), pair["relation"])


def _parse_object(text: str, caption: str) -> Wanted:
    match = _ONE.fullmatch(text)
    if match is None:
        raise _unreadable(caption)
    if match["color"] not in COLORS:
        raise ValueError(f"colour {match['color']!r} in {caption!r}: the colours are {', '.join(COLORS)}; use one")
    if match["shape"] not in SHAPES:
        raise ValueError(f"shape {match['shape']!r} in {caption!r}: the shapes are {', '.join(SHAPES)}; use one")
    return Wanted(match["color"], match["shape"], match["motion"])


def _unreadable(caption: str) -> ValueError:
    return ValueError(
        f"caption {caption!r}: not of this world, where an object is 'a <colour> <shape> <motion>', and one "
        f"to three are joined by 'and', or two by a relation; write for example 'a red circle moving right', "
        f"'a blue square above a green triangle, both moving left'. Motions: {', '.join(MOTIONS)}; "
        f"relations: {', '.join(RELATIONS)}"
    )


def _check_colors(objects: tuple[Wanted, ...]) -> None:
    colors = [o.color for o in objects]
    if not 1 <= len(colors) <= MAX_OBJECTS:
        raise ValueError(f"{len(colors)} objects: a scene holds one to {MAX_OBJECTS}; drop or add some")
    if len(set(colors)) < len(colors):
        raise ValueError(f"colours {', '.join(colors)}: objects are told apart by colour; give each its own")


def _check_relation(objects: tuple[Wanted, ...], relation: str) -> None:
    if len(objects) != 2 or relation not in RELATIONS:
        raise ValueError(
            f"relation {relation!r} of {len(objects)} objects: a relation joins two, "
            f"as one of {', '.join(RELATIONS)}; use exactly two objects, or None and 'and'"
        )
    first, second = (o.motion for o in objects)
    if first != second:
        raise ValueError(
            f"relation {relation!r} with motions {first!r} and {second!r}: it holds only while both move "
            "alike; give both the same motion, or none"
        )
    along = [abs(a * b) for a, b in zip(RELATIONS[relation], MOTIONS[first or "standing still"], strict=True)]
    if any(along):
        raise ValueError(
            f"relation {relation!r} with both {first!r}: the world wraps around, so it would turn false; "
            "move across the relation (for example 'above' with 'moving right') or stand still"
        )
