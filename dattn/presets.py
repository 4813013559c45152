"""Presets: settings by name, published ones where there are any, per model family.

Schedules are fractions of the steps of their authors, so that they mean something for other numbers of steps too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from dattn.adapters import ADAPTERS
from dattn.operators.per_layer import PerLayer
from dattn.operators.rectified import Rectified
from dattn.orders import Curve
from dattn.patterns import (
    Clustered,
    Dense,
    Grouped,
    Neighborhood,
    Pyramid,
    Radial,
    Selected,
    SparseVideoGen,
    XAttention,
)
from dattn.recipe import AUTO, Recipe, Settings
from dattn.registry import pattern_from_dict, pattern_from_string
from dattn.schedule import Amount
from dattn.scores.pooled import Pooled
from dattn.selection import TopP
from dattn.shelf import found
from dattn.spec import Spec
from dattn.tuning.auto import AfterDense, Auto, observed
from dattn.tuning.by_grid import ByGrid

AUTO_MIN_SAVING = 0.1
VIDEO, IMAGE = "any video model", "any image model"


@dataclass(frozen=True)
class Preset:
    """A pattern with its schedule, and whose setting it is."""

    attention: Spec
    dense_steps: Amount
    dense_layers: Amount
    source: str
    layers: int | None = None
    """Self-attention layers that a model must have for it; None where it does not matter."""


def _published(work: str, model: str) -> str:
    return f"published: {work}, {model}"


def _rectified(drop: float) -> Rectified:
    """Rectified-SpaAttn that may leave out a share ``drop`` of the blocks."""
    keep = ("own", "neighbours", "first_frame")
    return Rectified(Selected(Pooled(), TopP(0.3, floor=round(1 - drop, 2)), Curve(), keep=keep))


def _cosmos_2b() -> PerLayer:
    """NVIDIA's windows for Cosmos-Predict2 2B at 720p, a grid of frames x 44 x 80."""
    near = lambda height, width, **more: Neighborhood((None, height, width), **more)
    return PerLayer(
        {
            (0, 1): near(4, 16, dilation=(1, 11, 5)),
            (2, 5, 10): near(12, 16, stride=(1, 4, 1), dilation=(1, 1, 5)),
            (3, 4, 6, 7, 8, 9, 27): near(12, 24, stride=(1, 4, 8)),
            (*range(11, 23), 24, 25, 26): near(20, 40),
            23: near(28, 56),
        }
    )


OURS = "dattn's own choice, none published for this model"
RADIAL, GNA, PSA, RECTIFIED, SVG, SVG2 = (
    "Radial Attention",
    "Generalized Neighborhood Attention",
    "Pyramid Sparse Attention",
    "Rectified-SpaAttn",
    "Sparse VideoGen",
    "Sparse VideoGen2",
)

PRESETS: dict[str, dict[str, Preset]] = {
    "dense": {kind: Preset(Dense(), 0, 0, "full attention") for kind in (VIDEO, IMAGE)},
    "radial": {
        "wan": Preset(Radial(decay=0.2), 0.24, 1, _published(RADIAL, "Wan 2.1 14B, 69 frames")),
        "wan2.2": Preset(Radial(decay=0.8, block_size=64), 0.275, 1, _published(RADIAL, "Wan 2.2 A14B, 77 frames")),
        "hunyuan_video": Preset(
            Radial(decay=0.95, sink=False), 0.24, 0, _published(RADIAL, "HunyuanVideo, 117 frames")
        ),
        VIDEO: Preset(Radial(decay=0.95), 0.24, 1, OURS),
    },
    "neighborhood": {
        "wan": Preset(Neighborhood((None, 24, 24), stride=(1, 8, 8)), 0.25, 1, OURS),
        "wan2.2": Preset(Neighborhood((None, 24, 24), stride=(1, 8, 8)), 0.25, 1, OURS),
        "cogvideox": Preset(Neighborhood((None, 18, 24), stride=(1, 6, 8)), 0.25, 1, OURS),
        "hunyuan_video": Preset(
            Neighborhood((18, 24, 24), stride=(16, 8, 8)),
            0.25,
            0,
            _published(GNA, "HunyuanVideo at 768 x 1280 x 117; the schedule is ours"),
        ),
        "cosmos": Preset(_cosmos_2b(), 0, 0, _published(GNA, "Cosmos-Predict2 2B at 720p"), layers=28),
        "flux": Preset(
            Neighborhood(80, stride=16), 0.25, 0, _published(GNA, "Flux.1 at 4096 x 4096; the schedule is ours")
        ),
        "unet": Preset(Neighborhood(32, stride=8), 0.25, 0, OURS),
        VIDEO: Preset(Neighborhood((None, 24, 24), stride=(1, 8, 8)), 0.25, 1, OURS),
        IMAGE: Preset(Neighborhood(48, stride=16), 0.25, 0, OURS),
    },
    "grouped": {
        "flux": Preset(Grouped(16, "cross"), 0, 0, _published("GRAT", "Flux.1 at 8192 x 8192, the cross")),
        "hunyuan_video": Preset(
            Grouped((4, 8, 8), "cross"), 0, 0, _published("GRAT", "HunyuanVideo at 768 x 1280 x 128, the cross")
        ),
    },
    "pyramid": {
        "wan": Preset(Pyramid((0.4, 0.5, 0.6, 0.8)), 0.3, 0, _published(PSA, "Wan 2.1 14B")),
        "wan2.2": Preset(Pyramid((0.5, 0.6, 0.6, 0.8)), 0.3, 0, _published(PSA, "Wan 2.2 A14B")),
        "cogvideox": Preset(Pyramid((0.1, 0.25, 0.4, 0.75), by="blocks"), 0.3, 0, _published(PSA, "CogVideoX")),
        VIDEO: Preset(Pyramid((0.4, 0.5, 0.6, 0.8)), 0.3, 0, OURS),
    },
    "rectified": {
        "wan": Preset(_rectified(0.75), 0.1, 2, _published(RECTIFIED, "Wan 2.1 text-to-video")),
        "wan2.2": Preset(_rectified(0.85), 0, 0, _published(RECTIFIED, "Wan 2.2 A14B")),
        "hunyuan_video": Preset(_rectified(0.8), 0, 0, _published(RECTIFIED, "HunyuanVideo, 128 frames at 720p")),
        "cogvideox": Preset(_rectified(0.85), 0, 0, _published(RECTIFIED, "CogVideoX 1.5 text-to-video")),
        "flux": Preset(_rectified(0.9), 0, 0, _published(RECTIFIED, "Flux.1 at 4096 x 4096")),
    },
    "sparse-video-gen": {
        "wan": Preset(SparseVideoGen(0.3), 0.2, 0.03, _published(SVG, "Wan 2.1 at 720p")),
        "hunyuan_video": Preset(SparseVideoGen(0.25), 0.1, 0.03, _published(SVG, "HunyuanVideo at 720p")),
        "cogvideox": Preset(SparseVideoGen(0.25), 0.2, 0.025, _published(SVG, "CogVideoX 1.5")),
        "cosmos": Preset(SparseVideoGen(0.25), 0.3, 0.03, _published(SVG, "Cosmos")),
        VIDEO: Preset(SparseVideoGen(0.3), 0.2, 0.03, OURS),
    },
    "clustered": {
        "wan": Preset(Clustered(300, 1000), 0.2, 0.03, _published(SVG2, "Wan 2.1 at 720p; the schedule is SVG's")),
        "hunyuan_video": Preset(
            Clustered(400, 1000), 0.1, 0.03, _published(SVG2, "HunyuanVideo at 720p; the schedule is SVG's")
        ),
        "cosmos": Preset(Clustered(400, 1000), 0.3, 0.03, _published(SVG2, "Cosmos at 720p; the schedule is SVG's")),
    },
    "xattention": {
        "hunyuan_video": Preset(XAttention(8, 0.9), 0.1, 0, _published("XAttention", "HunyuanVideo")),
    },
}
OF_AUTO = {True: "radial", False: "neighborhood"}


def _kind(family: str) -> str:
    """What a preset of no family in particular goes by."""
    return VIDEO if any(a.video for a in ADAPTERS if a.family == family.removesuffix("2.2")) else IMAGE


def _find(name: str, family: str, layers: int | None = None) -> Preset | None:
    own = PRESETS[name].get(family)
    if own is not None and own.layers in (None, layers):
        return own
    return PRESETS[name].get(_kind(family))


def preset_names(family: str) -> list[str]:
    """The presets of a family, ``auto`` included."""
    return [*(name for name in PRESETS if _find(name, family)), "auto"]


def resolve(
    attention: Any,
    family: str,
    model: str,
    dense_steps: Amount | None,
    dense_layers: Amount | None,
    layers: int | None = None,
    config: str = "",
) -> Settings:
    """What ``attention`` means for a model; a schedule given by the caller wins over a preset's or a recipe's.

    Args:
        attention: pattern, operator, dict, preset, pattern string, path of a recipe, or None.
        family: key of the presets.
        model: class name of the model, for recipes.
        dense_steps: None where the caller gave none.
        dense_layers: None where the caller gave none.
        layers: how many self-attention layers the model has.
        config: identity of the model: what ``"auto"`` finds recipes by, and a recipe tells a model of its class by.

    Raises:
        ValueError: nothing that we know, or a schedule out of bounds.
    """
    known = found(model, config) if attention == AUTO and family != "unet" else {}  # a UNet has many grids at once
    asked = {"dense_steps": dense_steps, "dense_layers": dense_layers}
    own: dict[str, Any] = {name: amount for name, amount in asked.items() if amount is not None}
    settings = _measured(known, family, layers, own) if known else _settings(attention, family, model, layers)
    settings = replace(settings, **own)
    if settings.recipe is not None:
        settings.recipe.check_config(config, settings.source)
    if isinstance(settings.attention, Auto) and settings.dense_steps == 0:  # no step to look in
        settings = replace(settings, attention=settings.attention.preset)
    return settings


def _settings(attention: Any, family: str, model: str, layers: int | None) -> Settings:
    if isinstance(attention, str):
        return _from_string(attention, family, model, layers)
    if isinstance(attention, Recipe):
        return _from_recipe(attention, "this recipe", family, model, layers)
    if isinstance(attention, dict):
        attention = pattern_from_dict(attention)
    if attention is not None and not isinstance(attention, Spec):
        raise ValueError(
            f"attention={attention!r}: give a pattern such as dattn.Radial(), its dict, a preset "
            f"({', '.join(preset_names(family))}), a recipe or its path (.json), or None"
        )
    return Settings(attention)


def _from_string(text: str, family: str, model: str, layers: int | None) -> Settings:
    if text.endswith(".json"):
        return _from_recipe(Recipe.load(text), f"recipe {text}", family, model, layers)
    if text == AUTO:
        return _automatic(family, layers)
    if text in PRESETS:
        return _from_preset(text, family, layers)
    return Settings(pattern_from_string(text), source=repr(text))


def _measured(known: dict[str, Recipe], family: str, layers: int | None, own: dict[str, Any]) -> Settings:
    """Recipes for the grids that they were measured at; elsewhere what ``"auto"`` is without them.

    ``own`` is the caller's schedule.
    """
    base = replace(_automatic(family, layers), **own)
    elsewhere = AfterDense(base.attention, base.dense_steps, base.dense_layers)
    grids = tuple((recipe.grid[:3], name, recipe.attention) for name, recipe in known.items() if recipe.grid)
    return Settings(ByGrid(grids, elsewhere), source=f"'auto', recipes {', '.join(known)}")


def _automatic(family: str, layers: int | None) -> Settings:
    """The preset for the family, among candidates that are looked at in the last dense step."""
    video = _kind(family) == VIDEO
    base = _from_preset(OF_AUTO[video], family, layers)
    return replace(base, attention=observed(base.attention, video), min_saving=AUTO_MIN_SAVING)


def _from_preset(name: str, family: str, layers: int | None) -> Settings:
    preset = _find(name, family, layers)
    if preset is None:
        example = f"dattn.{next(iter(PRESETS[name].values())).attention.name}(…)"
        raise ValueError(
            f"preset {name!r} has no setting for this model ({family}); it has {', '.join(preset_names(family))}; "
            f"pass the pattern itself, for example {example}, to use it all the same"
        )
    return Settings(preset.attention, preset.dense_steps, preset.dense_layers, source=f"{name!r}, {preset.source}")


def _from_recipe(recipe: Recipe, source: str, family: str, model: str, layers: int | None) -> Settings:
    recipe.check_model(model, source)
    base = _from_string(AUTO, family, model, layers) if recipe.attention == AUTO else Settings(recipe.attention)
    if recipe.figures is not None:
        base = replace(base, recipe=recipe)
    return replace(
        base,
        dense_steps=recipe.dense_steps,
        dense_layers=recipe.dense_layers,
        layers=recipe.layers,
        source=source,
    )
