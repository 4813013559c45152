"""Controls that were given and never ran, which nobody would notice otherwise."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from dattn.control.base import Control
from dattn.control.stage import Stage

CHOICES = ("layers", "window", "cross", "inject")
"""Attributes of controls that say where and when they act."""


def is_idle(control: Control, stage: Stage) -> bool:
    """Whether a control of attention has run nowhere in the call that runs, or ran last, without being switched off."""
    windows = [getattr(control, name) for name in CHOICES[1:] if hasattr(control, name)]
    off = getattr(control, "strength", 1) == 0 or (windows and all(start == end for start, end in windows))
    return type(control).edit is not Control.edit and control not in stage.acted and not off


def warn_of_idle(controls: Sequence[Control], stage: Stage) -> None:
    """At the end of a call, once for each control."""
    for control in (one for one in controls if is_idle(one, stage) and one not in stage.told_idle):
        stage.told_idle.add(control)
        warnings.warn(
            f"dattn: {type(control).__name__} ran nowhere in this call of {stage.steps} steps with "
            f"{_choices(control)}: no layer and step meet this, or the attention there is none that it can change "
            "(linear, or of a processor of its own)",
            stacklevel=2,
        )


def names_of(controls: Sequence[Control], stage: Stage) -> list[str]:
    """Their names for the report, with a remark on those that ran nowhere once a model has run."""
    remark = lambda control: " (ran nowhere)" if stage.batch and is_idle(control, stage) else ""
    return [type(control).__name__ + remark(control) for control in controls]


def _choices(control: Control) -> str:
    """Where and when a control acts, as it was told."""
    return ", ".join(f"{name}={_shown(getattr(control, name))}" for name in CHOICES if hasattr(control, name))


def _shown(choice: Any) -> str:
    return "a predicate" if callable(choice) else repr(choice)
