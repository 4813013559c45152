"""Samples of the moments of a run, kept so that one that goes on shows them too."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

MOST = 7
"""Moments beside the first that are shown; of more, the last ones."""


class Moments:
    """A folder with a file of samples for each moment; what is no longer shown is dropped.

    Args:
        folder: made where something is kept.
        made_of: what samples depend on; those of anything else are dropped.
        step: those up to it are kept, as are none at 0.
    """

    def __init__(self, folder: Path, made_of: Sequence[Any], step: int) -> None:
        self._folder, self._made_of = folder, json.dumps(list(made_of))
        self._moments: list[tuple[Path | None, str, dict[str, np.ndarray]]] = []
        for path in sorted(folder.glob("step-*.safetensors"), key=_step):
            found = self._read(path) if step and _step(path) <= step else None
            if found is None:
                path.unlink()
            else:
                self._moments.append((path, *found))
        if self._moments and _step(self._moments[0][0]) != 0:  # there is nothing to compare with
            self._moments.clear()

    @property
    def shown(self) -> list[tuple[str, dict[str, np.ndarray]]]:
        """The moments, each with its samples by prompt: the first and the last ones."""
        return [(when, clips) for _, when, clips in self._moments]

    def add(self, when: str, step: int | None, clips: Mapping[str, np.ndarray]) -> None:
        """A moment with its samples, uint8 [frames, height, width, 3]; without a step it is not kept."""
        path = None if step is None else self._folder / f"step-{step}.safetensors"
        if path is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            whole = {name: np.ascontiguousarray(clip) for name, clip in clips.items()}  # the file knows no other order
            save_file(whole, part, {"when": when, "made_of": self._made_of})
            part.replace(path)
        self._moments.append((path, when, dict(clips)))
        for old, *_ in self._moments[1:-MOST]:
            if old is not None:
                old.unlink(missing_ok=True)
        del self._moments[1:-MOST]

    def _read(self, path: Path) -> tuple[str, dict[str, np.ndarray]] | None:
        """A moment; None where its samples are of something else."""
        with safe_open(path, "np") as file:
            told = file.metadata()
            if told["made_of"] != self._made_of:
                return None
            return told["when"], {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _step(path: Path | None) -> int:
    return -1 if path is None else int(path.stem.partition("-")[2])
