"""The manners of choosing: each place for itself, or one candidate for all from some step on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from dattn.tuning.choose import Choice, choices, uniform
from dattn.tuning.tables import Tables


class Manner(NamedTuple):
    """A way to choose, and how far its choices can be trusted.

    Attributes:
        options: all that can be chosen of tables.
        optimism: what is lost ÷ the sum of what was measured, by measure: at least, usually and at most. Errors of
            several ranges of steps meet; and where each place takes what looked best there, some of it only looked so.
    """

    options: Callable[[Tables], list[Choice]]
    optimism: Mapping[str, tuple[float, float, float]]


BY_PLACE = {"ssim": (1.2, 1.5, 2.6), "mse": (0.6, 1.0, 1.7)}
"""Of choices by place in trials with ``shapes-wan`` at 4 and 8 times its length. No trial has told yet how far those of
one for all can be trusted, so they are trusted as little."""
MANNERS = {
    "by place": Manner(lambda tables: choices(tables.places), BY_PLACE),
    "one for all": Manner(lambda tables: uniform(tables.places, [number for number, _ in tables.keys]), BY_PLACE),
}
