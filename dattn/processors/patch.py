"""One model under a handle: its layers, their processors, and what hangs on the model meanwhile."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from dattn.adapters import Adapter, Inputs
from dattn.processors.base import Processor, unwrap
from dattn.processors.layer import Layer


class Patch:
    """Puts processors of ours in a model, follows what is done to the model, and takes all of it out again.

    Args:
        model: the top-level model.
        adapter: how its family is read.
        layers: one layer per site of the adapter, in that order.
        processor: the class of processor that serves them.
        before: called at the start of every forward pass of the model.
    """

    def __init__(
        self,
        model: Any,
        adapter: Adapter,
        layers: list[Layer],
        processor: type[Processor],
        before: Callable[[], None],
    ) -> None:
        self.model, self.layers = model, layers
        self._adapter, self._before = adapter, before
        self._levels = [site.level for site in adapter.sites(model)]
        self._ours = [(layer, processor(layer)) for layer in layers if layer.pattern is not None]
        self._count_sharing()
        for pair in self._ours:
            _install(*pair)
        self._hook = model.register_forward_pre_hook(self._enter, with_kwargs=True)
        self._tap_cache_context()

    def _count_sharing(self) -> None:
        """Tell every layer which of how many it is among those of its level, whose tensors are alike."""
        found: dict[str, list[Layer]] = {}
        for layer, level in zip(self.layers, self._levels, strict=True):
            if layer.pattern is not None:
                found.setdefault(level, []).append(layer)
        for alike in found.values():
            for number, layer in enumerate(alike):
                layer.sharing = number, len(alike)

    def _enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a forward pass: the grid of every layer, from the model's own inputs."""
        self._before()
        grids = self._adapter.grids(model, Inputs(args, kwargs))
        for layer, level in zip(self.layers, self._levels, strict=True):
            layer.enter(grids[level])
        for layer, ours in self._ours:
            if layer.module.processor is not ours or layer.blocked:
                _install(layer, ours)

    def _tap_cache_context(self) -> None:
        """Learn the names of guidance branches, which pipelines announce with ``model.cache_context(name)``."""
        self._cache_context = vars(self.model).get("cache_context")
        if not hasattr(self.model, "cache_context"):
            return
        announce = self.model.cache_context

        @functools.wraps(announce)
        @contextmanager
        def cache_context(name: str, **kwargs: Any) -> Iterator[None]:
            self._select(name)
            try:
                with announce(name, **kwargs):
                    yield
            finally:
                self._select("")

        self.model.cache_context = cache_context

    def _select(self, branch: str) -> None:
        for layer in self.layers:
            layer.select(branch)

    def remove(self) -> None:
        """The model as it was: its own processors, no hook, no wrapper."""
        self._hook.remove()
        if "cache_context" in vars(self.model):
            del self.model.cache_context
        if self._cache_context is not None:
            self.model.cache_context = self._cache_context
        for layer, ours in self._ours:
            if layer.module.processor is ours:
                layer.module.set_processor(ours.stock)
        for layer in self.layers:
            layer.close()


def _install(layer: Layer, ours: Processor) -> None:
    """Put a processor in place of whatever its module holds, or note why the module keeps what it has.

    Fusing projections, loading an IP-Adapter or perturbed attention replace processors after ``apply``; the new
    stock processor is then the one to step aside for, and the one that ``remove`` restores.
    """
    stock = unwrap(layer.module.processor) or ours.own(layer.module)
    layer.blocked = ours.accepts(stock)
    if not layer.blocked:
        ours.adopt(stock)
        layer.module.set_processor(ours)
