"""One model under controls: their chains around its attention, its inputs, its output."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dattn.adapters import Adapter, Site
from dattn.adapters.base import Grids
from dattn.block_mask import MaskCache
from dattn.control.base import Control
from dattn.control.stage import AGAIN, Stage
from dattn.grid import TokenGrid
from dattn.processors.chain import Chain
from dattn.processors.layer import Layer
from dattn.tapped import edited


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
        self.model, self.stage, self._adapter = model, stage, adapter
        self._controls = controls
        self._names = inspect.signature(model.forward).parameters
        text_sites = adapter.text_sites(model)
        text_layers = [_text_layer(i, len(text_sites), prefix, site) for i, site in enumerate(text_sites)]
        self.layers = [*layers, *text_layers]
        self._levels = [site.level for site in (*adapter.sites(model), *text_sites)]
        self._grids: Mapping[str, Grids | Tensor] = {}
        for layer, level in zip(self.layers, self._levels, strict=True):
            what = layer.name, layer in text_layers, layer.index, layer.count
            layer.chain = Chain(controls, stage, *what, None if text_layers else level)
        self._observer: Control | None = None
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
        if self._observer is None:
            latents = named.get(next(iter(self._names)), next(iter(named.values())))
            self.stage.enter(self._adapter.prompt(self.model, named), len(latents))
            self.stage.observe = self._observe
        else:  # what the observer was given may have more text than the model was
            self.stage.given(self._adapter.prompt(self.model, named))
        for control in self._controls[self._first :]:
            arguments = control.inputs(arguments)
        if arguments is named:
            return args, dict(kwargs)
        self.stage.given(self._adapter.prompt(self.model, arguments))
        return (), dict(arguments)

    def _observe(self, observer: Control, arguments: Mapping[str, Any]) -> None:
        """Run the model on ``arguments`` as ``observer`` might hand them on, beside the pass that begins."""
        self._observer = observer
        learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        try:
            for parameter in learning:  # gradients are for the inputs alone
                parameter.requires_grad_(False)
            with self._named(self.stage.branch + AGAIN):
                self.model(**arguments)
        finally:
            self._observer = None
            for parameter in learning:
                parameter.requires_grad_(True)

    @property
    def _first(self) -> int:
        """The first control that has not yet seen the model's arguments."""
        return 0 if self._observer is None else self._controls.index(self._observer) + 1

    def enter(self, grids: Mapping[str, Grids | Tensor]) -> None:
        """The grid of every level in the pass that begins."""
        self._grids = grids
        known = {level: grid if isinstance(grid, TokenGrid | tuple) else None for level, grid in grids.items()}
        used = (known[level] for level in self._levels)  # a UNet has levels without attention
        first = (grid[0] if isinstance(grid, tuple) else grid for grid in used if grid is not None)
        found = {grid.shape: grid for grid in first}
        self.stage.levels = tuple(sorted(found.values(), key=lambda grid: -grid.visual))
        for layer, level in zip(self.layers, self._levels, strict=True):
            layer.chain.enter(known[level])

    def _guide(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """After a forward pass: its output as the controls want it."""

        def again() -> Tensor:
            with self._beside():
                second = model.forward(*args, **kwargs)  # past the hooks
            return _stacked(second if isinstance(second, Tensor) else second[0])

        for control in self._controls if self._observer is None else ():
            if type(control).guided is not Control.guided:
                output = edited(output, _on_lists(partial(control.guided, again=again)))
        return output

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """A pass beside the one that has just run."""
        with self._named(self.stage.branch + AGAIN):
            self.enter(self._grids)
            yield

    @contextmanager
    def _named(self, other: str) -> Iterator[None]:
        """Passes of a branch of their own: no layer, cache or control takes them for those of the present one."""
        branch, announce = self.stage.branch, getattr(self.model, "cache_context", None)
        try:
            with announce(other, **announce.place) if announce else nullcontext():
                self._select(other)
                yield
        finally:
            self._select(branch)

    def _select(self, branch: str) -> None:
        for layer in self.layers:
            layer.select(branch)
        self.stage.branch = branch


def _stacked(output: Any) -> Tensor:
    """What a model gives, of which some give a list of samples.

    Raises:
        ValueError: samples of different sizes.
    """
    if isinstance(output, list) and len({sample.shape for sample in output}) > 1:
        raise ValueError("samples of different sizes cannot be guided together: call the model for each size by itself")
    return torch.stack(output) if isinstance(output, list) else output


def _on_lists(edit: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    """An edit of a batch that keeps a list a list."""
    return lambda output: list(edit(_stacked(output))) if isinstance(output, list) else edit(output)


def _text_layer(index: int, count: int, prefix: str, site: Site) -> Layer:
    """A layer that no pattern ever runs in."""
    return Layer(index, count, prefix + site.name, site.module, None, MaskCache(1), why="looks at the prompt alone")
