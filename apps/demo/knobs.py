"""The patterns on offer and their few knobs: what a slider may say, and the pattern that it makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log2
from typing import Any


@dataclass(frozen=True)
class Knob:
    """A number of a pattern.

    Attributes:
        name: how ``Offer.text`` calls it.
        label, info: what is written beside the slider.
        low, high, step, value: of the slider.
        power: whether the pattern takes powers of 2 alone; the nearest one is meant.
    """

    name: str
    label: str
    info: str
    low: float
    high: float
    step: float
    value: float
    power: bool = False

    @property
    def slider(self) -> dict[str, Any]:
        """Arguments of a slider."""
        bounds = {"minimum": self.low, "maximum": self.high, "step": self.step, "value": self.value}
        return {**bounds, "label": self.label, "info": self.info}

    def between(self, share: float) -> float:
        """The value that is such a share of the way from low to high, by ratio."""
        value = self.low * (self.high / self.low) ** share
        return self.low + self.step * round((value - self.low) / self.step)


@dataclass(frozen=True)
class Offer:
    """A pattern that can be chosen.

    Attributes:
        title, info: what visitors read.
        text: the pattern as in code, knobs in braces.
        knobs: those in it.
        video: whether it needs frames.
    """

    title: str
    info: str
    text: str
    knobs: tuple[Knob, ...]
    video: bool = False

    def written(self, values: Mapping[str, float]) -> str:
        """The pattern with these values."""
        return self.text.format(**{knob.name: _plain(values[knob.name], knob) for knob in self.knobs})

    def sweep(self, count: int) -> list[str]:
        """The pattern with its knobs from their lowest values to their highest, in even ratios."""
        shares = [number / (count - 1) for number in range(count)]
        return [self.written({knob.name: knob.between(share) for knob in self.knobs}) for share in shares]


def _plain(value: float, knob: Knob) -> str:
    """A number as code has it: whole ones without a point."""
    if knob.power and value > 0:
        return str(2 ** round(log2(value)))
    return str(int(value)) if float(knob.step).is_integer() else f"{float(value):.3g}"


DENSITY = Knob("density", "Density", "Share of the attention that is computed", 0.05, 0.9, 0.05, 0.3)
OFFERS = (
    Offer(
        "Radial",
        "Near frames see each other whole, far ones less and less",
        "Radial(block_size={block})",  # decay changes nothing where a block is a good part of a frame, as here
        (
            Knob(
                "block",
                "Block",
                "Tokens left out together: 16, 32, 64 or 128. Larger is sparser",
                16,
                128,
                16,
                64,
                True,
            ),
        ),
        video=True,
    ),
    Offer(
        "Neighborhood in time",
        "Every token sees a window of frames",
        "Neighborhood(({frames}, None, None))",
        (Knob("frames", "Frames", "Frames of the window", 1, 33, 2, 11),),
        video=True,
    ),
    Offer(
        "Neighborhood in space",
        "Every token sees a square around it",
        "Neighborhood({side})",
        (Knob("side", "Side", "Tokens on a side of the square", 3, 33, 2, 9),),
    ),
    Offer(
        "Sparse frames",
        "Near frames, and a few anchors that all see",
        "SparseFrames({window}, {anchors})",
        (
            Knob("window", "Window", "Neighbouring frames that are seen", 1, 33, 2, 5),
            Knob("anchors", "Anchors", "Frames that every frame sees", 1, 16, 1, 8),
        ),
        video=True,
    ),
    Offer(
        "Alike",
        "Tokens sorted by likeness; a mean stands for what is left out",
        "Alike({density})",
        (DENSITY,),
    ),
    Offer(
        "Best blocks",
        "Blocks of keys chosen anew in every step by their means",
        "Selected(Pooled(), TopK({density}), block_size=64)",
        (DENSITY,),
    ),
    Offer(
        "Sparse VideoGen",
        "Every head chooses between space and time",
        "SparseVideoGen({density}, block_size=64)",
        (DENSITY,),
        video=True,
    ),
)
MOST = max(len(offer.knobs) for offer in OFFERS)
"""Knobs of a pattern."""


def offers(video: bool) -> list[Offer]:
    """Those for a model that makes videos, or pictures."""
    return [offer for offer in OFFERS if video or not offer.video]


def by_title(title: str) -> Offer:
    """The offer of that title.

    Raises:
        ValueError: there is none.
    """
    for offer in OFFERS:
        if offer.title == title:
            return offer
    raise ValueError(f"Attention {str(title)[:40]!r}: choose one of {', '.join(offer.title for offer in OFFERS)}")
