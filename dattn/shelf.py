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


def identity(*models: Any) -> str:
    """A short hash of the configurations of a pipeline's models, whatever their weights; ``""`` where one has none."""
    configs: list[Any] = [getattr(model, "config", None) for model in models]
    if None in configs:
        return ""
    known = [{n: value for n, value in dict(config).items() if not n.startswith("_")} for config in configs]
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
    figures = recipe.figures or {}
    everywhere = (recipe.dense_steps, recipe.dense_layers, recipe.layers) == (0, 0, None)
    return recipe if everywhere and recipe.grid is not None and "config" in figures and figures.get("met") else None
