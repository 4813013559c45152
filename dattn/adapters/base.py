"""What one small file per model family says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dattn.grid import TokenGrid

Grids = TokenGrid | tuple[TokenGrid, ...] | str
"""The grid of a call; one for every sample where they differ; or why the call is left alone."""


@dataclass(frozen=True)
class Site:
    """A self-attention module.

    Attributes:
        name: in the model.
        module: what holds the processor.
        level: whose grid it sees.
        why: why no pattern can run in it; ``""`` where one can.
    """

    name: str
    module: Any
    level: str = ""
    why: str = ""


@dataclass(frozen=True)
class Inputs:
    """The arguments of one forward call of the top-level model."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def get(self, position: int, name: str) -> Any:
        """The argument called ``name``, at ``position`` when it was passed without its name."""
        return self.kwargs[name] if name in self.kwargs else self.args[position]


@dataclass(frozen=True)
class Adapter:
    """How one model family is read.

    Attributes:
        family: short name, the key of its presets.
        title: what people call it.
        models: class names of the top-level models; subclasses count.
        text: where text tokens sit in self-attention, in plain words for the table of models.
        sites: the model's self-attention modules in execution order.
        grids: from the model and the inputs of one call to the grid of every level. Where text sits on one side only,
            its count need not be exact: a call's own length corrects it.
    """

    family: str
    title: str
    models: tuple[str, ...]
    text: str
    sites: Callable[[Any], list[Site]]
    grids: Callable[[Any, Inputs], Mapping[str, Grids]]
