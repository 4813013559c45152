"""Patterns per step: one after the other while the picture takes shape, such as ever sparser ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dattn.operators.placed import Placed, check_specs, rows_of
from dattn.schedule import check_amount, resolve_amount
from dattn.spec import Spec


@dataclass(frozen=True)
class PerStep(Placed):
    """A pattern or operator from each of some steps on, until the next.

    Where there are no steps, as in ``dattn.attention``, it is the first.

    Args:
        steps: ``{begin: pattern}``: begins are counts of steps or fractions of all, as in ``dense_steps``; one of them
            is 0.

    Raises:
        ValueError: no pattern from step 0 on, a begin that is neither a count nor a fraction, or no pattern.
    """

    steps: Any

    def __post_init__(self) -> None:
        rows = rows_of("steps", self.steps)
        for begin, _ in rows:
            check_amount("begin", begin)
        if 0 not in [begin for begin, _ in rows]:
            raise ValueError(f"steps={self.steps!r}: give {{begin: pattern}}, one of them from 0 on")
        object.__setattr__(self, "steps", rows)
        check_specs("PerStep", self.every)

    @property
    def every(self) -> tuple[Spec, ...]:
        """In the order in which they are given."""
        return tuple(p for _, p in self.steps)

    @property
    def first(self) -> Any:
        """What the first step has."""
        return next(p for begin, p in self.steps if begin == 0)

    def at(self, layer: int, layers: int, step: int, steps: int) -> Spec:
        """What that step has, at that place: of those that have begun, the one that began last."""
        begins = [(resolve_amount(begin, steps), number) for number, (begin, _) in enumerate(self.steps)]
        _, number = max(
            row for row in begins if row[0] <= step
        )  # where few steps make two begin at once, the later one
        return self.steps[number][1].at(layer, layers, step, steps)
