"""Recipes: a pattern with its schedule as JSON, for the model and grid that it was made for."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dattn.registry import pattern_from_dict
from dattn.schedule import Amount, check_amount

FORMAT = 1
REQUIRED = {"format", "model", "grid", "attention", "dense_steps", "dense_layers"}
OPTIONAL = {"layers", "figures"}
AUTO = "auto"
Selection = Iterable[int] | Callable[[str], bool] | None
Sizes = tuple[int, int, int, int, int]
"""Of a grid: frames, height, width, text before, text after."""


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
        recipe: the recipe that they come from, if it was measured.
    """

    attention: Any = None
    dense_steps: Amount = 0
    dense_layers: Amount = 0
    layers: Selection = None
    source: str = "arguments"
    min_saving: float | None = None
    recipe: Recipe | None = None

    def __post_init__(self) -> None:
        check_amount("dense_steps", self.dense_steps)
        check_amount("dense_layers", self.dense_layers)


@dataclass(frozen=True)
class Recipe:
    """A pattern and its schedule, and what they are for.

    Attributes:
        model: class name of the model.
        grid: that of its first layer, or of its largest if it was measured; None where it was not known.
        attention: a pattern or operator, ``"auto"``, or None.
        dense_steps, dense_layers: as in ``dattn.apply``.
        layers: indices of the layers that may change; None means all.
        figures: what was measured, of a recipe of ``dattn.tune``; None of any other.
    """

    model: str
    grid: Sizes | None
    attention: Any
    dense_steps: Amount = 0
    dense_layers: Amount = 0
    layers: tuple[int, ...] | None = None
    figures: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; ``layers`` and ``figures`` only where there are any."""
        grid = self.grid and [*self.grid[:3], [*self.grid[3:]]]
        attention = self.attention.to_dict() if hasattr(self.attention, "to_dict") else self.attention
        plain = {"format": FORMAT, "model": self.model, "grid": grid, "attention": attention}
        plain |= {"dense_steps": self.dense_steps, "dense_layers": self.dense_layers}
        return plain | {name: getattr(self, name) for name in sorted(OPTIONAL) if getattr(self, name) is not None}

    def save(self, path: str | Path) -> None:
        """Write it, whole or not at all."""
        place = Path(path)
        part = place.with_name(place.name + ".part")
        part.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        part.replace(place)

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read one.

        Raises:
            ValueError: no such file, not JSON, not a recipe, a format or a key that we do not know, or no pattern.
        """
        held = _read(path)
        grid = held["grid"]
        try:
            sizes: Any = grid and (*grid[:3], *grid[3])
        except (TypeError, KeyError, IndexError):
            raise ValueError(f"recipe {str(path)!r}: grid={grid!r}: [frames, height, width, [before, after]]") from None
        layers = held.get("layers")
        if not isinstance(layers, list | None):
            raise ValueError(f"recipe {str(path)!r}: layers={layers!r}: give a list of indices, or leave it out")
        schedule = held["dense_steps"], held["dense_layers"], None if layers is None else tuple(layers)
        return cls(held["model"], sizes, attention_of(held["attention"], path), *schedule, held.get("figures"))

    def check_model(self, model: str, source: str) -> None:
        """Raise ``ValueError`` where it is for another model."""
        if self.model != model:
            raise ValueError(
                f"{source} is for {self.model}, the target is {model}: a recipe is measured on one "
                'model; pass its pattern yourself, or change "model" in the file'
            )

    def check_config(self, config: str, source: str) -> None:
        """Warn where it was measured on a model of that class with another configuration: ``dattn.shelf.identity``."""
        own = (self.figures or {}).get("config")
        if own and config and own != config:
            warnings.warn(
                f"dattn: {source} was measured on another {self.model} (its configuration differs), so its speed and "
                "quality are not known here; measure this one with dattn tune",
                stacklevel=4,
            )


def _read(path: str | Path) -> dict[str, Any]:
    try:
        recipe = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"recipe {str(path)!r} cannot be read ({error.strerror}): give an existing file") from error
    except ValueError as error:
        raise ValueError(f"recipe {str(path)!r} is not JSON ({error}): write it with save_recipe") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"recipe {str(path)!r} holds a {type(recipe).__name__}: a recipe is a JSON object")
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
    return recipe


def attention_of(value: Any, path: str | Path) -> Any:
    """The pattern that a recipe's attention means; ``"auto"`` and None as they are.

    Raises:
        ValueError: no pattern of ours.
    """
    if value is None or value == AUTO:
        return value
    if not isinstance(value, dict):
        raise ValueError(f'recipe {str(path)!r}: attention={value!r}: a dict with "name", "auto" or null')
    return pattern_from_dict(value)
