"""How often the judge accepts an image model's pictures: ``python -m dattn.apps.shapes.score_pictures --model DIR``.

Prints the verdicts that are not right, and the shares for one object and for two; ``--sheet`` draws the pictures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .judge import Verdict
from .pictures import caption_of, judge_picture, sample_picture
from .score import FRESH, STEPS, Score, sheet
from .world import NATIVE_SIZE


def fresh_captions(count: int, objects: int, first: int = 0) -> list[str]:
    """Captions of ``count`` pictures that no training run has drawn; the same words may well occur in training."""
    return [caption_of(sample_picture(FRESH + first + i, objects)) for i in range(count)]


def generate(pipe: Any, captions: Sequence[str], steps: int, seed: int, **call: Any) -> np.ndarray:
    """One picture for each caption, each from a seed of its own: float32 ``[captions, 64, 64, 3]`` in [0, 1]."""
    import torch

    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(captions))]
    size = {"height": NATIVE_SIZE, "width": NATIVE_SIZE, "num_inference_steps": steps}
    return pipe(list(captions), generator=generators, output_type="np", **size, **call).images


def how_to_call(folder: Path) -> dict[str, Any]:
    """Guidance and further arguments of the call, from the folder's ``shapes.json``."""
    settings = json.loads((folder / "shapes.json").read_text())
    guidance = {} if settings["guidance"] is None else {"guidance_scale": settings["guidance"]}
    return guidance | settings.get("extra", {})


def run(args: argparse.Namespace) -> dict[int, Score]:
    """Generate in batches, judge and print."""
    import torch
    from diffusers import DiffusionPipeline

    torch.set_num_threads(args.threads)
    pipe = DiffusionPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    scores: dict[int, Score] = {}
    pictures: list[np.ndarray] = []
    for objects in (1, 2):
        captions = fresh_captions(args.captions, objects, args.first)
        verdicts: list[Verdict] = []
        for i in range(0, len(captions), args.batch):
            part = captions[i : i + args.batch]
            made = generate(pipe, part, args.steps, args.seed + i, **batched(how_to_call(args.model), len(part)))
            pictures.extend(made)
            verdicts += [judge_picture(picture, caption) for picture, caption in zip(made, part, strict=True)]
        print(*(v for v in verdicts if not v.ok), sep="\n", flush=True)
        scores[objects] = Score.of(verdicts)
        print(f"{objects} object{'s' * (objects > 1)}: {scores[objects]}", flush=True)
    if args.sheet:
        rows = np.stack(pictures[: len(pictures) // 8 * 8])
        sheet(rows.reshape(-1, 8, *rows.shape[1:]), args.sheet)
    return scores


def batched(call: dict[str, Any], count: int) -> dict[str, Any]:
    """The call for ``count`` captions: a negative prompt is wanted for each."""
    return {name: [value] * count if name == "negative_prompt" else value for name, value in call.items()}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="pipeline folder")
    parser.add_argument("--captions", type=int, default=100, help="how many fresh captions, of one object and of two")
    parser.add_argument("--first", type=int, default=0, help="skip this many fresh captions")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="write a contact sheet (PNG) here")
    parser.add_argument("--threads", type=int, default=2)
    run(parser.parse_args())


if __name__ == "__main__":
    main()
