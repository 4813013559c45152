"""A model that is about to be patched: which of its layers get the pattern, and why the others stay stock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from dattn.adapters import Adapter, Site
from dattn.block_mask import MaskCache
from dattn.processors import Layer
from dattn.recipe import Selection, Settings
from dattn.schedule import resolve_amount


@dataclass(frozen=True)
class Part:
    """A model that is about to be patched: the pipeline's name for it, the model, its adapter."""

    component: str
    model: nn.Module
    adapter: Adapter

    @property
    def kind(self) -> str:
        """The name of its class."""
        return type(self.model).__name__

    @property
    def prefix(self) -> str:
        """What stands before the names of its layers."""
        return f"{self.component}." if self.component else ""

    @property
    def sites(self) -> list[Site]:
        """Its self-attention modules."""
        return self.adapter.sites(self.model)

    def stock_reasons(self, settings: Settings) -> list[str]:
        """Per layer, why it stays stock for good; ``""`` where the pattern may run."""
        sites = self.sites
        open_to = [i for i, site in enumerate(sites) if not site.why]
        chosen = set(chosen_of([site.name for site in sites], settings.layers))
        if isinstance(settings.dense_layers, int) and settings.dense_layers > len(open_to):
            raise ValueError(
                f"dense_layers={settings.dense_layers}: {self.kind} has {len(open_to)} self-attention layers; give "
                "at most that, or a fraction"
            )
        dense = set(open_to[: resolve_amount(settings.dense_layers, len(open_to))])
        return [site.why or _stock_reason(i, dense, chosen, settings.attention) for i, site in enumerate(sites)]

    def layers(self, settings: Settings, masks: MaskCache, backend: str) -> list[Layer]:
        """A layer per site."""
        sites, reasons = self.sites, self.stock_reasons(settings)
        return [
            Layer(
                index,
                len(sites),
                self.prefix + site.name,
                site.module,
                None if why else settings.attention,
                masks,
                backend,
                settings.min_saving,
                why,
            )
            for index, (site, why) in enumerate(zip(sites, reasons, strict=True))
        ]


def _stock_reason(index: int, dense: set[int], chosen: set[int], attention: Any) -> str:
    if attention is None:
        return "no attention was given"
    if index in dense:
        return "a dense layer"
    return "" if index in chosen else "not among layers="


def chosen_of(names: list[str], layers: Selection) -> list[int]:
    """The indices that a selection means among ``names``."""
    if layers is None:
        return list(range(len(names)))
    indices = [index for index, name in enumerate(names) if layers(name)] if callable(layers) else [*layers]
    wrong = [i for i in indices if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < len(names)]
    if wrong or not indices:
        raise ValueError(
            f"layers selects {indices}: give indices from 0 to {len(names) - 1}, or a predicate on names such as "
            f"{names[0]!r} that is true for at least one"
        )
    return indices


def family_of(parts: list[Part]) -> str:
    """The key of the presets; Wan 2.2 is Wan with two transformers."""
    family = parts[0].adapter.family
    return "wan2.2" if family == "wan" and len(parts) == 2 else family


def once(layers: Any) -> Selection:
    """A selection that can be read more than once."""
    if layers is None or callable(layers):
        return layers
    if not isinstance(layers, Iterable):
        raise ValueError(f"layers={layers!r}: give indices such as [0, 1], or a predicate on module names")
    return list(layers)
