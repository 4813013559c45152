"""``dattn recipes``: the recipes that are here, and what is in one."""

from __future__ import annotations

import json
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
        found = figures.get("measured", {})
        rows.append([path.stem, recipe.model, grid, found.get("speed_up"), _ssim(found)])
    print(table(("recipe", "model", "grid", "times as fast", "SSIM"), rows) if rows else "there are no recipes here")
    return 0


def _ssim(found: dict[str, float]) -> float | None:
    return 1 - found["ssim"] if "ssim" in found else None


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
