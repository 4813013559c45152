"""What one small file per model family says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dattn.grid import TokenGrid


@dataclass(frozen=True)
class Positions:
    """A grid that only a table of positions tells: the picture being made comes first, other pictures after it.

    The table's numbers are not something that a compiler can trace, so ``grid`` runs outside of a graph.

    Attributes:
        ids: [tokens, 3 or more]; picture, row and column of every token of a picture.
        text: how many text tokens come before them.
    """

    ids: Tensor
    text: int

    def grid(self) -> TokenGrid:
        """The first picture's size; what follows it counts as text."""
        ids = self.ids
        own = int((ids[:, 0] == ids[0, 0]).sum())
        width = int((ids[:own, 1] == ids[0, 1]).sum())  # counted, not read: bfloat16 has no numbers like 257
        return TokenGrid(1, own // width, width, text=(self.text, len(ids) - own))


Grids = TokenGrid | tuple[TokenGrid, ...] | Positions | str
"""The grid of a call; one for every sample where they differ; what tells it; or why the call is left alone."""


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
