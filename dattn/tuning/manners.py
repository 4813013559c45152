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


BY_PLACE = {"ssim": (1.2, 1.5, 4.4), "mse": (0.6, 1.0, 3.8)}
"""In trials with ``shapes-wan`` at 4 and 8 times its length; at 4 times to 2.6 and 1.7."""
ONE_FOR_ALL = {"ssim": (0.7, 0.9, 2.9), "mse": (0.5, 0.8, 4.9)}
"""In ten trials with it at 4 times its length: 0.7 to 1.3 and 0.5 to 1.2, and most for a window over time without dense
steps before it."""
MANNERS = {
    "by place": Manner(lambda tables: choices(tables.places), BY_PLACE),
    "one for all": Manner(lambda tables: uniform(tables.places, [number for number, _ in tables.keys]), ONE_FOR_ALL),
}
