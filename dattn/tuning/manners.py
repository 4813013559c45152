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
        optimism: what is lost ÷ the sum of what was measured, by measure: at least, usually and at most in trials with
            ``shapes-wan`` at 4 and 8 times its length. Errors of several ranges of steps meet; and where each place
            takes what looked best there, some of it only looked so.
    """

    options: Callable[[Tables], list[Choice]]
    optimism: Mapping[str, tuple[float, float, float]]


MANNERS = {
    "by place": Manner(
        lambda tables: choices(tables.places),
        {"ssim": (1.2, 1.5, 2.6), "mse": (0.6, 1.0, 1.7)},
    ),
    "one for all": Manner(
        lambda tables: uniform(tables.places, [number for number, _ in tables.keys]),
        {"ssim": (1.2, 1.5, 2.6), "mse": (0.6, 1.0, 1.7)},
    ),
}
