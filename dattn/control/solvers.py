"""Schedulers that keep a sample of an earlier step, from which they would compute past latents that have been moved."""

from __future__ import annotations

from typing import Any


def goes_on_from_kept(scheduler: Any) -> bool:
    """Whether its next step starts from a sample that it kept, so that moving the latents before it would be lost.

    That is the second half of a step of Heun and KDPM2, PNDM's warm-up, and all but the first of the steps that
    DPM-Solver singlestep takes together.
    """
    if not getattr(scheduler, "state_in_first_order", True):
        return True
    orders = getattr(scheduler, "order_list", None)
    if orders is not None:
        return bool(orders[scheduler.step_index or 0] > 1)
    warm_up = max(2, len(getattr(scheduler, "prk_timesteps", ())))
    counter = getattr(scheduler, "counter", 0)
    return bool(counter < warm_up and counter % 4)


def take_as_it_is(scheduler: Any) -> None:
    """Have its next step take the latents as they are.

    The corrector of UniPC and SA-Solver would compute them anew from those before; without these it does not run.
    """
    if getattr(scheduler, "last_sample", None) is not None:
        scheduler.last_sample = None
