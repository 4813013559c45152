"""One model under controls: their chains around its attention, its inputs, its output."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from dattn.adapters import Adapter, Site
from dattn.adapters.base import Grids
from dattn.block_mask import MaskCache
from dattn.control.base import Control
from dattn.control.stage import Stage
from dattn.grid import TokenGrid
from dattn.processors.chain import Chain
from dattn.processors.layer import Layer
from dattn.schedule import edited


class Direction:
    """Puts chains of controls on a model's layers, and hooks on the model.

    Args:
        model: the top-level model.
        adapter: how its family is read.
        layers: of the model's self-attention or joint attention, one per site of the adapter.
        prefix: the pipeline's component and a dot, for names.
        controls: the list of the handle, which may grow and shrink.
        stage: of the handle.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter,
        layers: Sequence[Layer],
        prefix: str,
        controls: Sequence[Control],
        stage: Stage,
    ) -> None:
        self.model, self.stage = model, stage
        self._controls = controls
        self._names = inspect.signature(model.forward).parameters
        text_sites = adapter.text_sites(model)
        text_layers = [_text_layer(i, len(text_sites), prefix, site) for i, site in enumerate(text_sites)]
        self.layers = [*layers, *text_layers]
        self._levels = [site.level for site in (*adapter.sites(model), *text_sites)]
        for layer in self.layers:
            layer.chain = Chain(controls, stage, layer.name, layer in text_layers, layer.index, layer.count)
        self._hook = model.register_forward_hook(self._guide, with_kwargs=True)

    def remove(self) -> None:
        """No hook, no control."""
        self._hook.remove()
        for layer in self.layers:
            layer.chain = None

    def inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The model's arguments as the controls want them."""
        named = dict(zip(self._names, args, strict=False)) | dict(kwargs)
        arguments: Mapping[str, Any] = named
        for control in self._controls:
            arguments = control.inputs(arguments)
        text = arguments.get("encoder_hidden_states")
        self.stage.text_count = text.shape[1] if isinstance(text, Tensor) and text.ndim == 3 else 0
        return (args, dict(kwargs)) if arguments is named else ((), dict(arguments))

    def enter(self, grids: Mapping[str, Grids | Tensor]) -> None:
        """The grid of every level in the pass that begins."""
        for layer, level in zip(self.layers, self._levels, strict=True):
            grid = grids[level]
            layer.chain.enter(grid if isinstance(grid, TokenGrid) else None)

    def _guide(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """After a forward pass: its output as the controls want it."""

        def again() -> Tensor:
            second = model.forward(*args, **kwargs)  # past the hooks
            return second if isinstance(second, Tensor) else second[0]

        for control in self._controls:
            if type(control).guided is not Control.guided:
                output = edited(output, partial(control.guided, again=again))
        return output


def _text_layer(index: int, count: int, prefix: str, site: Site) -> Layer:
    """A layer that no pattern ever runs in."""
    return Layer(index, count, prefix + site.name, site.module, None, MaskCache(1), why="looks at the prompt alone")
