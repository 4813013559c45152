"""What belongs to one visitor: files, finished runs, and the wish to stop."""

from __future__ import annotations

import shutil
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .edits import Edited

MOST_RUNS = 24
"""Runs that are kept for a visitor; the oldest go first."""


@dataclass
class Visit:
    """One visitor.

    Attributes:
        folder: for files; removed with the visit.
        runs: what was made, newest first: (file, caption).
        stop: set while the visitor wants the current run to end.
        edit: the last one, for a look at other words.
        count: runs so far.
    """

    folder: Path
    runs: list[tuple[str, str]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    edit: Edited | None = None
    count: int = 0

    def place(self) -> Path:
        """A new folder for the files of a run; those of a run long ago are removed."""
        self.count += 1
        shutil.rmtree(self.folder / f"run-{self.count - MOST_RUNS}", ignore_errors=True)
        place = self.folder / f"run-{self.count}"
        place.mkdir(parents=True)
        return place

    def keep(self, file: Path, caption: str) -> None:
        """Show a file in the gallery."""
        self.runs = [(str(file), caption), *self.runs][:MOST_RUNS]


class Visits:
    """All visitors, by the name of their session."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folder = Path(tempfile.mkdtemp(prefix="dattn-demo-"))
        self._visits: dict[str, Visit] = {}

    def of(self, session: str | None) -> Visit:
        """The visit of a session; a new one where it is not known."""
        name = session or "nobody"
        with self._lock:
            if name not in self._visits:
                self._visits[name] = Visit(Path(tempfile.mkdtemp(dir=self._folder)))
            return self._visits[name]

    def leave(self, session: str | None) -> None:
        """The visitor has gone: stop what runs and remove the files."""
        with self._lock:
            visit = self._visits.pop(session or "nobody", None)
        if visit is not None:
            visit.stop.set()
            shutil.rmtree(visit.folder, ignore_errors=True)

    def close(self) -> None:
        """Remove all files."""
        for name in list(self._visits):
            self.leave(name)
        shutil.rmtree(self._folder, ignore_errors=True)
