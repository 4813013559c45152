"""``dattn tune``: the attention for a model, a clip and this machine, found by measuring, as a recipe with a report."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .arguments import Parser, add_model_options, at_least, writable_folder

EXAMPLES = """\
  dattn tune --quality 0.95 -o outputs/shapes.json
  dattn tune --model Wan-AI/Wan2.1-T2V-14B-Diffusers --size 720x1280 --frames 81 --quality 0.95 -o wan.json \\
             --prompts "a fox in the snow" "a ship in a storm" "a street at night"
  dattn tune --speed-up 2 -o outputs/twice.json
  dattn generate --pattern outputs/shapes.json

Killed, it goes on where it stopped: run the same command again. Another bound takes the same measurements:
  dattn tune --psnr 35 --study outputs/shapes.study -o outputs/near.json"""
SHAPES = ("a red circle moving right", "a green square moving left")
PICTURES = ("a red circle above a blue square", "a yellow triangle")


def parser() -> Parser:
    """The command's options."""
    p = Parser("tune", "Find the attention for a model, a clip and this machine, by measuring.", EXAMPLES)
    bound = p.add_mutually_exclusive_group()
    bound.add_argument("--quality", type=float, help="least SSIM to dense attention's result (default: 0.95)")
    bound.add_argument("--psnr", type=float, help="or least PSNR to it, in dB")
    bound.add_argument("--speed-up", type=float, help="or how many times as fast the whole call should be")
    p.add_argument(
        "--output",
        "-o",
        type=Path,
        required=True,
        metavar="FILE.json",
        help="the recipe; its page beside it, FILE.png and FILE.txt",
    )
    p.add_argument("--study", type=Path, metavar="DIR", help="measurements (default: FILE.study)")
    p.add_argument("--candidates", nargs="+", metavar="PATTERN", help="what is tried (default: suits the grid)")
    p.add_argument("--prompts", nargs="+", metavar="TEXT", help="two or three; the last one checks the result")
    p.add_argument("--size", type=_size, metavar="HxW", help="pixels, such as 720x1280")
    p.add_argument("--frames", type=at_least(1), help="(demo model: 129, 4x its native length)")
    p.add_argument("--steps", type=at_least(1), help="denoising steps")
    p.add_argument("--guidance", type=float, help="guidance scale")
    p.add_argument("--seed", type=at_least(0), default=0, help="(default: %(default)s)")
    add_model_options(p)
    return p


def _size(text: str) -> tuple[int, int]:
    """An option type: ``720x1280``."""
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r}: write height x width in pixels, such as 720x1280")
    return int(sides[0]), int(sides[1])


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    options = parser().parse_args(argv)
    if options.output.suffix != ".json":
        raise ValueError(f"output {options.output}: a recipe ends in .json")
    writable_folder(options.output.parent)
    from dattn.tuning.goal import Goal

    goal = {"quality": options.quality, "psnr": options.psnr, "speed_up": options.speed_up}
    Goal.of(**goal)  # before the model is loaded
    import dattn

    from .loading import load, resolve
    from .recipe_report import picture, text
    from .record import provenance

    resolve(options.model)
    loaded = load(options.model, options.device, options.dtype, options.lora)
    prompts, call = _prompts(options, loaded), _call(options, loaded)
    loaded.pipe.set_progress_bar_config(leave=False, disable=None)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    recipe = dattn.tune(
        loaded.pipe, prompts, **goal, candidates=options.candidates, seed=options.seed, backend=options.backend,
        folder=options.study or options.output.with_suffix(".study"), tell=_teller(), **call,
    )  # fmt: skip
    figures = (recipe.figures or {}) | {"name": loaded.name} | provenance("tune", argv)
    recipe = replace(recipe, figures=figures)
    recipe.save(options.output)
    pages = [options.output.with_suffix(suffix) for suffix in (".png", ".txt")]
    picture(recipe, pages[0])
    pages[1].write_text(text(recipe) + "\n")
    print(f"\n{text(recipe)}\n\nwritten: {', '.join(map(str, [options.output, *pages]))}")
    return 0 if figures["met"] else 1


def _teller() -> Callable[[str, int, int], None]:
    """Says what comes next, and when."""
    began = time.perf_counter()

    def tell(what: str, number: int, of: int) -> None:
        print(f"[{number}/{of}] {time.perf_counter() - began:.0f} s: {what}", flush=True)

    return tell


def _prompts(options: argparse.Namespace, loaded: Any) -> list[str]:
    """Those that are given, or ours for a demo model.

    Raises:
        ValueError: none for another model.
    """
    if options.prompts:
        return list(options.prompts)
    if loaded.native is None:
        raise ValueError(f"no --prompts: {loaded.name} needs to be told what to show; give two or three")
    return list(SHAPES if loaded.makes_video else PICTURES)


def _call(options: argparse.Namespace, loaded: Any) -> dict[str, Any]:
    """The arguments of the pipeline's call that stay the same."""
    from .running import Request

    height, width = options.size or (None, None)
    request = Request("", options.seed, options.frames, height, width, options.steps, options.guidance).filled(loaded)
    call = request.call(loaded)
    return {name: value for name, value in call.items() if name not in ("prompt", "generator", "output_type")}
