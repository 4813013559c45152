"""Write a folder of Moving Shapes to train on: ``python -m dattn.apps.shapes.folder clips --count 200``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..media import write_clip
from .world import NATIVE_FRAMES, NATIVE_SIZE, sample_scene


def write_folder(
    folder: Path,
    count: int,
    frames: int,
    size: int | Sequence[int] = NATIVE_SIZE,
    seed: int = 0,
    change: Callable[[np.ndarray], np.ndarray] = lambda clip: clip,
) -> None:
    """Clips, or with one frame pictures, and their captions in ``metadata.jsonl``.

    Args:
        folder: made where it is not there.
        size: side of a square in pixels, or (height, width).
        seed: the same gives the same scenes.
        change: what becomes of each clip, uint8 [frames, height, width, 3].
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        scene = sample_scene((seed, number))
        path = write_clip(change(scene.render(frames, size)), folder, f"{number:05}")
        lines.append(json.dumps({"file_name": path.name, "text": scene.caption()}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--frames", type=int, default=NATIVE_FRAMES)
    parser.add_argument("--size", type=int, default=NATIVE_SIZE)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    write_folder(options.folder, options.count, options.frames, options.size, options.seed)


if __name__ == "__main__":
    main()
