"""What one small file per model family says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dattn.grid import TokenGrid


@dataclass(frozen=True)
class Site:
    """A self-attention module: its name in the model, the module, and the level whose grid it sees."""

    name: str
    module: Any
    level: str = ""


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
        text: where text tokens sit.
        sites: the model's self-attention modules in execution order.
        grids: from the model and the inputs of one call to the grid of every level.
        processor: name of the processor class in ``dattn.processors`` that serves its layers.
    """

    family: str
    title: str
    models: tuple[str, ...]
    text: str
    sites: Callable[[Any], list[Site]]
    grids: Callable[[Any, Inputs], dict[str, TokenGrid]]
    processor: str
