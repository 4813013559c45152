"""How often the judge accepts what the model makes: ``python -m dattn.apps.shapes.score --captions 100``.

Prints each verdict and the shares of right colours, shapes, motions and clips; ``--sheet`` draws the clips.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .judge import Verdict, judge
from .world import NATIVE_FRAMES, NATIVE_SIZE, sample_scene

if TYPE_CHECKING:
    from diffusers import WanPipeline

MODEL_FOLDER = Path(__file__).resolve().parents[2] / "assets" / "models" / "shapes-wan"
FRESH = 20_000_000
"""Captions of scenes with seeds from here on are for scoring only."""
STEPS = 20
GUIDANCE = 4.0


@dataclass(frozen=True)
class Score:
    """Shares in [0, 1]: objects whose colour, shape, motion and position are right; clips that are."""

    color: float
    shape: float
    motion: float
    position: float
    clips: float

    @classmethod
    def of(cls, verdicts: Sequence[Verdict]) -> Score:
        """Average the verdicts of some clips."""
        objects = [o for v in verdicts for o in v.objects]

        def share(aspect: str) -> float:
            return float(np.mean([getattr(o, aspect) for o in objects]))

        aspects = {name: share(name) for name in ("color", "shape", "motion", "position")}
        return cls(**aspects, clips=float(np.mean([v.ok for v in verdicts])))

    def __str__(self) -> str:
        return (
            f"clips right {self.clips:.0%} (objects: colour {self.color:.0%}, shape {self.shape:.0%}, "
            f"motion {self.motion:.0%}, position {self.position:.0%})"
        )


def fresh_captions(count: int, objects: int | None = 1, first: int = 0) -> list[str]:
    """Captions of ``count`` scenes that no training run has drawn; the same words may well occur in training."""
    return [sample_scene(FRESH + first + i, objects).caption() for i in range(count)]


def generate(
    pipe: WanPipeline,
    captions: Sequence[str],
    frames: int = NATIVE_FRAMES,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    seed: int = 0,
) -> np.ndarray:
    """One clip for each caption, each from a seed of its own: float32 ``[captions, frames, 64, 64, 3]``."""
    import torch

    return pipe(
        list(captions),
        height=NATIVE_SIZE,
        width=NATIVE_SIZE,
        num_frames=frames,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(seed + i) for i in range(len(captions))],
    ).frames


def sheet(clips: np.ndarray, path: Path, columns: int = 8) -> None:
    """Draw a contact sheet: one row for each clip of ``[clips, frames, height, width, 3]`` in [0, 1]."""
    from PIL import Image

    picks = np.linspace(0, clips.shape[1] - 1, columns).round().astype(int)
    tiles = np.pad(clips[:, picks], ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=0.5)
    rows = np.concatenate(list(np.concatenate(list(tiles.swapaxes(0, 1)), axis=2)), axis=0)
    Image.fromarray((rows * 255).round().astype(np.uint8)).save(path)


def main() -> None:
    """Read the command line, generate in batches, judge and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER, help="pipeline folder")
    parser.add_argument("--captions", type=int, default=16, help="how many fresh captions")
    parser.add_argument("--first", type=int, default=0, help="skip this many fresh captions")
    parser.add_argument("--objects", type=int, default=1, help="objects in each; 0 for the training mix")
    parser.add_argument("--frames", type=int, default=NATIVE_FRAMES)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="write a contact sheet (PNG) here")
    parser.add_argument("--threads", type=int, default=2)
    run(parser.parse_args())


def run(args: argparse.Namespace) -> Score:
    """Generate in batches, judge and print."""
    import torch
    from diffusers import WanPipeline

    torch.set_num_threads(args.threads)
    pipe = WanPipeline.from_pretrained(args.model)
    captions = fresh_captions(args.captions, args.objects or None, args.first)
    clips: list[np.ndarray] = []
    verdicts: list[Verdict] = []
    for i in range(0, len(captions), args.batch):
        part = captions[i : i + args.batch]
        made = generate(pipe, part, args.frames, args.steps, args.guidance, args.seed + i)
        clips.extend(made)
        verdicts.extend(judge(clip, caption) for clip, caption in zip(made, part, strict=True))
        print(*verdicts[i:], sep="\n", flush=True)
    score = Score.of(verdicts)
    print(score)
    if args.sheet:
        sheet(np.stack(clips), args.sheet)
    return score


if __name__ == "__main__":
    main()
