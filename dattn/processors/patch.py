"""One model under a handle: its layers, their processors, and what hangs on the model meanwhile."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dattn.adapters import Adapter, Inputs
from dattn.adapters.base import Grids, Positions
from dattn.grid import TokenGrid
from dattn.processors.direction import Direction
from dattn.processors.layer import Layer
from dattn.processors.stand_in import LAYER, StandIn, stand_in, unwrap, why_not


class Patch:
    """Puts stand-ins in a model, follows what is done to the model, and takes all of it out again.

    Args:
        model: the top-level model.
        adapter: how its family is read.
        layers: one layer per site of the adapter, in that order.
        before: called at the start of every forward pass of the model.
    """

    def __init__(
        self,
        model: Any,
        adapter: Adapter,
        layers: list[Layer],
        before: Callable[[], None],
    ) -> None:
        self.model, self.layers = model, layers
        self._adapter, self._before = adapter, before
        self._levels = [site.level for site in adapter.sites(model)]
        self._places = [_Place(layer) for layer in layers if layer.pattern is not None]
        self._direction: Direction | None = None
        self._directed: list[_Place] = []
        self._count_sharing()
        for layer in layers:
            layer.pairs, layer.one_stream = adapter.pairs, adapter.one_stream
        self._hook: Any = None
        self._cache_context = vars(model).get("cache_context")

    def install(self) -> None:
        """Begin."""
        for place in self._places:
            place.install()
        self._hook = self.model.register_forward_pre_hook(self._enter, with_kwargs=True)
        if hasattr(self.model, "cache_context"):
            self.model.cache_context = _Branches(self, self.model.cache_context)

    def direct(self, direction: Direction) -> None:
        """Begin to run the model under controls."""
        self._direction = direction
        taken = [place.layer for place in self._places]
        self._directed = [_Place(layer) for layer in direction.layers if layer not in taken]
        for place in self._directed:
            place.install()

    def release(self) -> None:
        """End that; patterns stay."""
        if self._direction is not None:
            self._direction.remove()
        for place in self._directed:
            place.remove()
        self._direction, self._directed = None, []

    def _count_sharing(self) -> None:
        """Tell every layer how many parts of its level's, whose tensors are alike, keep some before it, and in all."""
        kept: dict[str, int] = {}
        for layer, level in zip(self.layers, self._levels, strict=True):
            layer.sharing = kept.get(level, 0), 0
            kept[level] = layer.sharing[0] + layer.keeping
        for layer, level in zip(self.layers, self._levels, strict=True):
            layer.sharing = layer.sharing[0], kept[level]

    def _enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before a forward pass: the grid of every layer, from the model's own inputs."""
        self._before()
        directed = None if self._direction is None else self._direction.inputs(args, kwargs)
        grids = self._adapter.grids(model, Inputs(*(directed or (args, kwargs))))
        read = {level: _read(grid) for level, grid in grids.items()}
        for layer, level in zip(self.layers, self._levels, strict=True):
            layer.enter(read[level])
        if self._direction is not None:
            self._direction.enter(read)
        for place in (*self._places, *self._directed):
            place.install()
        return directed

    def select(self, branch: str) -> None:
        """The calls that follow belong to a guidance branch."""
        for layer in self.layers:
            layer.select(branch)
        if self._direction is not None:
            self._direction.stage.branch = branch

    def remove(self) -> None:
        """The model as it was: its own processors, no hook, no wrapper."""
        if self._hook is not None:
            self._hook.remove()
        self.release()
        if "cache_context" in vars(self.model):
            del self.model.cache_context
        if self._cache_context is not None:
            self.model.cache_context = self._cache_context
        for place in self._places:
            place.remove()
        for layer in self.layers:
            layer.close()


def _read(grid: Grids) -> TokenGrid | tuple[TokenGrid, ...] | Tensor | str:
    """A table of positions as a grid; in a graph as the sizes that its operator finds, int64 [5] on the CPU."""
    if not isinstance(grid, Positions):
        return grid
    if not torch.compiler.is_compiling():
        return grid.grid()
    from dattn.processors import compiled

    return compiled.measured(grid.ids, grid.text, grid.video)


class _Branches:
    """Learns the names of guidance branches, which pipelines announce with ``model.cache_context(name)``.

    Attributes:
        place: what else was said of the branch that runs.
    """

    def __init__(self, patch: Patch, announce: Callable[..., Any]) -> None:
        self._patch, self._announce = patch, announce
        self.place: dict[str, Any] = {}
        functools.update_wrapper(self, announce)

    @contextmanager
    def __call__(self, name: str, **kwargs: Any) -> Iterator[None]:
        self._patch.select(name)
        self.place = kwargs
        try:
            with self._announce(name, **kwargs):
                yield
        finally:
            self._patch.select("")


class _Place:
    """A module under a handle: the layer hangs on it, and its processor is a stand-in."""

    def __init__(self, layer: Layer) -> None:
        self.layer, self._module = layer, layer.module
        self._stock: Any = None
        self._ours: Any = None

    def install(self) -> None:
        """Stand in for whatever the module holds, or note why it keeps what it has.

        Fusing projections, loading an IP-Adapter or perturbed attention replace processors after ``apply``; the new
        one is then the one to stand in for, and the one that ``remove`` restores.
        """
        if not hasattr(self._module, LAYER):
            setattr(self._module, LAYER, self.layer)
        held = self._module.processor
        if held is self._ours and held is not None:
            self.layer.blocked = ""
            return
        self.layer.blocked = why_not(held)
        if not self.layer.blocked:
            self._stock = unwrap(held)
            self._ours = stand_in(self._stock)
            _put(self._module, self._ours)

    def remove(self) -> None:
        """The module as it was."""
        vars(self._module).pop(LAYER, None)
        held = self._module.processor
        if held is self._ours and held is not None:
            _put(self._module, self._stock)
        elif isinstance(held, StandIn):  # made anew from the class of ours
            _put(self._module, unwrap(held))


def _put(module: Any, processor: Any) -> None:
    """Give an attention module a processor; not every class has a method for it."""
    if hasattr(module, "set_processor"):
        module.set_processor(processor)
    else:
        module.processor = processor
