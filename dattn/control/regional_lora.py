"""RegionalLoRA: adapters that act in parts of the picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from dattn.control.base import Control, Place, Window, check_window, within
from dattn.control.parts import Where, part
from dattn.grid import TokenGrid
from dattn.models import models_of

OF_TEXT = ("add_", "context", "txt", "text")
"""What names of modules hold that compute text tokens beside those of the picture."""
Key = tuple[str, bool, tuple[int, ...]]


class RegionalLoRA(Control):
    """The delta of a LoRA counts for tokens in its mask: y_i = W x_i + Σ_r m_ri s_r B_r A_r x_i over adapters r.

    For queries, outputs and feed-forward layers that is the adapter in its mask and none outside. For keys and values
    it says which tokens are seen, by whichever query, as the adapter has them be seen. What has no place in the picture
    (text tokens, modulation by the time step, layers over time alone) counts ``elsewhere`` times. An adapter without a
    mask acts everywhere. It is for a pipeline whose PEFT adapters are loaded, active and not fused.

    Args:
        masks: for each adapter a mask, soft ones as they are, a box (left, top, right, bottom) in fractions of the
            picture, or a track of boxes.
        elsewhere: how much deltas count that have no place in the picture.
        window: the denoising steps in which masks act; in others the adapters act everywhere.

    Raises:
        ValueError: no adapters, or something that is no mask or number; in a call, adapters that are not loaded, not
            active, fused, or of a kind that adds no delta (DoRA).
    """

    def __init__(self, masks: Mapping[str, Where], elsewhere: float = 1.0, window: Window = 1.0) -> None:
        if not masks:
            raise ValueError('masks={}: give a mask for each adapter, such as {"style": (0, 0, 0.5, 1)}')
        if not isinstance(elsewhere, int | float) or not isfinite(elsewhere):
            raise ValueError(f"elsewhere={elsewhere!r}: a factor, 1 for adapters as they are")
        self.masks = {name: part(f"masks[{name!r}]", mask) for name, mask in masks.items()}
        self.elsewhere, self.window = float(elsewhere), check_window("window", window)
        self._hooks: list[Any] = []
        self._forget()

    def _forget(self) -> None:
        """Where tokens of the last pass were."""
        self._places: dict[int, tuple[TokenGrid, int]] = {}  # by number of tokens: grid, where the picture begins
        self._text: set[str] = set()
        self._known: dict[Key, Tensor | float] = {}

    def inputs(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Before a forward pass: hooks on the adapters that the models have now."""
        self.removed()
        if within(self.window, self.stage.step, self.stage.steps) and not self.stage.adapters_off:
            for adapter in self.masks:
                self._hook(adapter)
        return arguments

    def acts(self, place: Place) -> bool:
        """Nowhere in attention; notes where tokens are."""
        grid = place.grid
        if place.kind == "cross":
            self._text |= {f"{place.name}.to_k", f"{place.name}.to_v"}
        self._places |= {grid.tokens: (grid, place.visual.start), grid.visual: (grid, 0)}
        return False

    def removed(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._forget()

    def _hook(self, adapter: str) -> None:
        found = False
        for name, layer in _tuned(self.stage.pipeline, adapter):
            _check_usable(layer, name, adapter)
            masked = partial(self._masked, adapter, name)
            self._hooks.append(layer.lora_B[adapter].register_forward_hook(masked))
            found = True
        if not found:
            raise ValueError(f"adapter {adapter!r} is not loaded: pipe.load_lora_weights(…, adapter_name={adapter!r})")

    def _masked(self, adapter: str, name: str, module: nn.Module, inputs: Any, delta: Tensor) -> Tensor:
        """After an adapter's second matrix."""
        picture = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        sizes = tuple(delta.shape[2:] if picture else delta.shape[1:-1])
        text = name in self._text or any(word in name for word in OF_TEXT)
        if (adapter, text, sizes) not in self._known:
            covers = self._of_pixels(adapter, sizes) if picture else self._of_tokens(adapter, sizes, text)
            self._known[adapter, text, sizes] = covers
        cover = self._known[adapter, text, sizes]
        return delta * (cover.to(delta) if isinstance(cover, Tensor) else cover)

    def _of_pixels(self, adapter: str, sizes: tuple[int, ...]) -> Tensor:
        """For [batch, channels, …]: [frames, height, width], or as many of these as there are."""
        frames, height, width = (1, 1, 1, *sizes)[-3:]
        return self.masks[adapter].cover(TokenGrid(frames, height, width)).reshape(sizes)

    def _of_tokens(self, adapter: str, sizes: tuple[int, ...], text: bool) -> Tensor | float:
        """For [batch, tokens, channels]: [tokens, 1], or a number where they have no place in the picture."""
        tokens = torch.Size(sizes).numel()
        if text or tokens not in self._places:
            return self.elsewhere
        grid, start = self._places[tokens]
        cover = torch.full((tokens,), self.elsewhere, dtype=torch.float64)
        cover[start : start + grid.visual] = self.masks[adapter].cover(grid)
        return cover.reshape(*sizes, 1)


def _tuned(pipeline: Any, adapter: str) -> Iterator[tuple[str, Any]]:
    """Name and module of every layer of the pipeline's models that has an adapter."""
    if pipeline is None:
        raise ValueError("RegionalLoRA reads the adapters of a pipeline: apply it to that, not to the bare model")
    for component, model in models_of(pipeline).items():
        for name, module in model.named_modules():
            if adapter in getattr(module, "lora_B", ()):
                yield f"{component}.{name}", module


def _check_usable(layer: Any, name: str, adapter: str) -> None:
    """Raise where a layer's adapter adds no delta."""
    why = {
        "is not active: pipe.set_adapters([…])": adapter not in layer.active_adapters or layer.disable_adapters,
        "is fused: pipe.unfuse_lora()": layer.merged,
        "is no plain LoRA, whose delta could be masked": adapter in layer.lora_variant,
    }
    for reason in (reason for reason, holds in why.items() if holds):
        raise ValueError(f"adapter {adapter!r} of {name} {reason}")
