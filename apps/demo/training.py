"""A run of ``dattn train-lora`` beside the demo: what it says, its losses, and its end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

PATIENCE = 10
"""Seconds that a run has to end by itself when it is told to."""
BAR = re.compile(r"(\w+): .*?(\d+)/(\d+) ")
"""How progress bars are written."""


class Training(NamedTuple):
    """A process that trains, and where it writes.

    It is a process of its own so that all its memory is free when it ends, however it ends.
    """

    process: subprocess.Popen[bytes]
    output: Path

    @property
    def runs(self) -> bool:
        """Whether it is still at work."""
        return self.process.poll() is None

    def stage(self) -> tuple[str, int, int] | None:
        """What it does now, how much of it is done, and of how much; None before it says."""
        found = BAR.findall(self._said())
        return (found[-1][0], int(found[-1][1]), int(found[-1][2])) if found else None

    def losses(self) -> list[dict[str, float]]:
        """Its log so far."""
        log = self.output / "training.jsonl"
        lines = log.read_text().splitlines(keepends=True) if log.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def picture(self) -> tuple[str | None, float]:
        """The samples of the prompt so far, and when they were written; None and 0 before there are any."""
        path = self.output / "validation.png"
        return (str(path), path.stat().st_mtime) if path.is_file() else (None, 0.0)

    def check(self) -> None:
        """Raise ``ValueError`` with what it complained of, if it did not end well."""
        if self.process.wait() != 0:
            last = next((line for line in reversed(self._said().splitlines()) if line.strip()), "no word")
            raise ValueError(last.removeprefix("dattn train-lora: ").replace(str(self.output.parent), "")[:300])

    def _said(self) -> str:
        return (self.output / "output.txt").read_text(errors="replace")


@contextmanager
def training(words: Sequence[str], output: Path, device: str) -> Iterator[Training]:
    """Train for as long as the context is open.

    Args:
        words: of the command line, without the folder for what it writes.
        output: that folder; it is there.
        device: to train on.
    """
    place = {"ACCELERATE_USE_CPU": "true"} if device == "cpu" else {"ACCELERATE_TORCH_DEVICE": device}
    command = [sys.executable, "-P", "-m", "dattn.apps.train_lora", *words, "--output", str(output)]
    with (output / "output.txt").open("wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env={**os.environ, **place})
    try:
        yield Training(process, output)
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
