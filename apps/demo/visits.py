"""What belongs to one visitor: files, finished runs, and the wish to stop."""

from __future__ import annotations

import math
import shutil
import tempfile
import textwrap
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .edits import Edited
    from .inside import Inside

MOST_RUNS = 24
"""Runs that are kept for a visitor; the oldest go first."""
CAPTION = 40
"""Letters of each part of a caption."""
MOST_VISITS = 64
GRACE = 300.0
"""Seconds that a visit outlives its page: a phone that sleeps looks like one that has gone."""
NO_LORA, OWN_LORA = "none", "LoRA of this visit"


class Stopped(Exception):
    """The visitor does not want the result any more."""


@dataclass
class Visit:
    """One visitor.

    Attributes:
        folder: for files; removed with the visit.
        runs: what was made, newest first: (file, caption).
        stopped: when the visitor last wanted all to end, by ``time.monotonic``.
        edit: the last one, for a look at other words, and the folder of its files.
        inside: what the last look inside a model found.
        lora: the last one trained: the name of its model, and its folder.
        count: runs so far.
        seen: when the visitor last did something, or something ran, for the oldest to go first.
        away: when the page was last lost; None while it is there.
        running: calls that run now.
        nameless: whether it is that of a call without a session, which nobody will ask for again.
    """

    folder: Path
    runs: list[tuple[str, str]] = field(default_factory=list)
    stopped: float = 0.0
    edit: Edited | None = None
    edit_place: Path | None = None
    inside: Inside | None = None
    lora: tuple[str, Path] | None = None
    count: int = 0
    seen: float = 0.0
    away: float | None = None
    running: int = 0
    nameless: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def stop(self) -> None:
        """End what was asked for until now."""
        self.stopped = time.monotonic()

    def greet(self) -> None:
        """The visitor is here."""
        self.seen, self.away = time.monotonic(), None

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """A call runs meanwhile."""
        with self._lock:
            self.running += 1
        try:
            yield
        finally:
            with self._lock:
                self.running -= 1

    def place(self) -> Path:
        """A new folder for the files of a run; those of a run long ago are removed.

        Raises:
            Stopped: the visitor has gone.
        """
        with self._lock:
            self.count += 1
            shutil.rmtree(self.folder / f"run-{self.count - MOST_RUNS}", ignore_errors=True)
            place = self.folder / f"run-{self.count}"
            try:
                place.mkdir()
            except FileNotFoundError:
                raise Stopped from None
            return place

    def lora_for(self, model: Any, choice: Any) -> Path | None:
        """The folder of the LoRA that was chosen for a model; None of ``NO_LORA``.

        Raises:
            ValueError: there is none, or it is for another model.
        """
        if choice == NO_LORA:
            return None
        if choice != OWN_LORA:
            raise ValueError(f"LoRA {str(choice)[:40]!r}: choose {NO_LORA} or {OWN_LORA}")
        if self.lora is None:
            raise ValueError("LoRA: you have not trained one yet; the tab Fine-tune does")
        if self.lora[0] != model:
            raise ValueError(f"LoRA: yours is for {self.lora[0]}; choose that model")
        return self.lora[1]

    def keep(self, file: Path, what: str, prompt: str, seed: int) -> None:
        """Show a file in the gallery: what made it, of which prompt and seed."""
        parts = (textwrap.shorten(part, CAPTION, placeholder=" …") for part in (what, prompt))
        self.runs = [(str(file), f"{' · '.join(parts)} · seed {seed}"), *self.runs][:MOST_RUNS]


class Visits:
    """All visitors, by the name of their session; programs without one are strangers to each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folder = Path(tempfile.mkdtemp(prefix="dattn-demo-"))
        self._visits: dict[str, Visit] = {}
        self._stops: dict[str, float] = {}

    def known(self, session: str | None) -> Visit | None:
        """The visit of a session; None where it has none."""
        with self._lock:
            visit = self._visits.get(session or "")
        if visit is not None:
            visit.greet()
        return visit

    def of(self, session: str | None) -> Visit:
        """The visit of a session; a new one where it is not known, for which one may have to go."""
        name = session or uuid.uuid4().hex
        with self._lock:
            if name not in self._visits:
                folder = Path(tempfile.mkdtemp(dir=self._folder))
                self._visits[name] = Visit(folder, stopped=self._stops.pop(name, 0.0), nameless=not session)
            visit = self._visits[name]
            visit.greet()
            going = self._oldest(name) if len(self._visits) > MOST_VISITS else None
        if going is not None:
            self.leave(going)
        return visit

    def stop(self, session: str) -> None:
        """End what a visitor asked for until now, also where the first call still waits; nobody goes for it."""
        visit = self.known(session)
        if visit is not None:
            visit.stop()
            return
        with self._lock:
            self._stops[session] = time.monotonic()
            if len(self._stops) > MOST_VISITS:
                del self._stops[next(iter(self._stops))]

    def _oldest(self, but: str) -> str | None:
        """The one unseen for longest, nameless ones before sessions, of the others for which nothing runs."""
        idle = [name for name, visit in self._visits.items() if not visit.running and name != but]
        return min(idle, key=lambda name: (not self._visits[name].nameless, self._visits[name].seen), default=None)

    def lose(self, session: str | None, grace: float = GRACE) -> None:
        """The page was closed or its device sleeps: the visitor leaves, if nothing is heard until the grace is over."""
        visit = self._visits.get(session or "")
        if visit is None:
            return
        visit.away = lost = time.monotonic()
        timer = threading.Timer(grace, lambda: self.leave(session) if visit.away == lost else None)
        timer.daemon = True
        timer.start()

    def leave(self, session: str | None) -> None:
        """The visitor has gone: stop what runs and remove the files."""
        with self._lock:
            visit = self._visits.pop(session or "", None)
        if visit is not None:
            visit.stopped = math.inf
            shutil.rmtree(visit.folder, ignore_errors=True)

    def close(self) -> None:
        """Remove all files."""
        for name in list(self._visits):
            self.leave(name)
        shutil.rmtree(self._folder, ignore_errors=True)
