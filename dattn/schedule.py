"""Where a denoising call stands, and which of its steps and layers stay dense.

Steps are counted outside the model. ``SchedulerTap`` wraps three methods on one scheduler *instance*:
``set_timesteps`` and ``set_begin_index`` begin a call, ``step`` ends a step. Nothing inside the model reads a
step number, so a compiled graph has none to guard on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from dattn.tapped import Tap, Tapped, edited

Amount = int | float


def check_amount(name: str, value: Any) -> None:
    """Raise ``ValueError`` unless ``value`` is a count (int, 0 or more) or a fraction (float in [0, 1))."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return
    if isinstance(value, float) and 0 <= value < 1:
        return
    raise ValueError(
        f"{name}={value!r}: an int counts (0 or more), a float is a fraction in [0, 1); "
        f"write {name}=12 for twelve, {name}=0.25 for a quarter"
    )


def resolve_amount(value: Amount, total: int) -> int:
    """How many of ``total`` an amount means: a count as it is, a fraction rounded up; never above ``total``."""
    count = value if isinstance(value, int) else math.ceil(value * total - 1e-9)
    return min(count, total)


class Clock:
    """The step that a denoising call is at: ``index`` of ``total``; ``total`` is None until one is known.

    ``on_begin`` runs when a call begins, ``on_move`` whenever the index has changed.
    """

    def __init__(self, on_begin: Callable[[], None], on_move: Callable[[], None]) -> None:
        self.index = 0
        self.total: int | None = None
        self._on_begin = on_begin
        self._on_move = on_move

    def begin(self, total: int) -> None:
        """A call of ``total`` steps starts."""
        self.index, self.total = 0, total
        self._on_begin()
        self._on_move()

    def advance(self) -> None:
        """One step is done."""
        self.index += 1
        self._on_move()

    def report(self, index: int, total: int) -> None:
        """The caller says that step ``index`` of ``total`` comes next; going back, or 0, starts a new call.

        Raises:
            ValueError: ``index`` outside 0 … total - 1.
        """
        if not 0 <= index < total:
            raise ValueError(f"step({index}, {total}): the index counts from 0 and stays below the total")
        if index == 0 or index < self.index or total != self.total:
            self.begin(total)
        self.index = index
        self._on_move()


class SchedulerTap(Tap):
    """Tells a clock what a scheduler is asked to do; ``remove`` leaves the instance as it was.

    Args:
        scheduler: a Diffusers scheduler, with ``set_timesteps`` and ``step``.
        clock: the clock to move.
        edit: what becomes of the latents that a step gives.
    """

    def __init__(self, scheduler: Any, clock: Clock, edit: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__(scheduler)
        self.scheduler = scheduler
        self._clock, self._edit = clock, edit
        events = {"set_timesteps": self._begun, "set_begin_index": self._begun, "step": self._stepped}
        for name, after in events.items():
            if hasattr(scheduler, name):
                self.put(name, Tapped(getattr(scheduler, name), after))

    def _begun(self, result: Any) -> Any:
        self.begin()
        return result

    def _stepped(self, result: Any) -> Any:
        if self._edit is not None:
            result = edited(result, self._edit)
        self._clock.advance()
        return result

    def begin(self) -> None:
        """Start a call with the timesteps that the scheduler holds, from its begin index on."""
        first = getattr(self.scheduler, "begin_index", None) or 0
        self._clock.begin(max(len(self.scheduler.timesteps) - first, 1))
