"""Measured recipes that ``"auto"`` finds: those of a clone's ``assets/recipes``, and of the folder DATTN_RECIPES."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dattn.recipe import Recipe

VARIABLE = "DATTN_RECIPES"


def identity(model: Any) -> str:
    """A short hash of a model's configuration, whatever its weights; ``""`` of one that has none."""
    config = getattr(model, "config", None)
    if config is None:
        return ""
    known = {name: value for name, value in dict(config).items() if not name.startswith("_")}
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:16]


def places() -> Iterator[Path]:
    """The files; those of DATTN_RECIPES first."""
    own = os.environ.get(VARIABLE)
    shipped = Path(__file__).resolve().parents[1] / "assets" / "recipes"
    for folder in [*([Path(own).expanduser()] if own else []), shipped]:
        yield from sorted(folder.glob("*.json"))


def found(model: str, config: str) -> dict[str, Recipe]:
    """Measured recipes for a model by name; of several for one grid the first.

    Args:
        model: its class name.
        config: its identity.
    """
    kept: dict[Any, tuple[str, Recipe]] = {}
    for path in places():
        recipe = _readable(path)
        if recipe is not None and recipe.model == model and config and recipe.figures["config"] == config:
            kept.setdefault(recipe.grid, (path.stem, recipe))
    return dict(kept.values())


def _readable(path: Path) -> Any:
    """A measured recipe that says what it is for and where it is worth while; None of any other file."""
    try:
        recipe = Recipe.load(path)
    except ValueError:
        return None
    measured = recipe.figures is not None and recipe.grid is not None and "config" in recipe.figures
    return recipe if measured and recipe.figures.get("met") else None  # type: ignore[union-attr]
