"""How a visitor's call is run: arguments by name, errors to read and never a traceback, progress, stop and deadline."""

from __future__ import annotations

import ctypes
import functools
import gc
import inspect
import logging
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import Parameter
from typing import Any

import fastapi
import gradio as gr
import torch

from .look import not_yet
from .visits import Stopped, Visit, Visits
from .waiting import STOPPED

DEVICE = "device"
"""Concurrency of all that uses the device: one at a time."""
ALONE: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": DEVICE}
"""How an event waits for the device."""
ASIDE: dict[str, Any] = {"concurrency_limit": 8, "concurrency_id": "aside"}
"""How an event is served that does not wait for it."""
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""How an event that only changes controls is served."""
NO_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
"""In the messages of PyTorch, on GPUs and CPUs."""
M_MMAP_THRESHOLD = -3
"""The name of that setting in glibc."""
LARGE = 2**20
"""Bytes: with eight times less, as glibc begins, every layer waits for fresh pages, and a clip takes twice as long."""
log = logging.getLogger(__name__)
Given = Mapping[str, Any]
"""What a visitor gave, by the names of the API."""


class Job:
    """A call of a visitor's while it runs.

    Args:
        visit: whose it is.
        asked: when the visitor asked, by ``time.monotonic``; a stop that comes later ends it.
        seconds: that it may take.
        progress: Gradio's.
    """

    def __init__(self, visit: Visit, asked: float, seconds: float, progress: gr.Progress) -> None:
        self.visit = visit
        self._asked, self._seconds, self._progress = asked, seconds, progress
        self._began = self._told = self._stage_began = time.monotonic()
        self._stage = ""

    def check(self) -> None:
        """Raise where it is not to go on.

        Raises:
            Stopped: the visitor does not want it any more.
            ValueError: it has taken too long.
        """
        self.visit.seen = time.monotonic()
        if self.visit.stopped > self._asked:
            raise Stopped
        if time.monotonic() - self._began > self._seconds:
            raise ValueError(f"Not done after {self._seconds:g} s, the most here: ask for fewer steps or less")

    def tell(self, what: str, done: int, of: int, part: int = 0, parts: int = 1) -> None:
        """Check, and tell the visitor how far it is: steps done of all, in a part of so many."""
        self.check()
        if what != self._stage:  # whose first step began when something was last told
            self._stage, self._stage_began = what, self._told
        self._told = time.monotonic()
        share, own = (part + done / of) / parts, done / of / parts
        left = f", {(self._told - self._stage_began) * (1 - share) / own:.0f} s left" if done else ""
        self._progress(share, desc=f"{what}: step {done} of {of}{left}")


@contextmanager
def _errors_shown() -> Iterator[None]:
    """Errors as Gradio shows them where they arise, of which nothing stays in memory."""
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        shown = _as_shown(error)
        _let_go(error)
        raise shown from None


def _as_shown(error: Exception) -> gr.Error:
    """What a visitor reads; what is no fault of the visitor's is logged with its traceback."""
    if isinstance(error, Stopped):
        told = {name: value for name, value in STOPPED.items() if name != "error"}
        return gr.Error(STOPPED["error"], **told, print_exception=False)
    if isinstance(error, ValueError):
        return gr.Error(str(error), title="That does not work", print_exception=False)
    log.error("a call failed", exc_info=error)
    if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
        text = "Out of memory: ask for fewer frames or a smaller size"
    else:  # its own text may tell where things are on this machine
        text = f"This does not work with these settings ({type(error).__name__}): try others. The demo's log says why"
    return gr.Error(text, title="That did not work", print_exception=False)


def give_memory_back() -> None:
    """Let glibc return large pieces of memory as soon as they are free.

    By itself it does so for ever larger ones only, and a server whose clips come in many sizes grows for hours.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):  # not in every C library
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)


def _let_go(error: BaseException) -> None:
    """Free what the frames of an error hold: the tensors of a run that ended early."""
    traceback.clear_frames(error.__traceback__)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def served(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler, perhaps asynchronous, whose errors are shown where they arise."""
    if inspect.iscoroutinefunction(handler):
        return _served_later(handler)

    @functools.wraps(handler)
    def safe(*args: Any, **kwargs: Any) -> Any:
        with _errors_shown():
            return handler(*args, **kwargs)

    return safe


def _served_later(handler: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(handler)
    async def safe(*args: Any, **kwargs: Any) -> Any:
        with _errors_shown():
            return await handler(*args, **kwargs)

    return safe


def while_typing(handler: Callable[..., str]) -> Callable[..., str]:
    """A handler of what may be half written: what is wrong is told in place, not as an error at each letter."""

    @functools.wraps(handler)
    def patient(*args: Any) -> str:
        try:
            return handler(*args)
        except ValueError as error:
            return not_yet(error)

    return served(patient)


def named(name: str, handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose MCP tool has that name: Gradio takes the function's own."""
    handler.__name__ = name
    return handler


def run_for(
    visits: Visits, seconds: float, components: Mapping[str, Any], handler: Callable[[Given, Job], Any]
) -> Callable[..., Any]:
    """A handler of what a visitor gave, as Gradio calls it.

    Args:
        visits: where the visitor is known.
        seconds: that a call may take.
        components: the inputs; their names are those of the API's arguments. A canvas may be left out.
        handler: may be a generator.
    """

    @contextmanager
    def started(args: tuple[Any, ...]) -> Iterator[tuple[Given, Job]]:
        *values, request, progress = args
        visit = visits.of(request.session_hash)
        with _errors_shown(), visit.at_work():
            job = Job(visit, request.request.state.asked, seconds, progress)
            job.check()
            yield dict(zip(components, values, strict=True)), job

    def run(*args: Any) -> Any:
        with started(args) as call:
            return handler(*call)

    def run_on(*args: Any) -> Any:
        with started(args) as call:
            yield from handler(*call)

    found: Any = run_on if inspect.isgeneratorfunction(handler) else run
    optional = [Parameter.empty if not isinstance(one, gr.ImageEditor) else None for one in components.values()]
    named = dict(zip(components, optional, strict=True)) | {"request": None, "progress": gr.Progress()}
    found.__signature__ = inspect.Signature(
        [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=default) for name, default in named.items()]
    )
    found.__annotations__ = {"request": gr.Request}
    return found


def note_time(request: fastapi.Request) -> None:
    """Note when a call came, for a stop to end those that wait in the queue."""
    request.state.asked = time.monotonic()
