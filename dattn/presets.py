"""Presets: settings by name, published ones where there are any, per model family."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from dattn.patterns import Dense, Grouped, Neighborhood, Radial
from dattn.patterns.base import Pattern
from dattn.recipe import Settings, attention_of, load
from dattn.registry import pattern_from_dict, pattern_from_string
from dattn.schedule import Amount
from dattn.spec import Spec

AUTO_MIN_SAVING = 0.1


@dataclass(frozen=True)
class Preset:
    """A pattern with its schedule, and whose setting it is."""

    attention: Pattern
    dense_steps: Amount
    dense_layers: Amount
    source: str


FAMILIES = ("wan", "wan2.2", "cogvideox", "flux", "unet")
PUBLISHED = "published: Radial Attention"
OURS = "dattn's own choice, none published for this model"

# Radial Attention's dense warm-up as a fraction of its steps: 12 of 50 on Wan 2.1, 11 of 40 on Wan 2.2.
PRESETS: dict[str, dict[str, Preset]] = {
    "dense": {family: Preset(Dense(), 0, 0, "full attention") for family in FAMILIES},
    "radial": {
        "wan": Preset(Radial(decay=0.2), 0.24, 1, f"{PUBLISHED}, Wan 2.1 14B, 69 frames"),
        "wan2.2": Preset(Radial(decay=0.8, block_size=64), 0.275, 1, f"{PUBLISHED}, Wan 2.2 A14B, 77 frames"),
        "cogvideox": Preset(Radial(decay=0.95), 0.24, 1, OURS),
    },
    "neighborhood": {
        "wan": Preset(Neighborhood((None, 24, 24), stride=(1, 8, 8)), 0.25, 1, OURS),
        "wan2.2": Preset(Neighborhood((None, 24, 24), stride=(1, 8, 8)), 0.25, 1, OURS),
        "cogvideox": Preset(Neighborhood((None, 18, 24), stride=(1, 6, 8)), 0.25, 1, OURS),
        "flux": Preset(Neighborhood(80, stride=16), 0.25, 0, "published: GNA, Flux at 4096²; the schedule is ours"),
        "unet": Preset(Neighborhood(32, stride=8), 0.25, 0, OURS),
    },
    "grouped": {
        "flux": Preset(Grouped(16, "cross"), 0, 0, "published: GRAT-X, Flux at 8192²"),
    },
}
AUTO = {"wan": "radial", "wan2.2": "radial", "cogvideox": "radial", "flux": "neighborhood", "unet": "neighborhood"}


def preset_names(family: str) -> list[str]:
    """The presets of a family, ``auto`` included."""
    return [*(name for name, table in PRESETS.items() if family in table), "auto"]


def resolve(
    attention: Any, family: str, model: str, dense_steps: Amount | None, dense_layers: Amount | None
) -> Settings:
    """What ``attention`` means for a model; a schedule given by the caller wins over a preset's or a recipe's.

    Args:
        attention: pattern, operator, dict, preset, pattern string, path of a recipe, or None.
        family: key of the presets.
        model: class name of the model, for recipes.
        dense_steps: None where the caller gave none.
        dense_layers: None where the caller gave none.

    Raises:
        ValueError: nothing that we know, or a schedule out of bounds.
    """
    settings = _settings(attention, family, model)
    return replace(
        settings,
        dense_steps=settings.dense_steps if dense_steps is None else dense_steps,
        dense_layers=settings.dense_layers if dense_layers is None else dense_layers,
    )


def _settings(attention: Any, family: str, model: str) -> Settings:
    if isinstance(attention, str):
        return _from_string(attention, family, model)
    if isinstance(attention, dict):
        attention = pattern_from_dict(attention)
    if attention is not None and not isinstance(attention, Spec):
        raise ValueError(
            f"attention={attention!r}: give a pattern such as dattn.Radial(), its dict, a preset "
            f"({', '.join(preset_names(family))}), the path of a recipe (.json), or None"
        )
    return Settings(attention)


def _from_string(text: str, family: str, model: str) -> Settings:
    if text.endswith(".json"):
        return _from_recipe(text, family, model)
    if text == "auto":
        return replace(_from_preset(AUTO[family], family), min_saving=AUTO_MIN_SAVING)
    if text in PRESETS:
        return _from_preset(text, family)
    return Settings(pattern_from_string(text), source=repr(text))


def _from_preset(name: str, family: str) -> Settings:
    if family not in PRESETS[name]:
        raise ValueError(
            f"preset {name!r} has no setting for this model ({family}); it has {', '.join(preset_names(family))}; "
            f"pass the pattern itself, for example dattn.{name.title()}(…), to use it all the same"
        )
    preset = PRESETS[name][family]
    return Settings(preset.attention, preset.dense_steps, preset.dense_layers, source=f"{name!r}, {preset.source}")


def _from_recipe(path: str, family: str, model: str) -> Settings:
    recipe = load(path, model)
    if recipe["attention"] == "auto":
        base = _from_string("auto", family, model)
    else:
        base = Settings(attention_of(recipe["attention"], path))
    return replace(
        base,
        dense_steps=recipe["dense_steps"],
        dense_layers=recipe["dense_layers"],
        layers=recipe.get("layers"),
        source=f"recipe {path}",
    )
