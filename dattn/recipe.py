"""Recipes: a pattern with its schedule as JSON, for the model and grid that it was made for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dattn.grid import TokenGrid
from dattn.registry import pattern_from_dict
from dattn.schedule import Amount, check_amount

FORMAT = 1
REQUIRED = {"format", "model", "grid", "attention", "dense_steps", "dense_layers"}
OPTIONAL = {"layers"}
Selection = Iterable[int] | Callable[[str], bool] | None


@dataclass(frozen=True)
class Settings:
    """What a handle does: the arguments of ``apply`` after presets and recipes are resolved.

    Attributes:
        attention: a pattern or operator; None leaves every layer stock.
        dense_steps: leading steps that stay stock.
        dense_layers: leading layers that stay stock.
        layers: the layers that may change; None means all.
        source: where the settings come from, for the report.
        min_saving: leave a layer stock where less than this share of the work is saved.
    """

    attention: Any = None
    dense_steps: Amount = 0
    dense_layers: Amount = 0
    layers: Selection = None
    source: str = "arguments"
    min_saving: float | None = None

    def __post_init__(self) -> None:
        check_amount("dense_steps", self.dense_steps)
        check_amount("dense_layers", self.dense_layers)


def save(path: str | Path, settings: Settings, model: str, grid: TokenGrid | None, chosen: list[int]) -> None:
    """Write a recipe; ``layers`` is written only where a selection was made.

    Args:
        path: a file to write.
        settings: the settings of a handle.
        model: class name of the model.
        grid: the grid of its first layer, None before any call.
        chosen: the indices that ``settings.layers`` selects.
    """
    attention = settings.attention
    recipe = {
        "format": FORMAT,
        "model": model,
        "grid": grid and [*grid.shape, [grid.text_before, grid.text_after]],
        "attention": attention and attention.to_dict(),
        "dense_steps": settings.dense_steps,
        "dense_layers": settings.dense_layers,
    }
    if settings.layers is not None:
        recipe["layers"] = chosen
    if settings.min_saving is not None:
        recipe["attention"] = "auto"
    Path(path).write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")


def load(path: str | Path, model: str) -> dict[str, Any]:
    """Read a recipe for a model; its ``attention`` is a dict, a preset's name or None.

    Raises:
        ValueError: no such file, not JSON, not a recipe, a format or a key that we do not know, or a recipe for
            another model.
    """
    recipe = _read(path)
    if recipe.get("format") != FORMAT:
        raise ValueError(
            f"recipe {str(path)!r} has format {recipe.get('format')!r}: this version reads format {FORMAT}; "
            "save it again with handle.save_recipe"
        )
    missing, unknown = REQUIRED - recipe.keys(), recipe.keys() - REQUIRED - OPTIONAL
    if missing or unknown:
        raise ValueError(
            f"recipe {str(path)!r} lacks {sorted(missing)} and has unknown {sorted(unknown)}: a recipe has "
            f"{sorted(REQUIRED)}, and may have {sorted(OPTIONAL)}"
        )
    if recipe["model"] != model:
        raise ValueError(
            f"recipe {str(path)!r} is for {recipe['model']}, the target is {model}: a recipe is measured on one "
            'model; pass its pattern yourself, or change "model" in the file'
        )
    return recipe


def _read(path: str | Path) -> dict[str, Any]:
    try:
        recipe = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"recipe {str(path)!r} cannot be read ({error.strerror}): give an existing file") from error
    except ValueError as error:
        raise ValueError(f"recipe {str(path)!r} is not JSON ({error}): write it with save_recipe") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"recipe {str(path)!r} holds a {type(recipe).__name__}: a recipe is a JSON object")
    return recipe


def attention_of(value: Any, path: str | Path) -> Any:
    """The pattern that a recipe's dict means.

    Raises:
        ValueError: no pattern of ours.
    """
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError(f'recipe {str(path)!r}: attention={value!r}: a dict with "name", "auto" or null')
    return pattern_from_dict(value)
