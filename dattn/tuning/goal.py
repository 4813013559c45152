"""What a recipe is to reach: a quality or a speed, and how near a check came to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dattn.metrics import WINDOW
from dattn.tuning.choose import Choice, least_loss, least_time

DEFAULT = 0.95
SLACK = 0.5, 1.15
"""A check that loses less than this share of what it may, or is faster than asked by this factor, leaves room."""
LIMITS = {"quality": (0.0, 1.0), "psnr": (0.0, 200.0), "speed_up": (1.0, 1000.0)}
UNITS = {"quality": "SSIM {:.3f}", "psnr": "{:.1f} dB", "speed_up": "{:.2f} x"}


@dataclass(frozen=True)
class Goal:
    """A bound.

    Attributes:
        kind: ``quality`` (the least SSIM to dense attention's result), ``psnr`` (the least, in dB) or ``speed_up`` (the
            least, of a whole call).
        value: of the bound.
    """

    kind: str
    value: float

    @classmethod
    def of(cls, quality: float | None, psnr: float | None, speed_up: float | None) -> Goal:
        """The one that is given; SSIM 0.95 where none is.

        Raises:
            ValueError: two of them, or one out of range.
        """
        given = {"quality": quality, "psnr": psnr, "speed_up": speed_up}
        some = {kind: value for kind, value in given.items() if value is not None}
        if len(some) > 1:
            raise ValueError(f"{' and '.join(f'{k}={v!r}' for k, v in some.items())}: give one of them")
        kind, value = next(iter(some.items()), ("quality", DEFAULT))
        low, high = LIMITS[kind]
        if isinstance(value, bool) or not isinstance(value, int | float) or not low < value < high:
            raise ValueError(f"{kind}={value!r}: give a number above {low:g} and below {high:g}")
        return cls(kind, float(value))

    def __str__(self) -> str:
        return UNITS[self.kind].format(self.value)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"kind": self.kind, "value": self.value}

    @property
    def loss(self) -> str:
        """The loss that choices are made by: of ``losses``."""
        return "ssim" if self.kind == "quality" else "mse"

    def check_size(self, shape: Sequence[int]) -> None:
        """Raise ``ValueError`` where a clip [frames, height, width, channels] is too small for the bound's measure."""
        if self.kind == "quality" and min(shape[1:3]) < WINDOW:
            raise ValueError(
                f"quality: SSIM needs {WINDOW} x {WINDOW} pixels, these are {shape[1]} x {shape[2]}; give psnr"
            )

    def choose(self, options: Sequence[Choice], other: float, dense: float, wary: float = 1.0) -> Choice:
        """The choice for the bound.

        Args:
            options: to choose from.
            other: seconds of a call beside attention.
            dense: seconds of a call with stock attention.
            wary: how much harder than the bound is asked for: on what may be lost, or on the speed.
        """
        if self.kind == "speed_up":
            return least_loss(options, dense / (self.value * wary) - other)
        return least_time(options, self._most / wary)

    @property
    def _most(self) -> float:
        """The loss that is allowed."""
        return 1 - self.value if self.kind == "quality" else 10 ** (-self.value / 10)

    def reached(self, figures: Mapping[str, float]) -> float:
        """What figures of a clip say about the bound's own kind."""
        kinds = {"quality": 1 - figures["ssim"], "psnr": decibels(figures["mse"]), "speed_up": figures["speed_up"]}
        return kinds[self.kind]

    def met(self, figures: Mapping[str, float]) -> bool:
        """Whether a clip reaches the bound."""
        return self.reached(figures) >= self.value

    def said(self, figures: Mapping[str, float]) -> str:
        """Speed and likeness of a clip, for people to read."""
        likeness = f"{decibels(figures['mse']):.1f} dB"
        ssim = "" if math.isnan(figures["ssim"]) else f", SSIM {1 - figures['ssim']:.3f}"
        return f"{figures['speed_up']:.2f} x as fast, {likeness}{ssim}"

    def leaves_room(self, figures: Mapping[str, float]) -> bool:
        """Whether a clip reaches the bound by so much that another choice may be better."""
        if self.kind == "speed_up":
            return figures["speed_up"] > self.value * SLACK[1]
        return figures[self.loss] < self._most * SLACK[0]

    def best(self, several: Sequence[dict[str, Any]], figures: str) -> dict[str, Any]:
        """By their ``figures``: among those that reach the bound the best in the other respect, else the nearest."""
        there = [one for one in several if self.met(one[figures])]
        if not there:
            return max(several, key=lambda one: self.reached(one[figures]))
        other = "seconds" if self.kind != "speed_up" else self.loss
        return min(there, key=lambda one: one[figures][other])


def decibels(mse: float) -> float:
    """PSNR; infinite for equal clips."""
    return -10 * math.log10(mse) if mse > 0 else math.inf
