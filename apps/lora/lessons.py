"""What the teacher said of batches, kept on disk: with many tokens its pass is the dearest part of a step."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor


class Lessons:
    """Batches that come again after a while, each taught once.

    Args:
        folder: for files, in one of those that hold nothing else.
        count: of batches, over all processes, before the first comes again; None for batches that are all new.
        anywhere: whether something that is so here, or not, is so in a process that the teacher cannot do without.
    """

    def __init__(self, folder: Path, count: int | None, anywhere: Callable[[bool], bool] = bool) -> None:
        self._folder, self._count, self._anywhere = folder, count, anywhere

    def position(self, number: int) -> int:
        """Of the batch that is seen at a position: itself, or the one that comes again there."""
        return number if self._count is None else number % self._count

    def target(self, position: int, teach: Callable[[], Tensor]) -> Tensor:
        """What the teacher says of a batch; it is asked where that is not on disk."""
        if self._count is None:
            return teach()
        path = self._folder / f"{position}.safetensors"
        missing = not path.is_file()
        if self._anywhere(missing):
            said = teach()
        if missing:
            self._folder.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            save_file({"target": said.cpu().contiguous()}, part)
            part.replace(path)
        return load_file(path)["target"]

    def forget(self) -> None:
        """Remove the files."""
        shutil.rmtree(self._folder.parent, ignore_errors=True)
