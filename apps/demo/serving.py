"""What all handlers have in common: visitors read what is wrong, never a traceback."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import gradio as gr

from .studio import OnStep
from .visits import Stopped, Visit

DEVICE = "device"
"""Concurrency of all that uses the device: one at a time."""


def served(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose errors are shown where they arise."""

    @functools.wraps(handler)
    def safe(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except Stopped:
            raise gr.Error("Stopped.", title="Stopped", duration=3, print_exception=False) from None
        except ValueError as error:
            raise gr.Error(str(error), title="That does not work", print_exception=False) from None
        except (RuntimeError, MemoryError, OSError) as error:
            raise gr.Error(f"The model gave up: {error}", title="That did not work", print_exception=True) from None

    return safe


def telling(visit: Visit, progress: gr.Progress) -> OnStep:
    """What tells a visitor how far a run is, and ends it when the visitor wants it to."""
    visit.stop.clear()
    began = time.perf_counter()

    def on_step(what: str, done: int, of: int, part: int, parts: int) -> None:
        if visit.stop.is_set():
            raise Stopped
        share = (part + done / of) / parts
        left = (time.perf_counter() - began) * (1 - share) / share
        progress(share, desc=f"{what}: step {done} of {of}, {left:.0f} s left")

    return on_step
