"""``dattn recipes``: the recipes that are here, and what is in one."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from .arguments import Parser
from .table import table

EXAMPLES = """\
  dattn recipes
  dattn recipes shapes-wan-4x
  dattn recipes outputs/mine.json
  dattn recipes shapes-wan-4x --json"""


def parser() -> Parser:
    """The command's options."""
    p = Parser("recipes", "List the recipes that are here, or show one.", EXAMPLES)
    p.add_argument("recipe", nargs="?", help="a name from the list, or a file")
    p.add_argument("--json", action="store_true", help="the file as it is")
    return p


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    options = parser().parse_args(argv)
    from dattn.recipe import Recipe
    from dattn.shelf import places
    from dattn.tuning.goal import Goal

    from .recipe_report import text

    if options.recipe:
        recipe = Recipe.load(_place(options.recipe))
        print(json.dumps(recipe.to_dict(), indent=2) if options.json else text(recipe))
        return 0
    rows = []
    for path in places():
        try:
            recipe = Recipe.load(path)
        except ValueError as error:
            print(error, file=sys.stderr)
            continue
        figures = recipe.figures or {}
        grid = "x".join(map(str, recipe.grid[:3])) if recipe.grid else "any"
        ways = [figures.get(name, {}) for name in ("predicted", "measured")]
        goal = str(Goal(**figures["goal"])) + ("" if figures["met"] else ", missed") if figures else None
        rows.append([path.stem, recipe.model, grid, goal, *[figure for way in ways for figure in _figures(way)]])
    if not rows:
        print("there are no recipes here")
        return 0
    names = "times as fast", "PSNR dB", "SSIM"
    print(table(("recipe", "model", "tokens", "goal", *(f"expected {name}" for name in names), *names), rows))
    return 0


def _figures(found: dict[str, float]) -> list[float | None]:
    """Speed, PSNR and SSIM."""
    from dattn.tuning.goal import decibels

    if not found:
        return [None] * 3
    psnr, ssim = decibels(found["mse"]), 1 - found["ssim"]
    return [found["speed_up"], *(value if math.isfinite(value) else None for value in (psnr, ssim))]


def _place(name: str) -> Path:
    """The file that a name means.

    Raises:
        ValueError: neither a file nor a recipe that is shipped.
    """
    from dattn.shelf import places

    known = {path.stem: path for path in places()}
    if name in known:
        return known[name]
    if Path(name).is_file():
        return Path(name)
    raise ValueError(f"recipe {name}: no such file, and none of {', '.join(known) or 'those shipped (there are none)'}")
