"""What was measured, on disk: a killed study goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np


class Store:
    """A folder of measurements, or none: then nothing outlives the process.

    Args:
        folder: made where it is missing; None keeps nothing.
        settings: what all measurements were made with.

    Raises:
        ValueError: the folder holds measurements that were made with other settings; nothing is changed.
    """

    def __init__(self, folder: Path | None, settings: dict[str, Any]) -> None:
        self._folder = folder
        self._figures: dict[str, Any] = {}
        self._arrays: dict[str, np.ndarray] = {}
        self._took: dict[str, float] = {}
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path, plain = folder / "settings.json", json.loads(json.dumps(settings))
        held = json.loads(path.read_text()) if path.is_file() else plain
        for name in sorted(held.keys() | plain.keys()):
            if held.get(name) != plain.get(name):
                was, now = held.get(name), plain.get(name)
                raise ValueError(f"folder {folder}: made with {name}={was!r}, not {now!r}; name another folder")
        _write(path, plain)
        if self._clock.is_file():
            self._took = json.loads(self._clock.read_text())

    @property
    def _clock(self) -> Path:
        assert self._folder is not None
        return self._folder / "seconds.json"

    @property
    def seconds(self) -> float:
        """What all measurements took, those of earlier processes among them."""
        return sum(self._took.values())

    def do(self, name: str, measure: Callable[[], Any]) -> Any:
        """What ``measure`` gives, JSON-ready; what is there already is not measured again."""
        if self._folder is None:
            if name not in self._figures:
                text = json.dumps(self._timed(name, measure))
                self._figures[name] = json.loads(text)  # as from a file: keys are text
            return self._figures[name]
        path = self._folder / f"{name}.json"
        if not path.is_file():
            _write(path, self._timed(name, measure))
            _write(self._clock, self._took)
        return json.loads(path.read_text())

    def _timed(self, name: str, measure: Callable[[], Any]) -> Any:
        began = perf_counter()
        result = measure()
        self._took[name] = perf_counter() - began
        return result

    def keep(self, name: str, array: np.ndarray) -> None:
        """Keep an array."""
        self._arrays[name] = array
        if self._folder is not None:
            part = self._folder / f"part-{name}.npz"
            np.savez_compressed(part, array=array)
            part.replace(self._folder / f"{name}.npz")

    def array(self, name: str) -> np.ndarray:
        """An array that was kept."""
        if name not in self._arrays and self._folder is not None:
            self._arrays[name] = np.load(self._folder / f"{name}.npz")["array"]
        return self._arrays[name]


def _write(path: Path, content: Any) -> None:
    """The file whole, or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1))
    part.replace(path)
