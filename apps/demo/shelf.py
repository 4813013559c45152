"""The models that are loaded: put there when they are first asked for, let go when others need the room."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ..loading import Loaded


class Shelf:
    """Loaded models by name.

    Args:
        load: gives the model of a name.
        most: that stay loaded, beside one that is at work; those unused for longest go first. None keeps all.
    """

    def __init__(self, load: Callable[[str], Loaded], most: int | None) -> None:
        self._load, self._most = load, most
        self._loaded: dict[str, Loaded] = {}
        self._busy: str | None = None
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> Loaded:
        """A model, loaded if it is not there.

        Raises:
            ValueError: it cannot be loaded.
        """
        with self._lock:
            found = self._loaded.pop(name, None)
            if found is None:
                self._make_room()
                found = self._load(name)
            self._loaded[name] = found  # the last one is the one used last
            return found

    @property
    def names(self) -> list[str]:
        """Those that are loaded, the one unused for longest first."""
        return list(self._loaded)

    @contextmanager
    def at_work(self, name: str) -> Iterator[None]:
        """Meanwhile that model is not let go: its memory would not be free."""
        before, self._busy = self._busy, name
        try:
            yield
        finally:
            self._busy = before

    def _make_room(self) -> None:
        """For one more."""
        idle = [name for name in self._loaded if name != self._busy]
        going = [] if self._most is None else idle[: max(0, len(self._loaded) + 1 - self._most)]
        for name in going:
            del self._loaded[name]
        if going:
            free_memory()


def free_memory() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
