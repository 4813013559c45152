"""The memory of ``dattn evaluate``: a file per cell, a line per clip, and the stock clips to compare with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from .publish import slug
from .record import write_json
from .running import Result

INSIDE = "inside.json"


@dataclass(frozen=True)
class Cell:
    """One pattern at one length, a multiple of the model's native length; ``contents`` tells what its files hold."""

    pattern: str
    length: int
    contents: str | None = None

    @property
    def file(self) -> str:
        """The name of its file."""
        contents = f"-{self.contents}" if self.contents else ""
        return f"{slug(self.pattern)}{contents}@{self.length}x.jsonl"


@dataclass(frozen=True)
class Clip:
    """What one clip shows, and its seed."""

    caption: str
    seed: int

    @property
    def key(self) -> str:
        """A short name for files."""
        return f"{slug(self.caption)[:60]}-{self.seed}-{hashlib.sha256(self.caption.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Store:
    """A folder of measured cells, all made with the same settings."""

    folder: Path

    def begin(self, settings: dict[str, Any]) -> None:
        """Make the folder and note the settings.

        Raises:
            ValueError: the folder holds cells that were made with other settings; nothing is changed.
        """
        path = self.folder / "settings.json"
        if path.is_file():
            self._compare(json.loads(path.read_text()), settings)
        for name in ("cells", "stock"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        write_json(path, settings)

    def _compare(self, held: dict[str, Any], asked: dict[str, Any]) -> None:
        for name in sorted(held.keys() | asked.keys()):
            was, now = held.get(name), asked.get(name)
            if was != now:
                raise ValueError(f"output {self.folder}: made with {name}={was}, not {now}; name another place")

    def rows(self, cell: Cell) -> dict[Clip, dict[str, Any]]:
        """The clips of a cell that are done; a line cut short by an interruption is not one."""
        path = self.folder / "cells" / cell.file
        lines = path.read_text().splitlines() if path.is_file() else []
        return {Clip(row["caption"], row["seed"]): row for row in _readable(lines)}

    def add(self, cell: Cell, clip: Clip, result: Result) -> None:
        """Append a line."""
        row = {"caption": clip.caption, "seed": clip.seed, "length": cell.length, **result.figures()}
        path = self.folder / "cells" / cell.file
        cut = path.is_file() and not path.read_bytes().endswith(b"\n")
        with path.open("a") as file:
            file.write("\n" * cut + json.dumps(row) + "\n")

    def inside(self) -> dict[str, dict[str, Any]]:
        """What ``dattn probe`` found of cells, by the names of their files."""
        path = self.folder / INSIDE
        return json.loads(path.read_text()) if path.is_file() else {}

    def add_inside(self, found: dict[str, dict[str, Any]]) -> None:
        """Keep what was found of more cells."""
        write_json(self.folder / INSIDE, self.inside() | found)

    def reference(self, length: int, clip: Clip) -> np.ndarray | None:
        """The stock clip of the same length, caption and seed, if it is there."""
        path = self._reference_path(length, clip)
        return np.load(path)["clip"] if path.is_file() else None

    def keep_reference(self, length: int, clip: Clip, frames: np.ndarray) -> None:
        """Keep a stock clip for later comparisons."""
        path = self._reference_path(length, clip)
        part = path.with_name(f"part-{path.name}")
        np.savez_compressed(part, clip=frames)
        part.replace(path)

    def _reference_path(self, length: int, clip: Clip) -> Path:
        return self.folder / "stock" / f"{clip.key}@{length}x.npz"


def _readable(lines: Sequence[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def summary(cell: Cell, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of a cell: means over its clips, medians of the seconds."""
    judged = [row["judged"] for row in rows if row["judged"] is not None]
    return {
        "pattern": cell.pattern,
        "length": cell.length,
        "clips": len(rows),
        "judged": len(judged),
        "accuracy": fmean(judged) if judged else None,
        **{name: _mean(rows, name) for name in ("psnr", "ssim")},
        **{name: median(row[name] for row in rows) for name in ("seconds", "denoiser_seconds")},
        **{name: _mean(rows, name) for name in ("density", "pooled_share", "work")},
    }


def _mean(rows: Sequence[dict[str, Any]], name: str) -> float | None:
    values = [row[name] for row in rows if row[name] is not None]
    return fmean(values) if values else None
