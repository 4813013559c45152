"""Write a folder of clips that the video model itself makes, for LoRAs that learn from it with ``--distill``:
``python -m dattn.apps.shapes.own_clips clips --count 25 --frames 129 --steps 12``. Only what the judge accepts is kept.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..media import write_clip
from .judge import judge
from .score import GUIDANCE, MODEL_FOLDER, STEPS, generate
from .world import NATIVE_FRAMES, sample_scene

if TYPE_CHECKING:
    from diffusers import WanPipeline

OWN = 30_000_000
"""Captions are those of scenes with seeds from here on, which the model has not seen and is not scored by."""
PATIENCE = 20
"""Clips in a row that may be wrong."""


def write_own_clips(
    pipe: WanPipeline, folder: Path, count: int, frames: int, steps: int = STEPS, guidance: float = GUIDANCE
) -> None:
    """Make clips of one-object captions until ``count`` are right; what the folder holds already counts.

    Args:
        folder: made where it is not there; clips and ``metadata.jsonl``, a line for each as it is made.
        frames: of each clip.

    Raises:
        RuntimeError: ``PATIENCE`` clips in a row are wrong: the model makes none of such a length.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listing = folder / "metadata.jsonl"
    made = [json.loads(line)["file_name"] for line in listing.read_text().splitlines()] if listing.exists() else []
    number = 1 + max((int(Path(name).stem) for name in made), default=-1)
    wrong = 0
    while len(made) < count:
        if wrong == PATIENCE:
            raise RuntimeError(
                f"{PATIENCE} clips of {frames} frames in a row are wrong; {len(made)} are kept in {folder}"
            )
        caption = sample_scene(OWN + number, 1).caption()
        clip = generate(pipe, [caption], frames, steps, guidance, OWN + number)[0]
        verdict = judge(clip, caption)
        print(number, verdict, flush=True)
        wrong = 0 if verdict.ok else wrong + 1
        if verdict.ok:
            path = write_clip(np.rint(clip * 255).astype(np.uint8), folder, f"{number:05}")
            with listing.open("a") as lines:
                lines.write(json.dumps({"file_name": path.name, "text": caption}) + "\n")
            made.append(path.name)
        number += 1


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    from diffusers import WanPipeline

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER, help="pipeline folder")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--frames", type=int, default=NATIVE_FRAMES)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    options = parser.parse_args(argv)
    pipe = WanPipeline.from_pretrained(options.model)
    write_own_clips(pipe, options.folder, options.count, options.frames, options.steps, options.guidance)


if __name__ == "__main__":
    main()
